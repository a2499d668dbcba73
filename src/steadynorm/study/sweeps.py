"""Sweeps: at which levels of a setting, from small to large, a network still learns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..records import DIVERGED, Run, Setting
from .results import Results
from .tuning import validated

SHARE = 0.9
"""Of the best accuracy that any network of the sweep ends at: from there on a network counts as trained."""

Sweep = Mapping[int, Mapping[float, Run]]
"""A run at each level, by seed."""


def accuracy(run: Run) -> float:
    """On the test images after the last step; where training diverged, a network takes all for one class."""
    return run.values["test accuracy"] or 0.0


def by_level(results: Results, over: str, **factors: Setting) -> Sweep:
    """The run at each level of `over`, by seed: where several differ in a further factor, the one of best validation.

    Seeds of which a run is missing are left out, as a gap would look like a failure to train.
    """
    found: dict[int, dict[float, list[Run]]] = {}
    for run in results.complete().select(**factors):
        found.setdefault(run.cell.seed, {}).setdefault(float(run.cell.factors[over] or 0), []).append(run)
    return {
        seed: {level: max(runs, key=validated) for level, runs in sorted(levels.items())}
        for seed, levels in found.items()
    }


def trained(sweeps: Mapping[str, Sweep]) -> dict[str, dict[int, list[float]]]:
    """By network and seed: the levels, rising, at which test accuracy is `SHARE` of that seed's best in any network.

    Those at which training diverged are not among them.
    """
    best: dict[int, float] = {}
    for sweep in sweeps.values():
        for seed, levels in sweep.items():
            best[seed] = max(best.get(seed, 0.0), *map(accuracy, levels.values()))
    return {
        name: {
            seed: [
                level for level, run in levels.items() if run.status != DIVERGED and accuracy(run) >= SHARE * best[seed]
            ]
            for seed, levels in sweep.items()
        }
        for name, sweep in sweeps.items()
    }


def mean_accuracy(sweep: Sweep) -> dict[int, float]:
    """Over all levels, by seed."""
    return {seed: float(np.mean([accuracy(run) for run in levels.values()])) for seed, levels in sweep.items()}
