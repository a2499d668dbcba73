"""Forwards that cannot be traced, or go another way than traced; shapes; random networks."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from torch import Tensor, nn

import steadynorm as sn

from ..support.foldable import randomised
from ..support.networks import Network, networks
from .test_fold_flow import Model, X, check


class Branching(nn.Module):
    """Its forward looks at values; its blocks do not. A norm of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        y = self.first(x)
        y = self.second(y) if y.sum() > 0 else self.second(y * 2)
        return self.norm(y)


def test_a_forward_that_cannot_be_traced() -> None:
    """Its blocks are folded, each for itself; what is between them is kept."""
    torch.manual_seed(0)
    model = randomised(Branching())
    folded = sn.fold(model, X)
    assert {pair.norm for pair in folded.pairs} == {"first.1", "second.1"}
    assert folded.kept[0].reason.startswith("the forward of the model cannot be traced (")
    for x in (X, -X):
        torch.testing.assert_close(folded.model(x), model(x), rtol=1e-4, atol=1e-5)


class Gate(nn.Module):
    """No norm inside, and a forward that branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > 0 else x


def test_what_has_no_norm_may_do_as_it_likes() -> None:
    """It is one opaque call in the flow of the rest; its convolution is not touched, if called elsewhere too."""
    gate = Gate()
    inside = randomised(nn.Sequential(gate, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    assert [pair.norm for pair in sn.fold(inside, X).pairs] == ["2"]
    shared = randomised(nn.Sequential(gate, nn.ReLU(), gate.conv, nn.BatchNorm2d(3)))
    assert "it is called inside '0', which is not traced" in sn.fold(shared, X).kept[0].reason


def test_another_way_than_traced() -> None:
    """isinstance is False of what torch.fx passes in, so the trace goes the wrong way; the run on the example tells."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.n(m.a(x)) if not isinstance(x, Tensor) else m.n(m.b(x)) + m.a(x)

    check(forward, "", n="the forward of the model went another way than torch.fx traced it")

    def between(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.n(y.relu() if isinstance(x, Tensor) else y)

    check(between, "", n="something else reached 'n' on the example than torch.fx traced")

    def in_place(m: Any, x: Tensor) -> Tensor:
        y = m.n(x)
        if isinstance(x, Tensor):
            y.mul_(2)
        return m.a(y)

    check(in_place, "", n="something else reached 'a' on the example than torch.fx traced")


def test_shapes_stay_dynamic() -> None:
    """Also where sizes decide what is computed, by a forward that cannot be traced."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.n(m.a(x)) if x.shape[2] > 4 else m.m(m.b(x))

    model = Model(forward)
    folded = sn.fold(model, X)
    for x in (X, torch.randn(5, 3, 3, 9)):
        torch.testing.assert_close(folded.model(x), model(x))
    simple = Model(lambda m, x: m.n(m.a(x)))
    folded = sn.fold(simple, X)
    for x in (torch.randn(1, 3, 1, 1), torch.randn(5, 3, 3, 9)):
        torch.testing.assert_close(folded.model(x), simple(x), rtol=1e-4, atol=1e-5)


@given(networks())
@settings(deadline=None, max_examples=40)
def test_folded_is_eval_on_random_networks(network: Network) -> None:
    """On inputs of another batch size; the model is left as it was, and its copies' checkpoints are exchanged."""
    model = network.model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = sn.fold(model, network.example)
    x = network.example[:1] * 2
    expected = model(x).detach()
    difference = (folded.model(x).detach() - expected).abs().max()
    assert float(difference) <= 1e-10 * max(float(expected.abs().max()), 1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sn.fold(model, x).model.load_state_dict(folded.model.state_dict(), strict=True)


@given(networks(odd=True))
@settings(deadline=None, max_examples=15)
def test_folded_is_eval_on_networks_that_hide_something(network: Network) -> None:
    """On fresh inputs, twice: what the example left behind would show at the second call."""
    model = network.model.eval()
    folded = sn.fold(model, network.example).model
    for factor in (-2, 3):
        x = torch.randn_like(network.example) * factor
        expected = model(x).detach()
        difference = (folded(x).detach() - expected).abs().max()
        assert float(difference) <= 1e-10 * max(float(expected.abs().max()), 1e-3)
