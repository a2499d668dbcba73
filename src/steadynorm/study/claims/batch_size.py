"""Is batch normalization poor at small batches, where its relatives are not?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import steadynorm as sn

from ...records import Cell, Effect, Figure, Panel, Setting
from ..claim import Claim, Judgement, Outcome, Preset
from ..models.norms import GHOST, normalization, slim_cnn
from ..results import Results
from ..showing import in_words, means
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, evaluate, fit
from ..tuning import RULE, at_best_rates
from ..verdict import contrast, judged, paired_difference

SMALL, ORDINARY = (1, 2, 4), 32
"""Sizes that the source's claim calls small, and the one that all are compared with."""
POPULATION = "test accuracy, population statistics"
RATE = "rate"
AT_ONCE = 500
"""Training images of which population statistics are taken at a time."""


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    channels, size = data.train.images.shape[1:3]
    norm, batch_size = str(cell.factors["norm"]), int(cell.factors["batch_size"])  # type: ignore[arg-type]
    # Equal examples, and the linear rule: a step on twice the examples goes twice as far.
    recipe = Recipe.of(cell, lr=float(cell.factors[RATE]) * batch_size / ORDINARY)  # type: ignore[arg-type]
    source = Images(data, batch_size, cell.seed)
    steps = recipe.steps or recipe.epochs * source.steps_in_epoch
    model = slim_cnn(channels, size, data.classes, normalization(norm, steps))
    outcome = fit(model, recipe, source, tools.keeper)
    if norm != "batch":
        return outcome
    training = Images(data, AT_ONCE, cell.seed)
    sn.recalibrate_(model, [training.batch(step)[0] for step in range(training.steps_in_epoch)])
    return replace(outcome, values={**outcome.values, POPULATION: evaluate(model, source.part("test"))[1]})


def same_as_batch(factors: Mapping[str, Setting]) -> bool:
    """Ghost batches of the whole batch."""
    return factors["norm"] == "ghost" and int(factors["batch_size"]) <= GHOST  # type: ignore[arg-type]


def judge(results: Results) -> Judgement:
    best = tuned(results)
    poor = contrast(
        small_gap(best),
        "test accuracy at batches of 1, 2 and 4 (mean), group − batch normalization",
        "points",
        scale=100,
    )
    loses = contrast(
        lost_more(best),
        "test accuracy lost from a batch of 32 to those of 1, 2 and 4 (mean), batch − group normalization",
        "points",
        scale=100,
    )
    each = [_gap(best, size) for size in sorted(results.levels("batch_size"))]
    return Judgement(
        judged([poor, loses]),
        f"{in_words(poor)}; {in_words(loses)}.",
        [poor, loses, *each],
        [_figure(best)],
        [
            means(
                best,
                ["norm", "batch_size"],
                {
                    "test accuracy": "test accuracy",
                    POPULATION: POPULATION,
                    f"chosen rate at {ORDINARY}": lambda run: float(run.cell.factors[RATE]),  # type: ignore[arg-type]
                },
            )
        ],
    )


def tuned(results: Results) -> Results:
    """Every normalization at its best rate for each batch size."""
    found = []
    for size in results.levels("batch_size"):
        found += at_best_rates(Results(results.select(batch_size=size)), "norm", RATE).runs
    return Results(found)


def at_small(results: Results, norm: str) -> dict[int, float]:
    """By seed, the mean test accuracy over the small sizes; seeds that have them all."""
    each = [results.by_seed("test accuracy", norm=norm, batch_size=size) for size in SMALL]
    seeds = set.intersection(*(set(found) for found in each))
    return {seed: sum(found[seed] for found in each) / len(each) for seed in sorted(seeds)}


def small_gap(results: Results) -> dict[int, float]:
    """By seed, group minus batch normalization at small sizes."""
    batch, group = at_small(results, "batch"), at_small(results, "group")
    return {seed: group[seed] - batch[seed] for seed in batch if seed in group}


def lost_more(results: Results) -> dict[int, float]:
    """By seed, how much more batch than group normalization loses from the ordinary size to the small ones."""
    gap = small_gap(results)
    batch, group = (results.by_seed("test accuracy", norm=norm, batch_size=ORDINARY) for norm in ("batch", "group"))
    return {seed: gap[seed] + batch[seed] - group[seed] for seed in gap if seed in batch and seed in group}


def _gap(results: Results, size: int) -> Effect:
    group, batch = (results.by_seed("test accuracy", norm=norm, batch_size=size) for norm in ("group", "batch"))
    label = f"test accuracy at a batch of {size}, group − batch normalization"
    return paired_difference(group, batch, label, "points", scale=100, decides=False)


def _figure(best: Results) -> Figure:
    lines = [best.sweep("test accuracy", "batch_size", str(norm), norm=norm) for norm in best.levels("norm")]
    population = best.sweep(POPULATION, "batch_size", "batch, population statistics", norm="batch")
    return Figure(
        "Batch sizes",
        "Test accuracy after the last step, for equal numbers of examples seen. Lines are means over seeds, bands the "
        "range from the lowest to the highest. Population statistics are those of the training set with the last "
        "step's weights, instead of the running ones. Ghost batches are of 16, "
        "and for batches up to that batch normalization itself.",
        [Panel("Test accuracy", "batch size", "accuracy", [*lines, population], "x")],
    )


NORMS = ["batch", "ghost", "renorm", "group", "layer", "instance"]
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
SETTINGS = {"optimizer": "momentum"}

CLAIM = Claim(
    name="batch-size",
    question="Is batch normalization poor below 8 examples a batch, where group normalization is not?",
    source="Wu & He 2018, arXiv:1803.08494, sec. 4.1: ResNet-50 at batch 32/16/8/4/2, errors 23.6/23.7/24.8/27.3/34.7% "
    "(batch), 24.1/24.2/24.0/24.2/24.1% (group)",
    factors="batch size 1 to 128; normalization before each convolution's ReLU: batch, ghost batches of 16 (where "
    "the batch is larger; else they are the same), renormalization, group (8 groups), layer, instance; the learning "
    "rate",
    equal="initial weights (He et al. 2015 for ReLU), order of the data, examples seen, SGD with momentum 0.9, and the "
    "learning rates tried: those for a batch of 32, times the batch size / 32; momentum 0.1 of running "
    "statistics; renormalization with its source's schedule of rmax and dmax, shortened to end at half of the "
    "steps",
    measure="test accuracy after the last step, as the mean over batches of 1, 2 and 4, and at 32",
    rule=f"at each batch size, {RULE}, supported if at batches of 1, 2 and 4 group normalization is above batch "
    "normalization, and batch normalization loses more than it from 32 to these, by 95% intervals over paired seeds; "
    "contradicted if both are below 0",
    would_change="equal steps instead of equal examples, running statistics averaged over more batches or population "
    "statistics (shown), larger or smaller maps than 26x26, 11x11 and 3x3 (at "
    "28x28), a deeper network",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(
            1,
            {"norm": ["batch", "group"], "batch_size": [1, 2, 4, 32], "rate": [0.03]},
            {**SETTINGS, "steps": 8, "evaluate_every": 8},
        ),
        "quick": Preset(3, {"norm": NORMS, "batch_size": SIZES, "rate": [0.03]}, {**SETTINGS, "epochs": 1}),
        "full": Preset(
            5,
            {"norm": NORMS, "batch_size": SIZES, "rate": [0.01, 0.03, 0.1]},
            {**SETTINGS, "epochs": 2, "data": "mnist"},
        ),
    },
    run=run,
    judge=judge,
    skip=same_as_batch,
)
