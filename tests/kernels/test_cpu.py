"""What tensors the compiled CPU kernels take: any alignment, memory order, dtype of parameters, inf and nan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from steadynorm.kernels.cpu import _core

from ..support.setups import (
    SETUPS,
    WALKS,
    Setup,
    both_passes,
    check_gradients,
    cpu,
    draw,
    in_order,
    own_statistics,
    reference_backward,
    reference_forward,
    same_bits,
)
from ..support.tolerance import check

pytestmark = pytest.mark.usefixtures("by_every_instruction_set")

ORDERS = pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
LONG = (2, 3, 4, 101)
RESNET = Setup("", "relu", affine="own", residual=True, shape=LONG)


def at_offset(values: Tensor, offset: int) -> Tensor:
    """A copy with the same strides, which begins so many elements into its memory."""
    memory = torch.empty(values.numel() + offset, dtype=values.dtype)
    return memory[offset:].as_strided(values.shape, values.stride()).copy_(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@ORDERS
@pytest.mark.parametrize("offset", range(1, 16))
def test_any_alignment(dtype: torch.dtype, channels_last: bool, offset: int) -> None:
    setup = Setup("", "relu", residual=True, dtype=dtype, channels_last=channels_last, shape=LONG)
    x, dy, apply, _, _ = draw(setup)
    assert apply.residual is not None
    x, dy, residual = (at_offset(t, offset + k) for k, t in enumerate((x, dy, apply.residual)))
    apply = apply._replace(residual=residual)
    check(cpu.forward(x, apply)[0], reference_forward(x, apply))
    own = own_statistics(x, None)
    grads = cpu.backward(dy, x, own.mean, own.var, apply, own.count)
    check_gradients(grads, reference_backward(dy, x, apply), x, apply)


@pytest.fixture
def no_cache() -> Iterator[Callable[[], int]]:
    """From the call on, every tensor is too large for the processor's caches."""
    before = _core.use_cache_size(1 << 25)
    yield lambda: _core.use_cache_size(0)
    _core.use_cache_size(before)


@pytest.mark.parametrize("setup", WALKS, ids=lambda setup: setup.name)
def test_beyond_the_cache(setup: Setup, no_cache: Callable[[], None]) -> None:
    """Writing past the caches, in any order of the items, gives the same bits."""
    x, dy, apply, _, _ = draw(setup)
    small = both_passes(cpu, x, dy, apply)
    no_cache()
    assert same_bits(both_passes(cpu, x, dy, apply), small)


@ORDERS
def test_dy_of_stride_zero(channels_last: bool) -> None:
    x, _, apply, _, _ = draw(Setup("", "relu", residual=True, channels_last=channels_last, shape=LONG))
    dy = torch.tensor(0.7).expand(x.shape)
    expected = both_passes(cpu, x, in_order(dy, channels_last), apply)
    assert same_bits(both_passes(cpu, x, dy, apply), expected)


@ORDERS
def test_other_orders_than_that_of_x(channels_last: bool) -> None:
    """dy and residual in the other memory order than x; what is made is in x's."""
    x, dy, apply, _, _ = draw(Setup("", "relu", residual=True, channels_last=channels_last, shape=LONG))
    assert apply.residual is not None
    other = apply._replace(residual=in_order(apply.residual, not channels_last))
    results = both_passes(cpu, x, in_order(dy, not channels_last), other)
    assert same_bits(results, both_passes(cpu, x, dy, apply))
    for made in (results[0], results[4], results[7]):
        assert made is not None
        assert made.stride() == x.stride()


def test_x_that_is_not_dense() -> None:
    setup = Setup("", "relu", residual=True, shape=LONG)
    x, dy, apply, _, _ = draw(setup)
    sliced = torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]
    assert same_bits(both_passes(cpu, sliced, dy, apply), both_passes(cpu, x, dy, apply))
    spread = x[:, :1].expand(x.shape)
    assert same_bits(both_passes(cpu, spread, dy, apply), both_passes(cpu, spread.clone(), dy, apply))


