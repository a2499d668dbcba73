"""Masks and lengths: only real elements count, whatever lies in the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import steadynorm as sn
from steadynorm import reference

from ..support.refusals import expect_unchanged
from ..support.tolerance import as_array, check
from ..support.twins import agree, normal

SIZES = pytest.mark.parametrize("shape", [(5, 3, 7), (40, 6, 900)], ids=["small", "large"])
ORDERS = pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def lengths_of(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, shape[2] + 1, (shape[0],), generator=generator)
    lengths[0], lengths[1] = shape[2], 0
    return lengths


def real(lengths: Tensor, length: int) -> Tensor:
    return (torch.arange(length) < lengths[:, None])[:, None]


@SIZES
@ORDERS
@DTYPES
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_against_the_reference(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, activation: str | None
) -> None:
    """Output, gradients and running statistics, with garbage in the padding."""
    lengths = lengths_of(shape)
    mask = real(lengths, shape[2])
    x, dy, residual = (normal(*shape, seed=seed, dtype=dtype) for seed in range(3))
    x = torch.where(mask, x, torch.nan)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layer = sn.BatchNorm1d(shape[1], momentum=0.25, activation=activation, dtype=wide)
    leaf, added = x.requires_grad_(), residual.requires_grad_()
    y = layer(leaf, mask=lengths, residual=added)
    chosen = reference.Settings(
        np.ones(shape[1]), np.zeros(shape[1]), 1e-5, as_array(residual), mask.numpy(), activation
    )
    expected, batch = reference.forward(as_array(x), chosen)
    terms, working = int(mask.sum()), wide
    check(y, expected)
    assert not y[~mask.expand(shape)].any()
    found = torch.autograd.grad(y, (leaf, layer.weight, layer.bias, added), dy)
    theirs = reference.backward(as_array(dy), np.where(mask, as_array(x), 0), chosen)
    for ours, values, count in zip(found, theirs, (1, terms, terms, 1), strict=True):
        assert torch.isfinite(ours).all()
        check(ours, values, terms=count, working=working)
    assert not found[0][~mask.expand(shape)].any()
    assert layer.running_mean is not None and layer.running_var is not None
    ones = [1.0] * shape[1]
    moved = reference.update_running([0.0] * shape[1], ones, batch, 0.25)
    for ours, values in zip((layer.running_mean, layer.running_var), moved, strict=True):
        check(ours, values, terms=terms, working=working)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.integers(0, 3))
def test_padding_does_not_matter(padding: int, seed: int) -> None:
    """Sequences padded to other lengths give the same output and gradients for their real elements."""
    lengths = torch.tensor([9, 4, 1, 7])
    x = normal(4, 3, 9, seed=seed, dtype=torch.float32)
    longer = torch.cat([x, normal(4, 3, padding, seed=7, dtype=torch.float32)], 2)
    results = []
    for data in (x, longer):
        layer = sn.BatchNorm1d(3, activation="silu")
        leaf = data.clone().requires_grad_()
        y = layer(leaf, mask=lengths)
        (y[:, :, :9] ** 3).sum().backward()
        assert leaf.grad is not None and layer.weight.grad is not None
        results.append([y[:, :, :9], leaf.grad[:, :, :9], layer.weight.grad, layer.running_var])
    torch.testing.assert_close(results[0], results[1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_way_to_say_it(training: bool) -> None:
    """(N, *), (N, 1, *), anything that broadcasts to it, and lengths."""
    layer = sn.BatchNorm1d(3, dtype=torch.float64).train(training)
    x, lengths = normal(4, 3, 5), torch.tensor([5, 5, 5, 5])
    mask = real(lengths, 5)
    for other in (lengths, lengths.int(), mask[:, 0], mask, mask[:1], mask[:, :, :1], torch.ones(1, 1).bool()):
        agree(layer(x, mask=other), layer(x))
    short = torch.tensor([3, 3, 3, 3])
    agree(layer(x, mask=short), layer(x, mask=real(short, 5)[:1, 0]))


def test_images_and_vectors() -> None:
    """A mask (N, H, W), and one of whole examples."""
    images, rows = sn.BatchNorm2d(3, dtype=torch.float64), sn.BatchNorm1d(3, dtype=torch.float64)
    x = normal(4, 3, 5, 6)
    mask = normal(4, 5, 6, seed=1) > 2
    check(images(x, mask=mask), reference.forward(as_array(x), _plain(3, mask[:, None]))[0])
    v, some = normal(6, 3), torch.tensor([True, False, True, True, False, True])
    y = rows(v, mask=some)
    agree(y[some], sn.BatchNorm1d(3, dtype=torch.float64)(v[some]))
    assert not y[~some].any()


def _plain(channels: int, mask: Tensor) -> reference.Settings:
    return reference.Settings(np.ones(channels), np.zeros(channels), mask=mask.numpy())


@SIZES
def test_batch_without_any_real_element(shape: tuple[int, ...]) -> None:
    """Gives 0, passes no gradient, and leaves the running statistics."""
    layer = sn.BatchNorm1d(shape[1])
    before = [layer.running_mean.clone(), layer.running_var.clone()]  # type: ignore[union-attr]
    x = normal(*shape, dtype=torch.float32).requires_grad_()
    y = layer(x, mask=torch.zeros(shape[0], dtype=torch.long))
    y.sum().backward()
    assert x.grad is not None
    assert not y.any()
    assert not x.grad.any()
    agree([layer.running_mean, layer.running_var], before, rtol=0, atol=0)


def test_one_real_element() -> None:
    raises, running = sn.BatchNorm1d(3), sn.BatchNorm1d(3, single_value="running")
    x, one = normal(4, 3, 5, dtype=torch.float32), torch.tensor([0, 1, 0, 0])

    def call() -> None:
        with pytest.raises(ValueError, match=r"more than 1 value per channel .* with one real element"):
            raises(x, mask=one)

    expect_unchanged(raises, call)
    expect_unchanged(running, lambda: running(x, mask=one))
    agree(running(x, mask=one), running.eval()(x, mask=one))


def test_double_backward() -> None:
    layer = sn.BatchNorm1d(3, activation="silu", dtype=torch.float64, track_running_stats=False)
    mask = real(torch.tensor([4, 0, 2]), 4)
    x = normal(3, 3, 4).requires_grad_()
    torch.autograd.gradcheck(lambda t: layer(t, mask=mask), x)
    torch.autograd.gradgradcheck(lambda t: layer(t, mask=mask), x)


def test_compiled_inference_with_nan_in_the_padding() -> None:
    layer = sn.BatchNorm1d(3, activation="silu", dtype=torch.float64).eval()
    x, lengths = normal(2, 3, 5), torch.tensor([5, 2])
    x[1, :, 2:] = torch.nan
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y = run(leaf, mask=lengths)
        results.append([y, *torch.autograd.grad(y.sum(), (leaf, layer.weight, layer.bias))])
    agree(results[1], results[0])


def test_mapped_lengths() -> None:
    layer = sn.BatchNorm1d(3, track_running_stats=False, dtype=torch.float64)
    x, lengths = normal(2, 4, 3, 5), torch.tensor([[5, 1, 2, 0], [3, 3, 3, 3]])
    together = torch.func.vmap(lambda t, n: layer(t, mask=n))(x, lengths)
    agree(together, torch.stack([layer(t, mask=n) for t, n in zip(x, lengths, strict=True)]))


def test_compiled_and_mapped() -> None:
    layer = sn.BatchNorm1d(3, track_running_stats=False, dtype=torch.float64)
    x, lengths = normal(2, 4, 3, 5), torch.tensor([[5, 1, 2, 0], [3, 3, 3, 3]])
    compiled = torch.compile(lambda t, n: layer(t, mask=n), fullgraph=True, backend="aot_eager")
    agree(compiled(x[0], lengths[0]), layer(x[0], mask=lengths[0]))
    masks = torch.stack([real(n, 5) for n in lengths])
    together = torch.func.vmap(lambda t, m: layer(t, mask=m))(x, masks)
    agree(together, torch.stack([layer(t, mask=m) for t, m in zip(x, masks, strict=True)]))


REFUSED = {
    "dtype": (torch.ones(4, 5), r"expected a bool mask or integer lengths, got torch.float32"),
    "shape": (torch.ones(4, 6).bool(), r"expected a mask of shape \(4, 5\) or \(4, 1, 5\) .*, got \(4, 6\)"),
    "channels": (torch.ones(4, 3, 5).bool(), r"expected a mask of shape .*, got \(4, 3, 5\)"),
    "dimensions": (torch.ones(4).bool(), r"expected a mask of shape .*, got \(4,\)"),
    "number of lengths": (torch.ones(3).long(), r"expected lengths of shape \(N,\) .*, got lengths of shape \(3,\)"),
    "too long": (torch.tensor([5, 6, 1, 1]), r"expected lengths from 0 to 5, .* got 1 to 6"),
    "negative": (torch.tensor([5, -1, 1, 1]), r"expected lengths from 0 to 5, .* got -1 to 5"),
    "device": (torch.ones(4, 5, device="meta").bool(), r"expected a mask on the input's device cpu, got meta"),
}


@pytest.mark.parametrize(("mask", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(mask: Tensor, message: str) -> None:
    layer = sn.BatchNorm1d(3)

    def call() -> None:
        with pytest.raises(ValueError, match=rf"BatchNorm1d\(num_features=3\): {message}"):
            layer(torch.zeros(4, 3, 5), mask=mask)

    expect_unchanged(layer, call)


def test_lengths_of_images() -> None:
    with pytest.raises(ValueError, match=r"expected lengths of shape \(N,\) for an input \(N, C, L\)"):
        sn.BatchNorm2d(3)(torch.zeros(4, 3, 5, 5), mask=torch.ones(4).long())
