"""to="none": the norm goes, the layer before it is affine again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.surgery.replace import keep_in_step_


def test_the_bias_moves() -> None:
    """The very parameter, so that an optimizer goes on with it."""
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    conv, beta = model[0], model[1].bias
    with torch.no_grad():
        beta.uniform_()
    changes = sn.convert_(model, to="none")
    assert type(model[1]) is nn.Identity
    assert conv.bias is beta
    x = torch.randn(2, 3, 5, 5)
    expected = nn.functional.conv2d(x, conv.weight, beta).relu()
    torch.testing.assert_close(model(x), expected)
    assert str(changes[0]) == (
        "1: torch.nn.BatchNorm2d → torch.nn.Identity (the function is another; the layer before it has the bias)"
    )
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.ConvTranspose1d])
def test_without_a_bias_zeros(kind: Any) -> None:
    layer = kind(3, 4, bias=False) if kind is nn.Linear else kind(3, 4, 1, bias=False)
    model = nn.Sequential(layer, nn.BatchNorm1d(4, affine=False)).double()
    sn.convert_(model, to="none")
    assert isinstance(layer.bias, nn.Parameter)
    assert layer.bias.tolist() == [0] * 4
    assert layer.bias.dtype == torch.float64


class Twice(nn.Module):
    """A convolution whose output two take, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.forked, self.reused = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.one, self.other, self.own, self.first = (nn.BatchNorm1d(4) for _ in range(4))
        self.biased = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forked(self.first(x))
        x = x + self.one(x)
        x = self.other(self.reused(self.reused(x)))
        return self.own(self.biased(x))


def test_what_is_not_given_a_bias() -> None:
    model = Twice()
    reasons = {change.name: change.reason.partition("; ")[2] for change in sn.convert_(model, to="none")}
    assert reasons == {
        "first": "no linear layer before it to have its bias",
        "one": "the layer before it is used otherwise too, and has no bias now",
        "other": "the layer before it is used otherwise too, and has no bias now",
        "own": "the layer before it has a bias of its own",
    }
    assert model.forked.bias is None and model.reused.bias is None


def test_the_activation_inside_stays() -> None:
    layer = sn.BatchNorm1d(3, activation="leaky_relu", negative_slope=0.3)
    sn.convert_(layer, to="none")
    x = torch.randn(4, 3)
    assert torch.equal(layer(x), nn.functional.leaky_relu(x, 0.3))


@pytest.mark.parametrize("affine", [True, False])
def test_an_optimizer_is_kept_in_step(affine: bool) -> None:
    """It loses what the model has no more, with its state, and gets what is new in the group of the layer's weight."""
    model: Any = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=affine), nn.Linear(4, 2))
    groups = [{"params": list(model[0].parameters())}, {"params": [*model[1].parameters(), *model[2].parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    sn.convert_(model, to="none", optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == 4
    assert {id(p) for p in optimizer.state} <= {id(p) for p in held}
    assert any(p is model[0].bias for p in optimizer.param_groups[1 if affine else 0]["params"])
    before = model[0].bias.clone()
    optimizer.zero_grad()
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].bias, before)


def test_an_optimizer_that_knows_names() -> None:
    """Parameters and names stay beside each other; an exception puts both back."""
    for verb in ("none", "insert"):
        model = nn.Sequential(nn.Linear(3, 4, bias=verb == "insert"), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
        if verb == "insert":
            model[1] = nn.ReLU()
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
        (group,) = optimizer.param_groups
        before = dict(zip(group["param_names"], group["params"], strict=True))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
            patch.setattr(f"steadynorm.surgery.{'strip' if verb == 'none' else 'insert'}.keep_in_step_", failing)
            change(verb, model, optimizer)
        assert dict(zip(group["param_names"], group["params"], strict=True)) == before
        change(verb, model, optimizer)
        assert len(group["param_names"]) == len(group["params"])
        named = dict(zip(group["param_names"], map(id, group["params"]), strict=True))
        assert named == {name: id(parameter) for name, parameter in model.named_parameters()}


def change(verb: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if verb == "none":
        sn.convert_(model, to="none", optimizer=optimizer)
    else:
        sn.insert_(model, torch.randn(2, 3), optimizer=optimizer)


def failing(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
    keep_in_step_(optimizer, *rest)
    raise RuntimeError("in the middle")


class Auxiliary(nn.Module):
    """The linear layer serves without the norm too, where an argument is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.norm(self.linear(x)) if skip is None else self.linear(skip)


def test_a_layer_that_serves_otherwise_with_other_arguments() -> None:
    model = Auxiliary()
    (change,) = sn.convert_(model, to="none")
    assert "is used otherwise too" in change.reason
    assert model.linear.bias is None


def test_another_models_optimizer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False))
    other = torch.optim.SGD(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="convert_: expected the optimizer of this model"):
        sn.convert_(model, to="none", optimizer=other)
    assert type(model[1]) is nn.BatchNorm1d
    assert model[0].bias is None


def test_an_error_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias that was given is taken back."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))

    def failing(*_: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("steadynorm.surgery.strip.become_", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        sn.convert_(model, to="none")
    assert model[0].bias is None
    assert list(model.state_dict())[:2] == ["0.weight", "1.weight"]