@pytest.mark.parametrize("parameter", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("affine", ["shared", "own"])
def test_dtype_of_weight_and_bias(parameter: torch.dtype, affine: str) -> None:
    """Parameters of another dtype than x count with all their digits."""
    x, dy, apply, _, _ = draw(Setup("", "relu", affine=affine, residual=True))
    assert apply.weight is not None
    assert apply.bias is not None
    weight, bias = apply.weight.to(parameter), apply.bias.to(parameter)
    apply = apply._replace(weight=weight, bias=bias)
    results = both_passes(cpu, x, dy, apply)
    doubles = apply._replace(weight=weight.double(), bias=bias.double())
    assert same_bits(results, both_passes(cpu, x, dy, doubles))
    assert results[0] is not None
    check(results[0], reference_forward(x, apply))


def test_float64_with_float64_parameters() -> None:
    x, _, apply, _, _ = draw(next(s for s in SETUPS if s.name == "float64"))
    assert apply.weight is not None
    assert apply.weight.dtype == torch.float64
    check(cpu.forward(x, apply)[0], reference_forward(x, apply))


def test_parameters_that_are_not_contiguous() -> None:
    x, dy, apply, mean, var = draw(RESNET)
    assert apply.weight is not None
    assert apply.bias is not None
    apart = apply._replace(weight=apply.weight.t().contiguous().t(), bias=apply.bias.t().contiguous().t())
    assert same_bits(both_passes(cpu, x, dy, apart), both_passes(cpu, x, dy, apply))
    y = cpu.normalize(x, mean.t().contiguous().t(), var.t().contiguous().t(), apply)
    assert same_bits([y], [cpu.normalize(x, mean, var, apply)])


def test_sums_that_are_not_contiguous() -> None:
    """As they are after an all-reduce of one tensor that holds both."""
    x, dy, apply, mean, var = draw(RESNET)
    count = torch.full_like(mean, x.shape[1] * x.shape[3])
    sums = cpu.reduce_grad(dy, x, mean, var, apply)
    packed = torch.stack([*sums, count], -1).unbind(-1)
    apart = cpu.input_grad(dy, x, mean, var, apply, (packed[0], packed[1]), packed[2])
    assert same_bits([*apart], [*cpu.input_grad(dy, x, mean, var, apply, sums, count)])


def test_one_count_for_all_channels() -> None:
    x, dy, apply, mean, var = draw(RESNET)
    count = torch.full_like(mean, 3.0)
    expected = [*cpu.backward(dy, x, mean, var, apply, count)]
    for shape in ((), (1,), (2, 1), (4,)):
        grads = cpu.backward(dy, x, mean, var, apply, torch.full(shape, 3.0, dtype=torch.float64))
        assert same_bits([*grads], expected)


@ORDERS
def test_statistics_in_float32(channels_last: bool) -> None:
    """Running statistics are (C,), of the layer's dtype."""
    x, _, apply, mean, var = draw(Setup("", "relu", channels_last=channels_last, shape=LONG))
    mean, var = mean[0].float(), var[0].float()
    y = cpu.normalize(x, mean, var, apply)
    assert same_bits([y], [cpu.normalize(x, mean.double(), var.double(), apply)])
    mean, var = mean.double().expand(2, -1), var.double().expand(2, -1)
    assert same_bits([y], [cpu.normalize(x, mean, var, apply)])


@pytest.mark.parametrize("setup", [s for s in WALKS if not s.masked], ids=lambda setup: setup.name)
@pytest.mark.parametrize("rubbish", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("last", [False, True], ids=["first value", "last value"])
def test_what_is_not_finite_stays_in_its_channel(setup: Setup, rubbish: float, last: bool) -> None:
    """Its mean is inf or nan, its variance nan; the other channels are the same bits as without."""
    x, dy, apply, _, _ = draw(setup)
    clean = both_passes(cpu, x, dy, apply)
    place = -1 if last else 0
    channel = x.shape[2] // 2
    x[0, place, channel, place] = rubbish
    results = both_passes(cpu, x, dy, apply)
    mean, m2 = results[2], results[3]
    assert mean is not None
    assert m2 is not None
    assert torch.equal(mean[0, channel].nan_to_num(7.0), torch.tensor(rubbish).double().nan_to_num(7.0))
    assert m2[0, channel].isnan()
    others = torch.arange(x.shape[2]) != channel
    for ours, theirs in zip(results, clean, strict=True):
        if ours is not None and theirs is not None:
            kept = (slice(None), others) if ours.dim() == 2 else (slice(None), slice(None), others)
            assert same_bits([ours[kept]], [theirs[kept]])
    y = results[0]
    assert y is not None
    assert y[0, :, channel].isnan().all()
