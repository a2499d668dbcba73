"""The curves as a picture."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..records import Records
from .curves import PANELS, Panel, curves


def draw(records: Records) -> bytes:
    """The four panels, as a PNG."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        _panel(axis, records, panel)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    figure.suptitle(records.spec.data_title, x=0.01, ha="left", fontweight="bold")
    picture = BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    return picture.getvalue()


def _panel(axis, records: Records, panel: Panel) -> None:
    for curve in curves(records, panel):
        epochs = np.arange(1, len(curve.mean) + 1)
        axis.fill_between(epochs, curve.low, curve.high, color=curve.colour, alpha=0.18, linewidth=0)
        axis.plot(epochs, curve.mean, color=curve.colour, label=curve.variant, linewidth=1.8, marker="o", markersize=3)
    axis.set_title(panel.title, loc="left", fontsize=10)
    axis.set_ylabel(panel.unit)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
