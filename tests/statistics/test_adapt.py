"""adapt_: the target domain's statistics, alone or mixed with the source's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import agree, agree_in_state, normal


def trained(library: Any) -> Any:
    """A small network with statistics of a source domain."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), library.BatchNorm1d(4), nn.ReLU(), library.BatchNorm1d(4)).double()
    sn.recalibrate_(model, normal(60, 3).split(20))
    return model


def mixed(source: Any, target: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    mean = weight * target.mean(0) + (1 - weight) * source.running_mean
    return mean, weight * target.var(0) + (1 - weight) * source.running_var


TARGET = normal(40, 3, seed=1) * 0.3 + 7


@pytest.mark.parametrize("library", [nn, sn], ids=["torch", "steadynorm"])
@pytest.mark.parametrize("weight", [1.0, 0.75, 0.01])
def test_by_the_formula(library: Any, weight: float) -> None:
    """Layer after layer: the second layer's target is what eval mode with the first one's mix shows it."""
    source = trained(library)
    model = copy.deepcopy(source)
    found = sn.adapt_(model, TARGET.split([30, 1, 9]), weight=weight, sequential=True)
    with torch.no_grad():
        hidden = source[0](TARGET)
        mean, var = mixed(source[1], hidden, weight)
        agree((model[1].running_mean, model[1].running_var), (mean, var))
        hidden = torch.relu((hidden - mean) / (var + 1e-5).sqrt())
        agree((model[3].running_mean, model[3].running_var), mixed(source[3], hidden, weight), rtol=1e-10)
    agree(found["1"].shift, (mean - source[1].running_mean) / (source[1].running_var + 1e-5).sqrt())
    assert found["1"].count.tolist() == [40] * 4
    assert model[1].num_batches_tracked == 3
    agree(dict(model[0].state_dict()), dict(source[0].state_dict()))


def test_the_whole_weight_is_recalibration() -> None:
    """At once too; and what the source's statistics were, nan even, does not matter."""
    model, expected = trained(sn), trained(sn)
    model[1].running_var.fill_(torch.nan)
    sn.adapt_(model, TARGET.split(8))
    sn.recalibrate_(expected, TARGET.split(8))
    agree_in_state(model, expected, rtol=0, atol=0)


def test_the_first_layer_s_mix_does_not_depend_on_the_batches() -> None:
    results = []
    for size in (40, 3):
        model = trained(sn)
        sn.adapt_(model, TARGET.split(size), weight=0.5)
        results.append(model[1].running_var)
    agree(*results)


def test_outputs_in_the_target_domain_are_normalized() -> None:
    model = trained(sn).eval()
    before = model(TARGET)
    sn.adapt_(model, TARGET.split(10), sequential=True)
    after = model(TARGET)
    assert before.mean(0).abs().max() > 1
    agree(after.mean(0), torch.zeros(4).double(), atol=1e-10)


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, float("nan")])
def test_weights_out_of_range(weight: float) -> None:
    model = trained(sn)

    def call() -> None:
        with pytest.raises(
            ValueError, match=r"adapt_: expected a weight in \(0, 1\], got .* 1 forgets the source"
        ) as info:
            sn.adapt_(model, [TARGET], weight=weight)
        assert isinstance(info.value, sn.SteadynormError)

    expect_unchanged(model, call)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_mix_with_what_is_not_finite(sequential: bool) -> None:
    """Would be nan for good; without the old statistics it is none."""
    model = trained(sn)
    model[3].running_var[1] = torch.nan

    def call() -> None:
        with pytest.raises(
            ValueError, match=r"adapt_: the old statistics of '3' are not finite, .* Use weight=1, which forgets"
        ) as info:
            sn.adapt_(model, [TARGET], weight=0.5, sequential=sequential)
        assert isinstance(info.value, sn.SteadynormError)

    expect_unchanged(model, call)
    sn.adapt_(model, [TARGET], sequential=sequential)
    assert model[3].running_var.isfinite().all()
