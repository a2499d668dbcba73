"""What fold refuses, saying what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import steadynorm as sn

from .test_fold import small

X = torch.randn(2, 3, 8, 8)


def refusals() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    locked = small()
    locked.lock = (one for one in ())  # type: ignore[assignment]
    return {
        "train": (lambda: sn.fold(small().train(), X), ValueError, "got the model in train mode, .* Call model.eval"),
        "norm in train": (
            lambda: sn.fold(partly(), X),
            ValueError,
            "in eval mode, got '1' in train mode",
        ),
        "no example": (
            lambda: sn.fold(small()),
            ValueError,
            r"expected example_inputs, .* got nothing. Give data as the model will see them",
        ),
        "empty example": (lambda: sn.fold(small(), ()), ValueError, r"got tuple \(\). Give data as"),
        "no norm": (
            lambda: sn.fold(nn.Linear(2, 2), X),
            ValueError,
            "got a Linear without any. There is nothing",
        ),
        "no module": (lambda: sn.fold(torch.relu, X), ValueError, "expected a torch.nn.Module, got builtin_function"),  # type: ignore[arg-type]
        "wrapped": (
            lambda: sn.fold(nn.DataParallel(small()), X),
            ValueError,
            r"got DataParallel, .*\.module of a parallel",
        ),
        "wrong example": (
            lambda: sn.fold(small(), (X[:, :2], 3)),
            ValueError,
            r"example_inputs that the model takes, got a tensor \(2, 2, 8, 8\), int, and it raised TypeError",
        ),
        "wrong channels": (lambda: sn.fold(small(), X[:, :2]), ValueError, "it raised RuntimeError: .* expected input"),
        "no copy": (
            lambda: sn.fold(locked, X),
            ValueError,
            r"model that copy.deepcopy can copy, got Sequential",
        ),
        "meta": (
            lambda: sn.fold(small().to("meta"), X),
            ValueError,
            r"got Sequential on the meta device. Call model.to_e",
        ),
        "compiled": (lambda: sn.fold(compiled(), X), ValueError, "got OptimizedModule, which wraps or compiles one"),
    }


def compiled() -> Any:
    return torch.compile(small(), backend="eager")


def partly() -> nn.Module:
    model = small()
    model[1].train()
    return model


@pytest.mark.parametrize("name", refusals())
def test_refusals(name: str) -> None:
    call, kind, message = refusals()[name]
    with pytest.raises(kind, match=message) as info:
        call()
    assert isinstance(info.value, sn.SteadynormError)
