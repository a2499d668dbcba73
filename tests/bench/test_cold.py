"""Cold caches: the layers of a ResNet-50, what must move, the sums, and a measurement of tiny layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steadynorm.bench import cold, networks
from steadynorm.bench.cases import ADD_RELU, FIRST, FORWARD, LAST, PLAIN, RELU
from steadynorm.bench.cold import BACKWARD
from steadynorm.bench.record import Benchmark, read

from .rows import cold_rows

BOTH = f"{FORWARD}+{BACKWARD}"


def test_the_layers_are_those_of_a_resnet50() -> None:
    """Counted in the network that the benchmark times whole."""
    from torch import nn

    network = networks.ResNet(50, "torch")
    norms = [module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    counted = [channels for channels, _, _, count in cold.LAYERS for _ in range(count)]
    assert sorted(norms) == sorted(counted) and len(counted) == 53
    assert sum(count for _, _, epilogue, count in cold.LAYERS if epilogue == ADD_RELU) == len(network.blocks)


@pytest.mark.parametrize(
    ("order", "epilogue", "forward", "backward"),
    [(FIRST, RELU, 2, 3), (LAST, PLAIN, 3, 5), (FIRST, ADD_RELU, 3, 5), (LAST, ADD_RELU, 4, 7)],
)
def test_passes(order: str, epilogue: str, forward: int, backward: int) -> None:
    assert [cold.passes(order, epilogue, mode) for mode in (FORWARD, BACKWARD)] == [forward, backward]


@pytest.mark.parametrize(("order", "milliseconds"), [(FIRST, 58.9), (LAST, 86.1)])
def test_the_network_s_floor(order: str, milliseconds: float) -> None:
    """At 40 GB/s, as it was worked out by hand before."""
    moved = 0.0
    for key in cold.keys(quick=False):
        n, c, h, w = key["shape"]
        passes = sum(cold.passes(key["order"], key["epilogue"], mode) for mode in (FORWARD, BACKWARD))
        moved += key["count"] * n * c * h * w * 4e-6 * passes * (key["order"] == order)
    assert moved / cold.ASSUMED == pytest.approx(milliseconds, abs=0.05)


def test_sums_count_layers_as_often_as_the_network_has_them() -> None:
    rows = cold_rows(1.0, 3.0, count=2) + cold_rows(2.0, 4.0, shape=[16, 128, 40, 40]) + cold_rows(1.0, 1.0, LAST)
    sums = cold.sums(rows)
    assert sums[FIRST][FORWARD] == cold.Sum(layers=3, ours=4.0, torch=10.0, floor=12.0, assumed=6.0)
    assert sums[FIRST][BOTH] == cold.Sum(layers=3, ours=12.0, torch=30.0, floor=24.0, assumed=12.0)
    assert sums[LAST][BOTH].layers == 1
    line = cold.sums_table(rows)[2]
    assert line == (FIRST, BOTH, "30.0", "12.0", "2.50", "24.0", "2.00", "12.0")
    assert cold.sums([]) == {} and cold.layers_table([]) == []


def test_the_floor_is_at_the_fastest_copy_s_speed() -> None:
    rows = cold_rows(1.0, 3.0) + cold_rows(1.0, 3.0, LAST, copy_gb_s=40.0)
    assert cold.sums(rows)[FIRST][FORWARD].floor == 2.0


def test_layer_by_layer() -> None:
    """The share of the floor only for tensors that are large enough."""
    rows = cold_rows(10.0, 15.0) + cold_rows(10.0, 5.0, LAST, megabytes=1.0)
    first, last = cold.layers_table(rows)
    assert first[5:] == ("15.00 + 30.00", "10.00 + 20.00", "1.50", "1.50", "1.50", "0.27")
    assert last[7:] == ("0.50", "0.50", "0.50", "")
    assert len(first) == len(cold.LAYERS_HEADER)


def test_a_layer_with_one_row_is_left_out() -> None:
    assert cold.layers(cold_rows(1.0, 2.0)[:1]) == []


@pytest.mark.parametrize("order", [FIRST, LAST])
@pytest.mark.parametrize("epilogue", [PLAIN, RELU, ADD_RELU])
def test_measured(order: str, epilogue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny layer, in few rounds: two rows that a record takes."""
    for name, value in (("FLUSHED", 1024), ("WARM", 1), ("ROUNDS", 2)):
        monkeypatch.setattr(cold, name, value)
    key: dict[str, Any] = {"shape": [2, 3, 4, 4], "order": order, "epilogue": epilogue, "count": 2}
    rows = cold.measure(**key)
    assert [row["mode"] for row in rows] == [FORWARD, BACKWARD]
    assert all(key.items() <= row.items() and row["timings"]["torch"]["rounds"] == 2 for row in rows)
    (tmp_path / "b.json").write_bytes(Benchmark({}, cold=rows).encode())
    found = read(tmp_path / "b.json")
    assert found is not None and len(cold.layers_table(found.cold)) == 1


def test_quick_is_less() -> None:
    whole = cold.keys(quick=False)
    assert all(key in whole for key in cold.keys(quick=True)) and len(cold.keys(quick=True)) < len(whole)
