"""What is watched inside a network: the right inputs, their percentiles, how far they moved, the model left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from steadynorm import BatchNorm1d
from steadynorm.study.distributions import Watched, drift, percentiles


def t(*values: float) -> Tensor:
    return torch.tensor(values)


def test_percentiles() -> None:
    assert percentiles(torch.arange(101).float()) == pytest.approx([15, 50, 85])
    assert percentiles(t(4.0, 0.0, 2.0)) == pytest.approx([0.6, 2.0, 3.4])


def test_drift_by_hand() -> None:
    assert drift(t(0), t(1), t(3), t(1)) == pytest.approx(3)
    assert drift(t(0), t(1), t(0), t(3)) == pytest.approx(math.sqrt(4 / 5))
    assert drift(t(0, 0), t(1, 1), t(3, 0), t(1, 1)) == pytest.approx(1.5)
    assert drift(t(2), t(5), t(2), t(5)) == 0


def test_drift_does_not_depend_on_scale_or_direction() -> None:
    small, large = drift(t(1), t(2), t(4), t(3)), drift(t(100), t(200), t(400), t(300))
    assert small == pytest.approx(large)
    assert drift(t(4), t(3), t(1), t(2)) == pytest.approx(small)


def test_constant_units_that_stay_have_not_moved() -> None:
    assert drift(t(1), t(0), t(1), t(0)) == 0


def network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3), nn.Sigmoid(), nn.Linear(3, 2))
    model(torch.randn(50, 4))  # running statistics that are not those of the start
    return model, torch.randn(20, 4)


def test_inputs_are_those_of_eval_mode_and_nothing_moves() -> None:
    model, x = network()
    watched = Watched(model, {"after": model[2], "before": model[1]}, 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    watched.train()
    found = watched.inputs_of_layers(x)
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm1d)
    assert layer.running_mean is not None and layer.running_var is not None
    raw = x.double() @ state["0.weight"].double().T + state["0.bias"].double()
    normalized = (raw - layer.running_mean.double()) / (layer.running_var.double() + 1e-5).sqrt()
    assert torch.allclose(found["before"].double(), raw, atol=1e-5)
    assert torch.allclose(found["after"].double(), normalized, atol=1e-5)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in watched.modules())
    assert not any(module._forward_pre_hooks for module in watched.modules())


def test_hooks_and_mode_are_as_before_when_the_network_raises() -> None:
    model, _ = network()
    watched = Watched(model, {"after": model[2]}, 3)
    with pytest.raises(RuntimeError):
        watched.inputs_of_layers(torch.randn(2, 5))
    assert all(module.training for module in watched.modules())
    assert not any(module._forward_pre_hooks for module in watched.modules())


def test_a_look_gives_percentiles_then_drift_too() -> None:
    model, x = network()
    watched = Watched(model, {"after": model[2], "before": model[1]}, 3)
    first = watched.look(x, ["after"])
    assert list(first) == [f"after, {p}th percentile" for p in (15, 50, 85)]
    expected = percentiles(watched.inputs_of_layers(x)["after"][:, 0])
    assert list(first.values()) == expected
    with torch.no_grad():
        model[0].bias.add_(1)  # type: ignore[operator]
    second = watched.look(x, ["after"])
    spread = watched.inputs_of_layers(x)["before"].double().std(0, correction=0)
    assert second["before, drift"] == pytest.approx(float((1 / spread).mean()), rel=1e-4)
    assert second["after, drift"] == pytest.approx(second["before, drift"], rel=1e-4)
    assert watched.look(x, [])["before, drift"] == 0


def test_another_process_goes_on_with_what_was_seen() -> None:
    model, x = network()
    watched = Watched(model, {"after": model[2]}, 3)
    watched.look(x, [])
    other_model, _ = network()
    other = Watched(other_model, {"after": other_model[2]}, 3)
    other.load_state_dict(watched.state_dict())
    with torch.no_grad():
        for each in (model, other_model):
            each[0].bias.add_(1)  # type: ignore[operator]
    assert other.look(x, []) == watched.look(x, [])
