"""The function: what it refuses, as torch's does and with nothing half-changed, and what only it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import steadynorm as sn
from steadynorm.functional import batch_norm

from .support.refusals import refused_by_both


def both(*arguments: Any, message: str, **settings: Any) -> None:
    refused_by_both(lambda: F.batch_norm(*arguments, **settings), lambda: batch_norm(*arguments, **settings), message)


def test_function_without_running_statistics() -> None:
    x, ones = torch.randn(4, 3), torch.ones(3)
    message = r"batch_norm: expected running_mean and running_var for training=False, got None\. Pass both"
    for mean, var in ((None, None), (None, ones), (ones, None)):
        both(x, mean, var, message=message)


def test_function_with_half_the_running_statistics() -> None:
    """Neither moves."""
    x, ones = torch.randn(4, 3), torch.ones(3)
    message = r"batch_norm: expected running_mean and running_var both or neither, got only"
    both(x, ones, None, training=True, message=rf"{message} running_mean")
    both(x, None, ones, training=True, message=rf"{message} running_var")
    assert ones.tolist() == [1, 1, 1]


WRONG = {
    "length": (
        torch.ones(2),
        r"one value for each of the 3 channels of the input of shape \(4, 3\), got {} of shape \(2,\)",
    ),
    "dtype": (torch.ones(3, dtype=torch.float64), r"the input's dtype torch.float32 .*, got torch.float64"),
}


@pytest.mark.parametrize("position", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_function_with_a_tensor_that_does_not_fit(position: str, wrong: Tensor, message: str) -> None:
    """Each of the four is named, and no running statistic moves; torch moves them before it finds a wrong bias."""

    def arguments() -> dict[str, Any]:
        return {name: torch.ones(3) for name in ("running_mean", "running_var", "weight", "bias")} | {position: wrong}

    x, given = torch.randn(4, 3), arguments()
    refused_by_both(
        lambda: F.batch_norm(x, **arguments(), training=True),
        lambda: batch_norm(x, **given, training=True),
        rf"batch_norm: expected {position} (with|of) {message.format(position)}",
    )
    assert all(torch.equal(t, torch.ones_like(t)) for t in given.values())


def test_function_with_a_weight_of_two_dimensions() -> None:
    """torch takes it in silence."""
    x, weight = torch.randn(4, 3), torch.ones(1, 3)
    F.batch_norm(x, None, None, weight, training=True)
    with pytest.raises(RuntimeError, match=r"expected weight with one value .*, got weight of shape \(1, 3\)"):
        batch_norm(x, None, None, weight, training=True)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.ones(3)], ids=["0-D", "1-D"])
def test_function_with_too_few_dimensions(x: Tensor) -> None:
    """torch raises an IndexError from inside."""
    with pytest.raises(IndexError):
        F.batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match=rf"expected an input \(N, C, \*\), got {x.dim()}-D input of shape"):
        batch_norm(x, None, None, training=True)


def test_function_refuses_before_it_changes() -> None:
    """The statistics are as they were after every refusal."""
    mean, var = torch.full((3,), 0.25), torch.full((3,), 4.0)
    for settings in ({"eps": 0.0}, {"momentum": 1.01}, {"activation": "elu"}, {"residual": torch.ones(3)}):
        with pytest.raises(sn.SteadynormError):
            batch_norm(torch.randn(4, 3), mean, var, training=True, **settings)  # type: ignore[arg-type]
    with pytest.raises(sn.SteadynormError):
        batch_norm(torch.randn(1, 3), mean, var, training=True)
    assert mean.tolist() == [0.25] * 3
    assert var.tolist() == [4.0] * 3


def test_speaker() -> None:
    with pytest.raises(sn.SteadynormError, match=r"^encoder\.norm: expected"):
        batch_norm(torch.ones(3), None, None, training=True, name="encoder.norm")


def test_momentum_may_be_a_tensor() -> None:
    x = torch.randn(8, 3)
    results = []
    for momentum in (0.25, torch.tensor(0.25)):
        mean, var = torch.zeros(3), torch.ones(3)
        batch_norm(x, mean, var, training=True, momentum=momentum)
        results.append((mean, var))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
