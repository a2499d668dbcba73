"""hold_statistics: layers normalize by the batch and nothing moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal

LIBRARIES = pytest.mark.parametrize("library", [torch.nn, sn], ids=["torch", "steadynorm"])


def build(library: object) -> Any:
    norm = library.BatchNorm2d  # type: ignore[attr-defined]
    return nn.Sequential(norm(3), nn.ReLU(), nn.Sequential(norm(3, momentum=None))).double()


@LIBRARIES
def test_output_is_the_batch_s_and_nothing_moves(library: object) -> None:
    model, x = build(library), normal(4, 3, 5, 6)
    model(normal(4, 3, 5, 6, seed=1))
    expected = build(library)(x)

    def call() -> None:
        with sn.hold_statistics(model):
            agree(model(x), expected)

    expect_unchanged(model, call)
    before = model[0].running_mean.clone()
    model(x)
    assert not torch.equal(model[0].running_mean, before)


@LIBRARIES
def test_nothing_is_poisoned(library: object) -> None:
    model, x = build(library), normal(4, 3, 5, 6)
    x[0, 0, 0, 0] = torch.inf

    def call() -> None:
        with sn.hold_statistics(model):
            model(x)

    expect_unchanged(model, call)


@LIBRARIES
def test_layers_in_eval_mode_are_as_always(library: object) -> None:
    model, x = build(library).eval(), normal(4, 3, 5, 6)
    expected = model(x)
    with sn.hold_statistics(model):
        agree(model(x), expected)


def test_exception_leaves_no_trace() -> None:
    model = build(sn)
    with pytest.raises(KeyError), sn.hold_statistics(model), sn.hold_statistics(model):
        raise KeyError
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_contexts_that_overlap() -> None:
    layer = sn.BatchNorm2d(3)
    first, second = sn.hold_statistics(layer), sn.hold_statistics(layer)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert not layer.track_running_stats
    second.__exit__(None, None, None)
    assert layer.track_running_stats


def test_sharpness_aware_step() -> None:
    """SAM's second forward, at perturbed weights, is held: statistics are those of a plain step."""
    plain, sharp = build(sn), build(sn)
    x = normal(4, 3, 5, 6)
    plain(x)
    sharp(x).square().sum().backward()
    with torch.no_grad():
        for parameter in sharp.parameters():
            parameter += 0.1
    with sn.hold_statistics(sharp):
        sharp(x).square().sum().backward()
    agree(dict(sharp.named_buffers()), dict(plain.named_buffers()))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"hold_statistics: expected a model with batch normalization layers, got"):
        sn.hold_statistics(nn.Linear(2, 2)).__enter__()
    with pytest.raises(ValueError, match=r"hold_statistics: expected a torch.nn.Module, got int"):
        sn.hold_statistics(3).__enter__()  # type: ignore[arg-type]
