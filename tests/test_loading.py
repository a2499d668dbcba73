"""What a command line names is loaded, and nothing is unpickled but weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from steadynorm import SteadynormError
from steadynorm.loading import build_model, load_object, load_weights_

SOURCE = """
import torch

class Models:
    small = staticmethod(lambda: torch.nn.Linear(2, 3))

def number():
    return 3

model = torch.nn.Linear(2, 3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    (tmp_path / "their_models.py").write_text(SOURCE)
    (tmp_path / "broken_models.py").write_text("import no_such_package_of_theirs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path])
    return "their_models"


def test_objects_by_name(module: str) -> None:
    assert load_object("w", f"{module}:number")() == 3
    assert load_object("w", "math:pi") == pytest.approx(3.14159265)
    assert isinstance(build_model("w", f"{module}:Models.small"), nn.Linear)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("number", "w: expected package.module:name, got 'number'"),
        (":number", "expected package.module:name"),
        ("nowhere_at_all:x", r"got 'nowhere_at_all' \(No module named"),
        ("their_models:absent", "their_models has no 'absent'"),
        ("their_models:model", "expected a function or class that makes the model, got Linear"),
        ("their_models:number", "expected 'their_models:number' to make a torch.nn.Module, got int"),
    ],
)
def test_names_that_are_no_models(module: str, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        build_model("w", path)
    assert isinstance(info.value, SteadynormError)


def test_what_a_module_lacks_itself_is_not_hidden(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_theirs"):
        load_object("w", "broken_models:x")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_weights(tmp_path: Path, wrap) -> None:
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(4, 3))
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights_("w", target, tmp_path / "w.pt")
    assert torch.equal(target.running_mean, source.running_mean)  # type: ignore[arg-type]


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    model, file = nn.Linear(2, 3), tmp_path / "w.pt"
    before = model.weight.clone()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as info:
            load_weights_("w", model, file)
        assert isinstance(info.value, SteadynormError)
        assert torch.equal(model.weight, before)

    refused(r"got a file that cannot be read as such \(.*No such file")
    file.write_text("no weights")
    refused("cannot be read as such")
    file.write_bytes(pickle.dumps(Path("x"), protocol=2))
    refused("cannot be read as such")
    torch.save(nn.Linear(2, 3), file)
    refused("cannot be read as such")
    torch.save([torch.ones(2)], file)
    refused("expected a state dict .* got a list")
    torch.save({"weight": torch.ones(2), "epoch": 3}, file)
    refused("a mapping whose 'epoch' is of type int")
    torch.save(nn.Linear(2, 4).state_dict(), file)
    refused("are of another model: .*size mismatch for weight")


class Counting(nn.Linear):
    """Keeps what is no tensor."""

    steps = 0

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state + 0


def test_extra_state_is_loaded(tmp_path: Path) -> None:
    source, target = nn.Sequential(Counting(2, 3)), nn.Sequential(Counting(2, 3))
    source[0].set_extra_state(5)  # type: ignore[operator]
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights_("w", target, tmp_path / "w.pt")
    assert target[0].steps == 5


def test_nothing_half_is_loaded(tmp_path: Path) -> None:
    """The first layer fits, and torch has it by the time that the second does not."""
    model, file = nn.Sequential(Counting(2, 3), nn.BatchNorm1d(3)), tmp_path / "w.pt"
    before = {name: torch.as_tensor(value).clone() for name, value in model.state_dict().items()}

    def refused(state: object, message: str) -> None:
        torch.save(state, file)
        with pytest.raises(ValueError, match=message) as info:
            load_weights_("w", model, file)
        assert isinstance(info.value, SteadynormError)
        for name, value in model.state_dict().items():
            assert torch.equal(torch.as_tensor(value), before[name]), name

    other = nn.Sequential(Counting(2, 3), nn.BatchNorm1d(4))
    other[0].set_extra_state(7)  # type: ignore[operator]
    refused(other.state_dict(), "are of another model: .*size mismatch for 1.weight")
    fitting = nn.Sequential(Counting(2, 3), nn.BatchNorm1d(3)).state_dict()
    refused({**fitting, "0._extra_state": "x"}, "are of another model: ")
    del fitting["1.num_batches_tracked"]
    refused(fitting, "Missing key.*1.num_batches_tracked")
    refused({"model": fitting}, "Missing key.*1.num_batches_tracked")
    refused({1: torch.ones(2)}, "got a mapping with the key 1. Save it")
