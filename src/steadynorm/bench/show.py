"""A benchmark as tables on the terminal and as a picture."""

from __future__ import annotations

from io import BytesIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .cases import FIRST, LAST, TRAINING
from .record import Benchmark
from .summary import (
    HEADER,
    NETWORK_HEADER,
    bars,
    folding,
    groups,
    networks,
    relatives,
    shares_of_memory_speed,
    studies,
    worse_errors,
)


def show(console: Console, benchmark: Benchmark) -> None:
    """Everything that matters, in as many lines as needed."""
    console.print(
        _table("Times as fast as (geometric mean over shapes, and the worst of them)", HEADER, groups(benchmark))
    )
    if benchmark.relatives:
        console.print(_table("Forward and backward, times as long as the plain layer", *relatives(benchmark)))
    if benchmark.networks:
        console.print(_table("Whole steps", NETWORK_HEADER, networks(benchmark)))
    if benchmark.studies:
        console.print(_table("Studies, milliseconds a step or a run", *studies(benchmark)))
    if benchmark.folding:
        console.print(_table("Inference, times as fast as with torch's norms", *folding(benchmark)))
    for line in shares_of_memory_speed(benchmark):
        console.print(line, highlight=False)
    for line in worse_errors(benchmark) or ["no error is above torch's"]:
        console.print(line, highlight=False)


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in header:
        left = name in ("beside BatchNorm2d", "network", "what", "by", "order", "dtype", "epilogue", "mode", "peer")
        table.add_column(name, justify="left" if left else "right", no_wrap=left)
    for row in rows:
        table.add_row(*(cell.removeprefix("channels ").replace(TRAINING, "training") for cell in row))
    return table


def draw(benchmark: Benchmark) -> bytes:
    """A PNG of how many times as fast as torch: BN + ReLU, forward and backward, float32, shape by shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=False)
    for axis, order in zip(axes, (FIRST, LAST), strict=True):
        labels, plain, in_place = bars(benchmark, order)
        places = range(len(labels))
        axis.barh([p + 0.2 for p in places], plain, height=0.38, label="torch", color="#2a6f97")
        axis.barh([p - 0.2 for p in places], in_place, height=0.38, label="torch, ReLU in place", color="#a9d6e5")
        axis.axvline(1, color="#444444", linewidth=1)
        axis.set_yticks(list(places), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(order)
        axis.set_xlabel("times as fast")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle("BN + ReLU, forward and backward, float32", x=0.01, ha="left", fontweight="bold")
    picture = BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    return picture.getvalue()
