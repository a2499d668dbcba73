"""A study on the user's own networks: variants trained side by side, judged by the same rules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import steadynorm as sn
from steadynorm.errors import InvalidArgumentError, RecordError
from steadynorm.records import CONTRADICTED, STUDY, SUPPORTED, UNDECIDED, Cell, Run, Study, place, read
from steadynorm.study.compare import claims_of, judge, normalized
from steadynorm.study.results import Results
from steadynorm.study.runner import Engine


def data(examples: int = 64) -> list[DataLoader[Any]]:
    """Two classes, told apart by the sign of a sum."""
    x = torch.randn(examples * 2, 6, generator=torch.Generator().manual_seed(0))
    labels = (x.sum(1) > 0).long()
    first, second = TensorDataset(x[:examples], labels[:examples]), TensorDataset(x[examples:], labels[examples:])
    return [DataLoader(first, 16, shuffle=True), DataLoader(second, 64)]


def build(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


class Constant(nn.Module):
    """Learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 2)


def test_a_better_network_is_found_so(tmp_path: Path) -> None:
    given = {"batch": build, "constant": Constant}
    where = {"epochs": 8, "lr": 0.02, "seeds": 3, "out": tmp_path}
    evidence = sn.compare(given, data, engine=Engine(jobs=2), **where)  # type: ignore[arg-type]
    section = evidence.sections[0]
    assert (section.verdict, section.question) == (SUPPORTED, "Is batch better than constant?")
    assert section.effects[0].estimate is not None
    assert section.effects[0].estimate > 20
    assert section.runs == {"finished": 6, "diverged": 0, "crashed": 0, "missing": 0}
    other = sn.compare(dict(reversed(given.items())), data, **{**where, "out": tmp_path / "other"})  # type: ignore[arg-type]
    assert other.sections[0].verdict == CONTRADICTED
    assert sn.compare(given, data, **where) == evidence  # type: ignore[arg-type]


def test_norms_of_a_factory_start_from_the_same_weights() -> None:
    variants = normalized(partial(build, 8), ["batch", "layer", "none"])
    networks = {}
    for name, factory in variants.items():
        torch.manual_seed(0)
        networks[name] = factory()
    kinds = {name: type(network[1]).__name__ for name, network in networks.items()}  # type: ignore[index]
    assert kinds["batch"] == "BatchNorm1d"
    assert len(set(kinds.values())) == 3
    first = networks["batch"][0].weight  # type: ignore[index]
    assert all(torch.equal(network[0].weight, first) for network in networks.values())  # type: ignore[index]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in networks["none"].modules())


def runs(**accuracies: list[float]) -> Results:
    return Results(
        [
            Run(Cell("compare", {"network": name}, seed, {}), "finished", "", {"test accuracy": value}, {})
            for name, values in accuracies.items()
            for seed, value in enumerate(values)
        ]
    )


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        (runs(a=[0.9, 0.91, 0.9], b=[0.5, 0.52, 0.5], c=[0.6, 0.61, 0.6]), SUPPORTED),
        (runs(a=[0.9, 0.91, 0.9], b=[0.5, 0.52, 0.5], c=[0.95, 0.97, 0.95]), CONTRADICTED),
        (runs(a=[0.9, 0.91, 0.9], b=[0.5, 0.52, 0.5], c=[0.8, 0.97, 0.9]), UNDECIDED),
        (runs(a=[0.9], b=[0.5], c=[0.6]), UNDECIDED),
    ],
)
def test_the_first_must_beat_every_other(results: Results, verdict: str) -> None:
    assert judge(["a", "b", "c"], results).verdict == verdict


def test_other_networks_or_data_are_another_study(tmp_path: Path) -> None:
    given: dict[str, Any] = {"epochs": 1, "seeds": 1, "out": tmp_path, "engine": Engine(jobs=1)}
    first = sn.compare({"a": build, "b": Constant}, data, **given)
    assert sn.compare({"a": build, "b": Constant}, data, **given) == first
    with pytest.raises(RecordError, match=r"other settings \(networks: '\w+', now '\w+'\)"):
        sn.compare({"a": partial(build, 16), "b": Constant}, data, **given)
    with pytest.raises(RecordError, match=r"other settings \(data compare\)"):
        sn.compare({"a": build, "b": Constant}, partial(data, 48), **given)


def test_without_a_test_loader_it_says_what_was_judged(tmp_path: Path) -> None:
    given: dict[str, Any] = {"epochs": 1, "seeds": 1, "engine": Engine(jobs=1)}
    section = sn.compare({"a": build, "b": Constant}, data, out=tmp_path / "two", **given).sections[0]
    assert section.effects[0].label == "validation accuracy, last step, a − b"
    assert "no loader for testing" in section.measure
    three = sn.compare({"a": build, "b": Constant}, lambda: [*data(), data()[1]], out=tmp_path / "three", **given)
    assert three.sections[0].effects[0].label == "test accuracy, a − b"
    kept = claims_of(read(tmp_path / "two" / STUDY, Study))["compare"]
    assert kept.measure == section.measure


def test_a_norm_there_is_not_is_refused_before_training() -> None:
    assert list(normalized(build, ["batch", " none"])) == ["batch", "none"]
    with pytest.raises(InvalidArgumentError, match=r"expected norms of batch, .*, none, got 'gruop'"):
        normalized(build, ["batch", "gruop"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": {"a": build}}, "expected at least two factories by name, got .* Pass functions that build"),
        ({"variants": {"a": build, "b": build()}}, "expected at least two factories"),
        ({"epochs": 0}, "expected epochs >= 1, seeds >= 1, lr > 0 and weight_decay >= 0, got epochs=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"optimizer": "lion"}, "expected an optimizer of adam, adamw, sgd, momentum, got 'lion'"),
    ],
)
def test_refused_with_nothing_written(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    given = {"variants": {"a": build, "b": Constant}, "data": data, "out": tmp_path / "o", **arguments}
    with pytest.raises(ValueError, match=message) as info:
        sn.compare(**given)
    assert isinstance(info.value, sn.SteadynormError)
    assert not (tmp_path / "o").exists()


def test_a_variant_that_raises_is_named(tmp_path: Path) -> None:
    def broken() -> nn.Module:
        raise TypeError("no such layer")

    evidence = sn.compare({"a": build, "b": broken}, data, epochs=1, seeds=1, out=tmp_path, engine=Engine(jobs=1))
    assert evidence.sections[0].runs["crashed"] == 1
    cells = read(tmp_path / STUDY, Study).cells
    assert [read(place(tmp_path, cell), Run).message.partition(" (")[0] for cell in cells] == [
        "",
        "TypeError: no such layer",
    ]
