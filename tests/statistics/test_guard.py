"""Batches that are not finite: a warning by default, kept out by guard_statistics."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import normal

SIZES = pytest.mark.parametrize("shape", [(4, 3, 5, 6), (32, 3, 40, 41)], ids=["small", "large"])
VALUES = pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=["inf", "nan"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def poisoned(shape: tuple[int, ...], value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    x = normal(*shape, dtype=dtype)
    x[1, 1, 2, 3] = value
    return x


def model_of(dtype: torch.dtype = torch.float32) -> Any:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return nn.Sequential(nn.Identity(), nn.Sequential(sn.BatchNorm2d(3, dtype=wide)))


@SIZES
@VALUES
@DTYPES
def test_first_poisoned_batch_warns_once(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> None:
    """As torch's, the statistics take it; unlike torch's, the user hears of it."""
    model = model_of(dtype)
    model(normal(*shape, dtype=dtype))
    with pytest.warns(sn.NonFiniteStatisticsWarning, match=r"BatchNorm2d\(num_features=3\): .* not finite.*guard"):
        model(poisoned(shape, value, dtype))
    assert not model[1][0].running_mean.isfinite().all()
    model(poisoned(shape, value, dtype))  # a second warning would be an error


def test_warning_can_be_switched_off() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.NonFiniteStatisticsWarning)
        model_of()(poisoned((4, 3, 5, 6), torch.inf))


@SIZES
@VALUES
@DTYPES
@pytest.mark.parametrize("track", [True, False])
def test_guarded_statistics_stay(shape: tuple[int, ...], value: float, dtype: torch.dtype, track: bool) -> None:
    model = model_of(dtype)
    model[1][0].momentum = 0.1 if track else None
    model(normal(*shape, dtype=dtype))

    def call() -> None:
        with pytest.warns(sn.NonFiniteStatisticsWarning, match="guard_statistics: a batch at '1.0'"):
            y = model(poisoned(shape, value, dtype))
        assert not y.isfinite().all()
        model(poisoned(shape, value, dtype))

    with sn.guard_statistics(model) as guard:
        expect_unchanged(model, call)
        assert guard.kept_out == {"1.0": 2}
        before = model[1][0].running_mean.clone()
        model(normal(*shape, seed=3, dtype=dtype))
        assert not torch.equal(model[1][0].running_mean, before)
    assert guard.kept_out == {"1.0": 2}
    assert model[1][0]._guard is None


def test_step_that_a_gradient_scaler_skips() -> None:
    """An overflow poisons nothing, the scaler skips the step, and training goes on."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 3), sn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with sn.guard_statistics(model) as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.NonFiniteStatisticsWarning)
        for number in range(6):
            weight = model[0].weight.detach().clone()
            x = normal(8, 4, seed=number, dtype=torch.float32) * (1e38 if number == 2 else 1)
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(model[0].weight, weight) == (number == 2)
    assert guard.kept_out == {"1": 1}
    assert model[1].running_var.isfinite().all()
    assert model[1].num_batches_tracked == 5


def test_torch_s_own_layer_is_poisoned_for_good() -> None:
    """What this is about (pytorch#90342)."""
    theirs, ours = nn.BatchNorm2d(3), sn.BatchNorm2d(3)
    with sn.guard_statistics(ours), warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.NonFiniteStatisticsWarning)
        for layer in (theirs, ours):
            layer(poisoned((4, 3, 5, 6), torch.inf))
            for seed in range(20):
                layer(normal(4, 3, 5, 6, seed=seed, dtype=torch.float32))
    assert theirs.running_mean is not None and theirs.running_var is not None
    assert theirs.running_mean[1] == torch.inf
    assert theirs.running_var[1].isnan()
    assert ours.running_mean is not None
    torch.testing.assert_close(ours.running_mean, torch.full((3,), 2.0), rtol=0, atol=1.0)


def test_variance_beyond_float32() -> None:
    """torch's operator, which small tensors go to, would hand over a variance of inf as if it were a number."""
    layer = sn.BatchNorm1d(4)
    x = normal(64, 4, dtype=torch.float32) * 1e20
    with sn.guard_statistics(layer) as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.NonFiniteStatisticsWarning)
        layer(x)
    assert layer.running_var is not None
    assert torch.equal(layer.running_var, torch.ones(4))
    assert guard.kept_out == {"": 1}


def test_warning_as_an_error_changes_nothing_by_half() -> None:
    model = model_of()
    with pytest.raises(sn.NonFiniteStatisticsWarning):
        model(poisoned((4, 3, 5, 6), torch.inf))  # warnings are errors here
    assert model[1][0].num_batches_tracked == 1


def test_exception_and_second_guard() -> None:
    model = model_of()
    with sn.guard_statistics(model), pytest.raises(ValueError, match=r"guard_statistics: '1\.0' is guarded already"):
        sn.guard_statistics(model).__enter__()
    assert model[1][0]._guard is None
    with pytest.raises(
        ValueError, match=r"guard_statistics: expected layers of steadynorm, got torch\S+BatchNorm1d at ''"
    ):
        sn.guard_statistics(nn.BatchNorm1d(3)).__enter__()
