"""Curves over epochs: the mean over seeds and the range they span."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records import Records
from .summary import finished

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
"""One for each variant, told apart by people of any colour vision (Okabe & Ito 2008)."""


@dataclass(frozen=True)
class Panel:
    """One measure of the four: the field of `Epoch` it comes from, a title and the unit on its axis."""

    field: str
    title: str
    unit: str


PANELS = (
    Panel("train_accuracy", "Training accuracy", "accuracy"),
    Panel("validation_accuracy", "Validation accuracy", "accuracy"),
    Panel("train_loss", "Training loss", "nats"),
    Panel("validation_loss", "Validation loss", "nats"),
)


@dataclass(frozen=True)
class Curve:
    """A variant's curve over epochs 1, 2, ...; nan where no seed has a finite value."""

    variant: str
    colour: str
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def curves(records: Records, panel: Panel) -> list[Curve]:
    """A curve for each variant that has a finished run."""
    found = []
    for variant, colour in zip(records.spec.variants, COLOURS, strict=False):
        runs = finished(records, variant)
        if not runs:
            continue
        values = np.array([[getattr(epoch, panel.field) for epoch in run.epochs] for run in runs], dtype=np.float64)
        values = np.ma.masked_invalid(values)
        lines = (line.filled(np.nan) for line in (values.mean(0), values.min(0), values.max(0)))
        found.append(Curve(variant, colour, *lines))
    return found
