"""The benchmark on a tensor of a few kilobytes, and its arithmetic on numbers written by hand."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console

from steadynorm.bench import networks, summary
from steadynorm.bench.cases import ADD_RELU, FIRST, FORWARD, INFERENCE, LAST, PLAIN, RELU, TRAINING, Case, grid
from steadynorm.bench.record import Benchmark
from steadynorm.bench.show import draw, show

from .rows import row, timing


@pytest.mark.parametrize(
    ("order", "epilogue", "mode", "passes"),
    [
        (FIRST, RELU, FORWARD, 2),
        (FIRST, PLAIN, TRAINING, 5),
        (LAST, RELU, FORWARD, 3),
        (LAST, RELU, TRAINING, 8),
        (LAST, RELU, INFERENCE, 2),
        (FIRST, ADD_RELU, TRAINING, 8),
    ],
)
def test_passes(order: str, epilogue: str, mode: str, passes: int) -> None:
    assert Case((2, 3, 4, 4), order, "float32", epilogue, mode).passes == passes


def test_grid_has_every_case_once() -> None:
    cases = list(grid(quick=False))
    assert len(set(cases)) == len(cases)
    assert set(grid(quick=True)) < set(cases)


def test_summary() -> None:
    benchmark = Benchmark({}, cases=[row(4.0), row(16.0, (4, 3, 4, 4))])
    (torch_row, in_place) = summary.groups(benchmark)
    assert torch_row == (FIRST, "float32", RELU, TRAINING, "torch", "4.00", "2.00", "2")
    assert in_place[4] == "torch in place"
    assert summary.shares_of_memory_speed(benchmark)[0] == ("(2, 3, 4, 4), channels first, forward+backward", 0.75)
    assert summary.worse_errors(benchmark)[0].endswith("dx 2.0e-07, torch's 1.0e-07")


def test_what_is_slower_is_counted_and_listed() -> None:
    """The worst first; beside every peer, but not beside the copy."""
    benchmark = Benchmark({}, cases=[row(4.0), row(1.8), row(1.0, (4, 3, 4, 4)), row(1.9)])
    assert len(summary.comparisons(benchmark)) == 8
    slower = summary.slower(benchmark)
    assert [(each.ratio, each.shape[0], each.peer) for each in slower] == [
        *((0.5, 4, "torch"), (0.5, 4, "torch in place"), (0.9, 2, "torch"), (0.9, 2, "torch in place"))
    ]
    assert str(slower[0]) == "(4, 3, 4, 4), channels first, float32, relu, forward+backward: 0.50 of torch"
    assert len(summary.slower(benchmark, below=0.6)) == 2


def test_what_was_disturbed_is_named_and_marked() -> None:
    """Quartiles far apart, of a provider, not of the copy."""
    disturbed = row(4.0)
    disturbed["timings"] |= {"torch in place": timing(9.0, 4.0, 12.0), "copy": timing(9.0, 4.0, 12.0)}
    benchmark = Benchmark({}, cases=[disturbed])
    where = "(2, 3, 4, 4), channels first, float32, relu, forward+backward"
    assert summary.unsteady(benchmark) == [f"{where}, torch in place: 9 ms (4 to 12)"]
    labels, (plain,), (in_place,) = summary.bars(benchmark, FIRST)
    assert labels == ["2×3×4×4"]
    assert plain == summary.Bar(ratio=2.0, low=2.0, high=2.0, steady=True)
    assert in_place == summary.Bar(ratio=4.5, low=2.0, high=6.0, steady=False)
    assert draw(benchmark) != draw(Benchmark({}, cases=[row(4.0)]))
    console = Console(record=True, width=160)
    show(console, benchmark)
    assert "1 timings were disturbed" in console.export_text()


def test_frameworks_are_compared_channels_last() -> None:
    peer = {"framework": "jax", "shape": [2, 3, 4, 4], "mode": TRAINING, "median": 6.0}
    benchmark = Benchmark({}, cases=[row(4.0, order=LAST)], peers=[peer])
    assert (LAST, "float32", RELU, TRAINING, "jax", "3.00", "3.00", "1") in summary.groups(benchmark)


@pytest.mark.parametrize("mode", [TRAINING, INFERENCE])
def test_networks_differ_only_in_the_norm(mode: str) -> None:
    """All three variants run; ours and torch's compute the same."""
    steps = networks.steps(18, 2, 32, FIRST, mode)
    results = {name: step() for name, step in steps.items()}
    if mode == INFERENCE:
        difference = (results["steadynorm"] - results["torch"]).abs().max()  # type: ignore[operator]
        assert difference < 1e-4 * results["torch"].abs().max()  # type: ignore[attr-defined]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_child_s_own() -> None:
    """A process with 1.2 GB starts one that needs less."""
    held = bytearray(1_200_000_000)
    held[::4096] = b"1" * len(held[::4096])
    peak = networks.peak_megabytes("steadynorm", 18, 2, 32)
    assert peak is not None
    assert 300 < peak < 1200
