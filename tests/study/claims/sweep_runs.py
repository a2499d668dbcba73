"""Runs made by hand, for what claims make of them."""

from __future__ import annotations

from steadynorm.records import CRASHED, DIVERGED, FINISHED, Run, Series
from steadynorm.records import Cell as _Cell
from steadynorm.records.runs import Setting


def trained(seed: int, accuracy: float, *, loss: float = 1.0, curve: tuple[float, ...] = (), **factors: Setting) -> Run:
    """A run that ends at this accuracy on validation and test images; `curve` is that on validation images before."""
    ys = [*curve, accuracy]
    xs = [float(step) for step in range(1, len(ys) + 1)]
    series = {"validation accuracy": Series(xs, [*ys]), "validation loss": Series(xs, [loss] * len(ys))}
    return Run(_Cell("made", factors, seed, {}), FINISHED, "", {"test accuracy": accuracy, "test loss": loss}, series)


def diverged(seed: int, **factors: Setting) -> Run:
    """A run that ended with a loss that is not finite."""
    series = {"validation accuracy": Series([1.0], [0.1]), "validation loss": Series([1.0], [None])}
    return Run(_Cell("made", factors, seed, {}), DIVERGED, "", {"test accuracy": 0.1, "test loss": None}, series)


def crashed(seed: int, **factors: Setting) -> Run:
    return Run(_Cell("made", factors, seed, {}), CRASHED, "no memory")
