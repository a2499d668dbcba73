"""WhiteningBatchNorm as a layer: statistics under control, dtypes and memory, compilers, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import steadynorm as sn
from steadynorm.nn.whitening import METHODS
from steadynorm.statistics.reduce import _layer

from ..support.marks import FUNCTION_WARNS
from ..support.refusals import expect_unchanged
from ..support.twins import agree, agree_in_state, normal

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def whitening(method: str = "iternorm", **settings: Any) -> Any:
    return sn.WhiteningBatchNorm(4, 2, method, dtype=DOUBLE, **settings)


def mixed(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Correlated channels."""
    x = normal(*shape, seed=seed)
    return (x + 0.5 * x.cumsum(1)).to(dtype)


# ---- statistics ----


def test_average_of_all_batches() -> None:
    """momentum=None: the plain mean of the batches' means and unbiased covariances; empty batches are counted only."""
    layer = whitening(momentum=None)
    batches = [mixed(6, 4, 3, seed=seed) for seed in range(3)]
    for x in batches:
        layer(x)
    agree(layer.running_mean, torch.stack([x.mean((0, 2)) for x in batches]).mean(0))
    covariances = [torch.cov(x.movedim(1, 0).flatten(1)) for x in batches]
    mean = torch.stack(covariances).mean(0)
    agree(layer.running_covariance, torch.stack([mean[:2, :2], mean[2:, 2:]]))
    before = copy.deepcopy(layer.state_dict())
    assert layer(mixed(0, 4, 3)).shape == (0, 4, 3)
    assert not layer(mixed(2, 4, 3), mask=torch.tensor([0, 0])).any()
    agree(layer.running_covariance, before["running_covariance"], rtol=0, atol=0)
    assert layer.num_batches_tracked == 5


@pytest.mark.parametrize("method", METHODS)
def test_held_and_guarded(method: str) -> None:
    layer, x = whitening(method), mixed(6, 4, 3)
    before = copy.deepcopy(layer.state_dict())
    with sn.hold_statistics(layer):
        held = layer(x)
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    agree(held, copy.deepcopy(layer)(x))
    poisoned = x.clone()
    poisoned[0, 0] = torch.inf
    with sn.guard_statistics(layer) as guard, pytest.warns(sn.NonFiniteStatisticsWarning, match="guard_statistics"):
        y = layer(poisoned)
    assert y[:, :2].isnan().all()
    assert y[:, 2:].isfinite().all()
    assert guard.kept_out == {"": 1}
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    with pytest.warns(sn.NonFiniteStatisticsWarning, match=r"WhiteningBatchNorm\(num_features=4\): the batch's mean"):
        layer(poisoned)
    assert layer.eval()(x)[:, :2].isnan().all()


def test_accumulation_is_refused() -> None:
    layer, x = whitening(), mixed(6, 4, 3)

    def call() -> None:
        message = r"WhiteningBatchNorm\(num_features=4\): expected to move its statistics itself, got accumulate_stat"
        with pytest.raises(ValueError, match=message), sn.accumulate_statistics(layer, 2):
            layer(x)

    expect_unchanged(layer, call)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_moves_statistics_once(reentrant: bool, method: str) -> None:
    once, again = whitening(method), whitening(method)
    first, second = (mixed(6, 4, 3).requires_grad_() for _ in range(2))
    once(first).tanh().sum().backward()
    checkpoint(again, second, use_reentrant=reentrant).tanh().sum().backward()
    agree_in_state(again, once)
    agree(second.grad, first.grad)


def test_without_running_statistics_the_batch_whitens_in_eval() -> None:
    layer, tracking, x = whitening(track_running_stats=False), whitening(), mixed(6, 4, 3)
    assert list(layer.state_dict()) == ["weight", "bias"]
    expected = tracking(x)
    for training in (True, False):
        agree(layer.train(training)(x), expected)


# ---- dtypes, memory, compilers ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype, method: str) -> None:
    """The float32 layer's output, rounded, also under autocast; statistics float32."""
    x = mixed(40, 4, 3, dtype=dtype)
    layer, twin = sn.WhiteningBatchNorm(4, 2, method).to(dtype), sn.WhiteningBatchNorm(4, 2, method)
    expected = twin(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, z = layer(x), copy.deepcopy(layer)(x.float())
    assert (y.dtype, z.dtype) == (dtype, torch.float32)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=eps, atol=eps)
    agree_in_state(layer, twin, rtol=1e-6, atol=1e-6)
    agree(z, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 5), (9, 4, 5, 6), (2, 4, 3, 5, 6)], ids=str)
