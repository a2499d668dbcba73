"""Does batch normalization make training insensitive to the scale of the initial weights?"""

from __future__ import annotations

import itertools
import math

from ...records import Cell, Effect, Figure, Line, Panel, Table
from ..claim import WITH, WITHOUT, Claim, Judgement, Outcome, Preset
from ..dense import initialize, network
from ..results import Results
from ..showing import in_words, sweep
from ..sources import Images, standardized
from ..sweeps import SHARE, Sweep, accuracy, by_level, mean_accuracy, trained
from ..tools import Tools
from ..training import Recipe, fit
from ..verdict import contrast, judged, no_finer, paired_difference


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    model = network(cell, data, batch_norm=cell.factors["network"] == WITH)
    initialize(model, math.sqrt(2) * float(cell.factors["scale"] or 0))
    recipe = Recipe.of(cell)
    return fit(model, recipe, Images(data, recipe.batch_size, cell.seed, prepare=standardized(data)), tools.keeper)


def judge(results: Results) -> Judgement:
    sweeps = {name: by_level(results, "scale", network=name) for name in (WITHOUT, WITH)}
    scales = sorted(results.levels("scale"))
    widths = {
        name: {seed: width(levels, scales) for seed, levels in found.items()} for name, found in trained(sweeps).items()
    }
    wider = paired_difference(
        widths[WITH], widths[WITHOUT], "width of the range of scales that train, with BN − without", "decades"
    )
    better = paired_difference(
        mean_accuracy(sweeps[WITH]),
        mean_accuracy(sweeps[WITHOUT]),
        "test accuracy averaged over all scales, with BN − without",
        "points",
        scale=100,
    )
    wider = no_finer(wider, _step(scales))
    absolute = [contrast(widths[name], f"width {name}", "decades", decides=False) for name in (WITHOUT, WITH)]
    words = f"{in_words(wider)}{_widths(absolute)}; {in_words(better)}."
    figures = [figure(results, sweeps, scales)]
    return Judgement(judged([wider, better]), words, [wider, better, *absolute], figures, [table(results, sweeps)])


def width(levels: list[float], scales: list[float]) -> float:
    """Decades of the longest row of neighbouring scales that train; each reaches half-way to its neighbours.

    The outermost ones, whose neighbours are not known, reach as far out as in; one scale alone has no width.
    """
    if len(scales) < 2:
        return 0.0
    logs = [math.log10(scale) for scale in scales]
    padded = [2 * logs[0] - logs[1], *logs, 2 * logs[-1] - logs[-2]]
    reach = [(after - before) / 2 for before, after in zip(padded[:-2], padded[2:], strict=True)]
    longest = row = 0.0
    for scale, decades in zip(scales, reach, strict=True):
        row = row + decades if scale in levels else 0.0
        longest = max(longest, row)
    return longest


def _step(scales: list[float]) -> float:
    """Decades from one scale to the next, at most."""
    return max((math.log10(after / before) for before, after in itertools.pairwise(scales)), default=0.0)


def _widths(absolute: list[Effect]) -> str:
    without, with_ = (effect.estimate for effect in absolute)
    return "" if without is None or with_ is None else f" ({with_:.1f} with, {without:.1f} without)"


def figure(results: Results, sweeps: dict[str, Sweep], scales: list[float]) -> Figure:
    caption = (
        "After the last step, by the scale of the initial weights as a multiple of He's; at each scale with the "
        f"learning rate that validates best. A network counts as trained from {SHARE:.0%} of the best accuracy of "
        "the seed. Lines are means over seeds, bands the range; a run that diverged guesses one class. Right: each "
        "learning rate by itself."
    )
    axis = "initial weights ÷ He's"
    lines = [_line(name, found, scales) for name, found in sweeps.items()]
    panels = [Panel("Test accuracy by scale, best rate", axis, "accuracy", lines, "x")]
    for lr in results.levels("lr"):
        alone = Results(results.select(lr=lr))
        panels.append(sweep(alone, accuracy, "scale", "network", f"… at rate {lr:g}", "accuracy", x=axis, log="x"))
    return Figure("Accuracy over initial scales", caption, panels)


def _line(name: str, found: Sweep, scales: list[float]) -> Line:
    columns = [[accuracy(levels[scale]) for levels in found.values()] for scale in scales] if found else []
    means = [sum(column) / len(column) for column in columns]
    return Line(name, list(scales[: len(columns)]), [*means], [*map(min, columns)], [*map(max, columns)])


def table(results: Results, sweeps: dict[str, Sweep]) -> Table:
    reached = trained(sweeps)
    rows: list[list[float | str | None]] = []
    for scale in sorted(results.levels("scale")):
        row: list[float | str | None] = [f"{scale:g}"]
        for name in (WITHOUT, WITH):
            runs = [levels[scale] for levels in sweeps[name].values()]
            row.append(sum(map(accuracy, runs)) / len(runs) if runs else None)
            row.append(", ".join(f"{run.cell.factors['lr']:g}" for run in runs))
            row.append(sum(scale in levels for levels in reached[name].values()))
        rows.append(row)
    heads = [f"{head} {name}" for name in (WITHOUT, WITH) for head in ("test accuracy", "best rates", "seeds trained")]
    return Table("Each scale at its best rate", ["scale", *heads], rows)


def _grid(scales: list[float], rates: list[float]) -> dict[str, list]:
    return {"network": [WITHOUT, WITH], "scale": scales, "lr": rates}


SCALES = [1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0]
SETTINGS = {"architecture": "dense", "width": 100, "depth": 5, "batch_size": 60, "optimizer": "sgd"}

CLAIM = Claim(
    name="initialization",
    question="Does batch normalization make training insensitive to the scale of the initial weights?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, abstract and sec. 3.3",
    factors=(
        "batch normalization before each ReLU, or none; the scale of all initial weights, the output layer's too; the "
        "learning rate, the best of which counts at each scale, for each network and seed"
    ),
    equal="initial weights up to the scale, zero biases, data and its order, steps, batch size, plain SGD",
    measure=(
        "the width of the range of scales from which a network is trained, that is, ends with at least nine tenths "
        "of the best test accuracy of any run of the seed; test accuracy averaged over the scales"
    ),
    rule="supported if the 95% intervals of both over paired seeds lie above no effect, that of the width taken to be "
    "no narrower than a step of the grid to either side; contradicted if both lie below",
    would_change=(
        "rates between those tried, of which the plain network has few at some scales; Adam, whose steps do not shrink "
        "with the gradient; more steps; an output layer left at its usual scale; a deeper network, where the plain one "
        "depends on the scale more"
    ),
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(2, _grid([0.1, 1.0], [0.1]), {**SETTINGS, "steps": 5}),
        "quick": Preset(3, _grid(SCALES, [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3]), {**SETTINGS, "steps": 150}),
        "full": Preset(
            5,
            _grid([10 ** (n / 2) for n in range(-8, 9)], [10.0**n for n in range(-8, 1)]),
            {**SETTINGS, "epochs": 3, "data": "mnist"},
        ),
    },
    run=run,
    judge=judge,
)
