"""GhostBatchNorm against the reference on each ghost, and beside BatchNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import steadynorm as sn
from steadynorm import reference
from steadynorm.nn.ghost import _GhostBatchNorm
from steadynorm.reference import Settings

from ..support.cases import CASES, Case, by_name, example
from ..support.peers import gradients, torch_batch_norm
from ..support.related import ghost_backward, ghost_forward, ghost_sizes
from ..support.tolerance import check
from ..support.twins import agree, agree_in_state, normal

DOUBLE = torch.float64
LAYERS: dict[int, Any] = {
    2: sn.GhostBatchNorm1d,
    3: sn.GhostBatchNorm1d,
    4: sn.GhostBatchNorm2d,
    5: sn.GhostBatchNorm3d,
}
GHOSTS = [case for case in CASES if case.name not in ("empty batch", "empty sequence")]


def ghost_layer(size: int, **settings: Any) -> _GhostBatchNorm:
    """Three channels, float64, weight and bias that are not 1 and 0."""
    layer = sn.GhostBatchNorm2d(3, size, dtype=DOUBLE, **settings)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(3, seed=seed))
    return layer


def plain_layer(ghosts: _GhostBatchNorm) -> Any:
    """BatchNorm2d of the same state."""
    plain = sn.BatchNorm2d(3, momentum=ghosts.momentum, dtype=DOUBLE, activation=ghosts.activation)
    plain.load_state_dict(ghosts.state_dict(), strict=True)
    return plain


@pytest.mark.parametrize("case", GHOSTS, ids=by_name)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::steadynorm.NonFiniteStatisticsWarning")
def test_case(case: Case) -> None:
    """Ghosts of three examples: output, gradients and running statistics stay within the tolerance rule."""
    data, sizes = example(case), ghost_sizes(case.shape, 3)
    layer = LAYERS[len(case.shape)](case.shape[1], 3, affine=case.affine, activation=case.activation)
    layer.to(torch.float32 if case.dtype.itemsize < 4 else case.dtype)
    if case.affine:
        with torch.no_grad():
            layer.weight.copy_(data.weight)
            layer.bias.copy_(data.bias)
    arrays = [None if t is None else t.double().numpy() for t in (data.weight, data.bias, data.residual)]
    settings = Settings(arrays[0], arrays[1], 1e-5, arrays[2], None, case.activation)
    x64, dy64 = data.x.double().numpy(), data.dy.double().numpy()

    x = data.x.requires_grad_()
    residual = None if data.residual is None else data.residual.requires_grad_()
    y = layer(x, residual=residual)
    inputs = (x, layer.weight, layer.bias, residual)
    grads = gradients(y, data.dy, *inputs)
    pieces = zip(x.split(sizes), [None] * len(sizes) if residual is None else residual.split(sizes), strict=True)
    peers = [torch_batch_norm(p, None, None, layer.weight, layer.bias, True, r, case.activation) for p, r in pieces]
    peer = torch.cat(peers)
    peer_grads = gradients(peer, data.dy, *inputs)

    assert y.dtype == case.dtype
    check(y, ghost_forward(x64, sizes, settings), peer)
    expected = ghost_backward(dy64, x64, sizes, settings)
    values = case.values_per_channel
    for grad, peer_grad, expected_grad, terms in zip(grads, peer_grads, expected, (1, values, values, 1), strict=True):
        if grad is not None:
            check(grad, expected_grad, peer_grad, terms=terms)
    channels = case.shape[1]
    batch = reference.statistics(x64)
    running = reference.update_running([0.0] * channels, [1.0] * channels, batch, 0.1)
    for ours, expected_running in zip((layer.running_mean, layer.running_var), running, strict=True):
        if case.mean < 1e8:  # of which float64 knows the ghosts' means to 1e-8 only
            check(ours, expected_running, terms=values)


@given(st.integers(2, 12), st.integers(1, 14), st.booleans(), st.integers(0, 2**31))
def test_ghosts_are_batch_norm_of_each(examples: int, size: int, masked: bool, seed: int) -> None:
    """Any number of examples, any size; running statistics are those of the whole batch."""
    x = normal(examples, 3, 2, 3, seed=seed)
    mask = torch.ones(examples, 2, 3, dtype=torch.bool)
    if masked:
        mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        mask[:, 0, :2] = True
    layer = ghost_layer(size)
    plain, each = plain_layer(layer), plain_layer(layer)
    y = layer(x, mask=mask if masked else None)
    agree(y, torch.cat([each(p, mask=m) for p, m in zip(x.split(size), mask.split(size), strict=True)]))
    plain(x, mask=mask)
    agree_in_state(layer, plain)


@given(st.integers(0, 2**31))
def test_permuting_examples_in_a_ghost_and_ghosts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inside = torch.stack([torch.randperm(4, generator=generator) + 4 * ghost for ghost in range(3)])
    order = inside[torch.randperm(3, generator=generator)].flatten()
    x, layer = normal(12, 3, 2, 2, seed=seed), ghost_layer(4)
    agree(layer(x[order]), layer(x)[order])


@pytest.mark.parametrize("size", [4, 5, 100])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_one_ghost_is_batch_norm(size: int, training: bool) -> None:
    """The same bits, as is eval mode for any size."""
    size = size if training else 2
    layer = ghost_layer(size, activation="relu").train(training)
    plain = plain_layer(layer).train(training)
    x = normal(4, 3, 5, 6)
    agree(layer(x), plain(x), rtol=0, atol=0)
    agree_in_state(layer, plain, rtol=0, atol=0)


def test_a_last_ghost_of_one_value_joins_its_predecessor() -> None:
    layer, x = sn.GhostBatchNorm1d(3, 4, dtype=DOUBLE), normal(9, 3)
    expected = [sn.BatchNorm1d(3, dtype=DOUBLE)(part) for part in x.split([4, 5])]
    agree(layer(x), torch.cat(expected))
    agree(layer(x[:5]), sn.BatchNorm1d(3, dtype=DOUBLE)(x[:5]))
    images = sn.GhostBatchNorm2d(3, 4, dtype=DOUBLE)(normal(9, 3, 1, 2))
    assert images[8].abs().max() > 0  # two values are enough


@pytest.mark.parametrize("examples", [8, 11], ids=["even", "a smaller last"])
def test_masks_and_residual(examples: int) -> None:
    """nan where nothing is real reaches neither output nor gradient."""
    x, residual = (normal(examples, 3, 5, 6, seed=seed).requires_grad_() for seed in (0, 1))
    mask = torch.rand(examples, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    hidden = [torch.where(mask.unsqueeze(1), t.detach(), torch.nan).requires_grad_() for t in (x, residual)]
    layer = ghost_layer(4, activation="silu")
    dy = normal(examples, 3, 5, 6, seed=2)
    y = layer(hidden[0], mask=mask, residual=hidden[1])
    grads = torch.autograd.grad(y, (hidden[0], *layer.parameters(), hidden[1]), dy)
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    settings = Settings(weight, bias, 1e-5, residual.detach().numpy(), mask.unsqueeze(1).numpy(), "silu")
    x64, sizes = x.detach().numpy(), ghost_sizes(x.shape, 4)
    agree(y, torch.from_numpy(ghost_forward(x64, sizes, settings)))
    for grad, expected in zip(grads, ghost_backward(dy.numpy(), x64, sizes, settings), strict=True):
        agree(grad, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("examples", [6, 7], ids=["even", "a smaller last"])
def test_derivatives(examples: int) -> None:
    layer = ghost_layer(3, activation="tanh", track_running_stats=False)
    x = normal(examples, 3, 1, 2).requires_grad_()
    weight, bias = layer.parameters()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), (x, weight, bias))


ORDERS = {
    "2-D": (normal(7, 3), sn.GhostBatchNorm1d),
    "sequences": (normal(7, 5, 3).movedim(-1, 1), sn.GhostBatchNorm1d),
    "images": (normal(7, 4, 5, 3).movedim(-1, 1), sn.GhostBatchNorm2d),
    "volumes": (normal(7, 2, 4, 5, 3).movedim(-1, 1), sn.GhostBatchNorm3d),
    "images, contiguous": (normal(7, 3, 4, 5), sn.GhostBatchNorm2d),
}


@pytest.mark.parametrize("size", [2, 7], ids=["a smaller last", "one"])
@pytest.mark.parametrize(("x", "kind"), ORDERS.values(), ids=ORDERS)
def test_memory_order(x: Tensor, kind: Any, size: int) -> None:
    """Channels last in and out, also of the gradient."""
    layer, x = kind(3, size, dtype=DOUBLE), x.requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, normal(*y.shape, seed=1))
    assert y.stride() == dx.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Statistics and parameters stay float32; the output is the float32 layer's, rounded."""
    x = normal(7, 3, 4, 5, dtype=dtype)
    layer = sn.GhostBatchNorm2d(3, 3).to(dtype)
    twin = sn.GhostBatchNorm2d(3, 3)
    y = layer(x)
    assert (y.dtype, layer.weight.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.float(), twin(x.float()), rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    agree_in_state(layer, twin, rtol=1e-5, atol=1e-6)
