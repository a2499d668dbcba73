"""A benchmark as tables on the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from . import cold, exactness, fresh, goals, small, summary
from .cases import FIRST, LAST, TRAINING
from .record import Benchmark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED = 10
"""Cases that are named on the terminal; the rest are counted."""
_WORDS = {
    *("beside BatchNorm2d", "network", "what", "by", "order", "dtype", "epilogue", "mode", "peer", "part", "shape"),
    *("fresh process", "tensor", "goal"),
}
"""Columns that hold no numbers."""
_LOOKS = ((-0.2, "torch", "#2a6f97"), (0.2, "torch, ReLU in place", "#a9d6e5"))
"""In the picture: beside a shape's place, whom, and its color."""
Named = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def show(console: Console, benchmark: Benchmark) -> None:
    """Everything that matters, in as many lines as needed."""
    for title, header, rows in _tables(benchmark):
        if rows:
            console.print(_table(title, header, rows))
    for where, share in summary.shares_of_memory_speed(benchmark):
        console.print(f"{where}: {share:.2f} of the memory's speed", highlight=False)
    for line in summary.worse_errors(benchmark) or ["no error is above torch's"]:
        console.print(line, highlight=False)
    slower, of = summary.slower(benchmark), len(summary.comparisons(benchmark))
    console.print(f"{len(slower)} of {of} comparisons are below {summary.AS_FAST}", highlight=False)
    for comparison in slower[:LISTED]:
        console.print(f"  {comparison}", highlight=False)
    unsteady = summary.unsteady(benchmark)
    if unsteady:
        console.print(f"{len(unsteady)} timings were disturbed, as these:", highlight=False)
    for line in unsteady[:LISTED]:
        console.print(f"  {line}", highlight=False)


def _tables(benchmark: Benchmark) -> Iterator[Named]:
    """Title, header and rows of each table; without rows where nothing was measured."""
    yield "In a network: caches cold, summed over ResNet-50", cold.SUMS_HEADER, cold.sums_table(benchmark.cold)
    yield "In a network, layer by layer", cold.LAYERS_HEADER, cold.layers_table(benchmark.cold)
    yield "Small tensors, a call", small.HEADER, small.table(benchmark.small)
    title = "One layer, caches warm: times as fast as (geometric mean over shapes, and the worst of them)"
    yield title, summary.HEADER, summary.groups(benchmark)
    yield "Fresh processes", fresh.HEADER, fresh.table(benchmark.fresh)
    yield "Whole steps", summary.NETWORK_HEADER, summary.networks(benchmark)
    yield "Largest errors, in training", exactness.HEADER, exactness.table(benchmark.exactness)
    yield "Forward and backward, times as long as the plain layer", *summary.relatives(benchmark)
    yield "Studies, milliseconds a step or a run", *summary.studies(benchmark)
    yield "Inference, times as fast as with torch's norms", *summary.folding(benchmark)
    yield "Goals", goals.HEADER, goals.table(benchmark)


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in header:
        left = name in _WORDS
        table.add_column(name, justify="left" if left else "right", no_wrap=left and name != "goal")
    for row in rows:
        table.add_row(*(cell.removeprefix("channels ").replace(TRAINING, "training") for cell in row))
    return table


def draw(benchmark: Benchmark) -> bytes:
    """A PNG of how many times as fast as torch: BN + ReLU, forward and backward, float32, shape by shape.

    Strokes are quartiles. What something else disturbed is pale and has a dagger: nobody should take it for a finding.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=False)
    steady = [_panel(axis, benchmark, order) for axis, order in zip(axes, (FIRST, LAST), strict=True)]
    handles = [Patch(color=color, label=label) for _, label, color in _LOOKS]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle("BN + ReLU, forward and backward, float32", x=0.01, ha="left", fontweight="bold")
    note = "Bars: medians; strokes: quartiles."
    if not all(steady):
        note += " † disturbed by something else on the machine: quartiles far apart, in two measurements"
    figure.supxlabel(note, fontsize=8, x=0.01, ha="left")
    picture = BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    return picture.getvalue()


def _panel(axis: Axes, benchmark: Benchmark, order: str) -> bool:
    """One order's bars; returns whether all of them are steady."""
    labels, *groups = summary.bars(benchmark, order)
    steady = True
    for bars, (beside, _, color) in zip(groups, _LOOKS, strict=True):
        heights = [place + beside for place in range(len(bars))]
        drawn = axis.barh(heights, [bar.ratio for bar in bars], height=0.38, color=color)
        for bar, height, patch in zip(bars, heights, drawn, strict=True):
            axis.plot([bar.low, bar.high], [height, height], color="#444444", linewidth=0.8)
            if not bar.steady:
                steady = False
                patch.set_alpha(0.3)
                axis.text(bar.high, height, " †", va="center", fontsize=8)
    axis.axvline(1, color="#444444", linewidth=1)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(order)
    axis.set_xlabel("times as fast")
    return steady