def test_memory_order(shape: tuple[int, ...], training: bool) -> None:
    """Channels last in and out; the same values as channels first."""
    layer, x = whitening().train(training), mixed(*shape)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    for given in (x, last, torch.stack([x, x], -1)[..., 0]):
        y = copy.deepcopy(layer)(given)
        agree(y, copy.deepcopy(layer)(x))
        assert y.stride() == (last if given is last else x).stride()


@FUNCTION_WARNS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_compiled(method: str, dynamic: bool, training: bool) -> None:
    layer = whitening(method, activation="relu").train(training)
    compiled: Any = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (6, 9):
        found = []
        for call in (compiled, layer):
            x = mixed(size, 4, 2, 3).requires_grad_()
            y = call(x)
            found.append([y, *torch.autograd.grad(y, x, normal(*y.shape, seed=3))])
        agree(*found, rtol=1e-9, atol=1e-10)
    agree(dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()))


def test_repr() -> None:
    start = (
        "WhiteningBatchNorm(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, group_size"
    )
    assert repr(sn.WhiteningBatchNorm(4, 2)) == f"{start}=2, method='iternorm', iterations=5)"
    assert repr(sn.WhiteningBatchNorm(4, method="zca")) == f"{start}=4, method='zca')"


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 4}, r"expected a group_size that divides num_features=6, got 4\. Take one of 1, 2, 3, 6\."),
        ({"group_size": 0}, r"expected a group_size that divides num_features=6, got 0\."),
        ({"group_size": 2.0}, r"expected a group_size that divides num_features=6, got 2\.0\."),
        ({"method": "pca"}, r"expected method 'iternorm' or 'zca', got 'pca'\."),
        ({"iterations": 0}, r"expected iterations >= 1, got 0\. The usual number is 5"),
        ({"eps": -1.0}, r"expected eps >= 0, got -1"),
    ],
    ids=str,
)
def test_settings_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"WhiteningBatchNorm: {message}") as info:
        sn.WhiteningBatchNorm(6, **settings)
    assert isinstance(info.value, sn.SteadynormError)


def test_too_few_values() -> None:
    """As many as the group has channels: the covariance is singular."""
    layer, x = whitening(), mixed(2, 4)

    def call() -> None:
        message = (
            r"WhiteningBatchNorm\(num_features=4\): expected more than group_size=2 values per channel .* got 2 from"
        )
        with pytest.raises(ValueError, match=message):
            layer(x)
        with pytest.raises(ValueError, match=r"got 1 from an input of shape \(2, 4, 5\), .* smaller group_size, or"):
            layer(mixed(2, 4, 5), mask=torch.tensor([1, 0]))

    expect_unchanged(layer, call)
    layer.single_value = "running"
    agree(layer(x), copy.deepcopy(layer).eval()(x))
    assert layer.num_batches_tracked == 0
    layer(mixed(3, 4))
    assert layer.num_batches_tracked == 1


def test_no_linear_map_without_statistics() -> None:
    with pytest.raises(
        ValueError, match=r"expected running_mean and running_covariance, got None\. Without them every"
    ):
        whitening(track_running_stats=False).linear_map()


def test_inputs_refused() -> None:
    layer = sn.WhiteningBatchNorm(4)
    for x, error, message in (
        (torch.randn(4), ValueError, r"expected an input \(N, C, \*\), got 1-D"),
        (torch.randn(9, 3), RuntimeError, "expected running_mean with one value for each of the 3 channels"),
        (torch.ones(9, 4, dtype=torch.int64), NotImplementedError, "expected a floating-point input"),
        (torch.randn(9, 4).double(), RuntimeError, "expected running_mean of the input's dtype"),
    ):
        with pytest.raises(error, match=rf"WhiteningBatchNorm\(num_features=4\): {message}"):
            layer(x)
    layer.eps = 0.0
    with pytest.raises(ValueError, match=r"expected eps > 0 in training"):
        layer(torch.randn(9, 4))


def test_ranks_do_not_merge_covariances() -> None:
    with pytest.raises(ValueError, match=r"who: expected running_mean and running_var, got 'white' without the latter"):
        _layer("who", "white", sn.WhiteningBatchNorm(4), None)
