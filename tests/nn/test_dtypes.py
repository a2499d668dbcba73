"""16-bit inputs, autocast, and the meta device, which has dtypes and no values."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

import steadynorm as sn

from ..support.twins import agree, normal, step, twins

DOUBLE, WIDE, HALF, BFLOAT = torch.float64, torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("parameters", ["float32", "same"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sixteen_bit_inputs(dtype: torch.dtype, parameters: str, training: bool) -> None:
    """Output and dx in the data's dtype, parameters in float32; no further from the float64 twin than torch's own are.

    Results are rounded once from float32, by at most eps / 2; that float32 result is itself within 1e-5.
    """
    theirs, ours = twins(dtype=torch.float32 if parameters == "float32" else dtype)
    exact = torch.nn.BatchNorm2d(3, dtype=DOUBLE)
    exact.load_state_dict(ours.state_dict())
    x, dy = normal(4, 3, 5, 6, dtype=dtype), normal(4, 3, 5, 6, seed=9, dtype=dtype)
    results, peers = (step(layer.train(training), x, dy) for layer in (ours, theirs))
    expected = step(exact.train(training), x.double(), dy.double())
    for ours_is, theirs_is, exact_is, kind in zip(results, peers, expected, (dtype, dtype, WIDE, WIDE), strict=True):
        assert ours_is.dtype == kind
        scale = exact_is.abs().max()
        allowed = torch.finfo(ours_is.dtype).eps / 2 * scale + 1e-5 * scale
        error = (ours_is.double() - exact_is).abs().max()
        assert error <= max(allowed, 2 * (theirs_is.double() - exact_is).abs().max())
    assert {buffer.dtype for buffer in ours.buffers()} == {WIDE, torch.int64}


def test_autocast() -> None:
    """conv in bfloat16, normalized in bfloat16, statistics and parameter gradients in float32."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3, bias=False)
    x = torch.randn(8, 3, 9, 9)
    found = []
    for layer in twins(features=4, dtype=torch.float32):
        conv.zero_grad()
        with torch.autocast("cpu", dtype=BFLOAT):
            y = layer(conv(x))
        y.square().mean().backward()
        assert y.dtype == BFLOAT
        assert layer.weight.grad is not None
        assert conv.weight.grad is not None
        assert layer.running_mean is not None
        assert layer.weight.grad.dtype == layer.running_mean.dtype == torch.float32
        found.append((y.float(), layer.weight.grad, conv.weight.grad.clone(), dict(layer.state_dict())))
    theirs, ours = found
    step_size = torch.finfo(BFLOAT).eps  # y and dx are rounded to bfloat16; two roundings may differ by one step
    torch.testing.assert_close(ours[:3], theirs[:3], rtol=2 * step_size, atol=step_size)
    torch.testing.assert_close(ours[3], theirs[3])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, HALF, BFLOAT])
def test_meta(dtype: torch.dtype) -> None:
    """Built and run on the meta device: shapes, dtypes and strides without memory."""
    with torch.device("meta"):
        layer = sn.BatchNorm2d(3, dtype=dtype)
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    x = torch.empty(4, 3, 5, 6, device="meta", dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    for training in (True, False):
        y = layer.train(training)(x)
        (dx,) = torch.autograd.grad(y, x, torch.empty_like(y))
        for result in (y, dx):
            assert (result.shape, result.dtype, result.device, result.stride()) == (
                x.shape,
                dtype,
                x.device,
                x.stride(),
            )
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    real.train()(torch.zeros(2, 3, 2, 2, dtype=dtype))
    assert real.num_batches_tracked == 1


def test_meta_input_touches_no_state() -> None:
    """A meta input to a layer with memory is refused; nothing moves."""
    layer = sn.BatchNorm2d(3)
    before = copy.deepcopy(layer.state_dict())
    for training in (True, False):
        with pytest.raises(RuntimeError):
            layer.train(training)(torch.empty(4, 3, 5, 6, device="meta"))
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize(
    "make",
    [
        lambda: sn.BatchNorm1d(4),
        lambda: sn.BatchRenorm1d(4),
        lambda: sn.GhostBatchNorm1d(4, 2),
        lambda: sn.SyncBatchNorm(4),
        lambda: sn.WhiteningBatchNorm(4, 2),
        lambda: sn.FrozenBatchNorm(4),
    ],
    ids=["plain", "renorm", "ghost", "sync", "whitening", "frozen"],
)
def test_default_dtype_of_16_bits(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> None:
    """As where it is asked for by `dtype=`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        layer = make()
    finally:
        torch.set_default_dtype(before)
    assert {t.dtype for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()} == {WIDE}


def test_statistics_move_under_a_default_dtype_of_16_bits() -> None:
    """In 16 bits they would stand still at a mean of 2 under so small a momentum."""
    torch.set_default_dtype(BFLOAT)
    try:
        layer = sn.BatchNorm1d(1, momentum=0.003)
        x = torch.tensor([[1.0], [5.0]])
        for _ in range(1500):
            layer(x)
    finally:
        torch.set_default_dtype(WIDE)
    expected = 3 * (1 - 0.997**1500)
    assert layer.running_mean is not None and abs(layer.running_mean.item() - expected) < 1e-3


def test_default_dtype_of_64_bits() -> None:
    torch.set_default_dtype(DOUBLE)
    try:
        assert sn.BatchNorm1d(2).weight.dtype == sn.FrozenBatchNorm(2).get_buffer("weight").dtype == DOUBLE
    finally:
        torch.set_default_dtype(WIDE)
