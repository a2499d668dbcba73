"""Is batch normalization a poor choice for online and federated training?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...records import Cell, Effect, Figure, Setting
from ..claim import Claim, Judgement, Outcome, Preset
from ..federation import MERGES, federate, skewed
from ..models.norms import normalization, slim_cnn
from ..results import Results
from ..showing import CAPTION, bars, curves, in_words, means
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import RATE, best_rates, rates_in_words
from ..verdict import difference, judged

ONE, FOUR, FEDERATED = "online, one example at a time", "online, four at a time", "federated"
NORMS = {"none": "none", "group": "group", "batch": "batch", "batch, combine": "batch"}
"""Names of the levels, and of the layers. A federation of "batch" takes the plain mean of variances."""


def run(cell: Cell, tools: Tools) -> Outcome:
    data, settings = tools.data(), {**cell.settings, **cell.factors}
    given: dict[str, Any] = settings
    channels, size = data.train.images.shape[1:3]
    model = slim_cnn(channels, size, data.classes, normalization(NORMS[given["norm"]]))
    if given["training"] != FEDERATED:
        batch = 1 if given["training"] == ONE else 4
        source = Images(data, batch, cell.seed)
        recipe = Recipe.of(cell, batch_size=batch, optimizer="sgd")
        steps = recipe.steps or recipe.epochs * source.steps_in_epoch
        recipe = replace(recipe, evaluate_every=max(1, steps // given["evaluations"]))
        return fit(model, recipe, source, tools.keeper)
    parts = skewed(data.train.labels, given["clients"], 2, cell.seed)
    merge = MERGES["combine" if given["norm"] == "batch, combine" else "plain mean"]
    return federate(
        model,
        data,
        parts,
        merge,
        tools.keeper,
        rounds=given["rounds"],
        local_epochs=given["local_epochs"],
        batch_size=32,
        lr=10 * given["lr"],
        seed=cell.seed,
    )


def impossible(factors: Mapping[str, Setting]) -> bool:
    """Nothing is combined where there is one client."""
    return factors["norm"] == "batch, combine" and factors["training"] != FEDERATED


def judge(results: Results) -> Judgement:
    best = {place: at_best(results, place) for place in results.levels("training")}

    def minus(place: str, one: str, other: str, *, decides: bool) -> Effect:
        pair = {"norm": one}, {"norm": other}
        label = f"test accuracy, {place}, {one} − {other}"
        found = best.get(place, Results([]))
        return difference(found, "test accuracy", *pair, label, "points", scale=100, decides=decides)

    deciding = [minus(ONE, "group", "batch", decides=True), minus(FEDERATED, "group", "batch, combine", decides=True)]
    merged = difference(
        at_best(results, FEDERATED, of_combine="batch"),
        "test accuracy",
        {"norm": "batch, combine"},
        {"norm": "batch"},
        "test accuracy, federated, batch, combine − batch, at the best rate of batch",
        "points",
        scale=100,
        decides=False,
    )
    others = [
        minus(FOUR, "group", "batch", decides=False),
        minus(ONE, "none", "batch", decides=False),
        minus(FEDERATED, "none", "batch, combine", decides=False),
    ]
    rates = "; ".join(f"{place}: {rates_in_words(of(results, place), 'norm')}" for place in best)
    return Judgement(
        judged(deciding),
        f"{'; '.join(map(in_words, [*deciding, merged]))}. {rates}.",
        [*deciding, merged, *others],
        [figure(place, found) for place, found in best.items() if found.runs],
        [means(results, ["training", "norm", RATE], {"test accuracy": "test accuracy"})],
    )


def of(results: Results, place: str) -> Results:
    return Results([run for run in results.runs if run.cell.factors["training"] == place])


def at_best(results: Results, place: str, *, of_combine: str = "batch, combine") -> Results:
    """The runs of one kind of training at the best rate of their normalization.

    Args:
        results: all runs.
        place: the kind of training.
        of_combine: whose rate "batch, combine" takes: with that of "batch", the same training is merged in two ways.
    """
    found = of(results, place)
    rates = best_rates(found, "norm")
    rates["batch, combine"] = rates.get(of_combine)
    return Results([run for run in found.runs if rates.get(run.cell.factors["norm"]) == run.cell.factors[RATE]])


def figure(place: str, found: Results) -> Figure:
    x = "round" if place == FEDERATED else "step"
    shown = {
        name: (name.capitalize(), unit)
        for name, unit in (("validation accuracy", "accuracy"), ("validation loss", "nats"))
    }
    panels = curves(found, "norm", shown, x=x)
    accuracy = bars(found, "test accuracy", "norm", "Test accuracy after the last step", "accuracy")
    return Figure(place.capitalize(), f"Each at its own best learning rate. {CAPTION}", [*panels, accuracy])


def grid(trainings: list[str], rates: list[float]) -> dict[str, list[Any]]:
    return {"training": trainings, "norm": list(NORMS), "lr": rates}


SETTINGS = {"clients": 10, "evaluations": 5}
CLAIM = Claim(
    name="small-clients",
    question="Is batch normalization a poor choice for online and for federated training?",
    source="what tutorials say of it; McMahan et al. 2017, arXiv:1602.05629 (federated averaging); Hsieh et al. 2020, "
    "arXiv:1910.00189 (BN fails on clients of other classes, GN does not)",
    factors="training by one example at a time, by four, or by ten clients that have two classes each; none, group or "
    "batch normalization; in the federation a plain mean of the clients' variances, or `combine`, by total variance; "
    "learning rates",
    equal="initial weights (He et al. 2015), data and its order, who has which examples, SGD, epochs; in the "
    "federation rounds, batches of 32, ten times the rate",
    measure="test accuracy of the last step, of each normalization at the best of its rates by validation accuracy",
    rule="supported if the 95% intervals of group minus batch normalization lie above 0, online with one example and "
    "in the federation with `combine`; contradicted if both lie below",
    would_change="networks whose last maps have fewer positions, or dense layers, where a batch of one has no "
    "variance; clients that have all classes; more local steps; running statistics of another momentum",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(
            1 + 1,
            grid([ONE, FEDERATED], [0.01]),
            {**SETTINGS, "clients": 2, "steps": 20, "rounds": 1, "local_epochs": 1},
        ),
        "quick": Preset(
            3, grid([ONE, FEDERATED], [0.01, 0.03]), {**SETTINGS, "epochs": 1, "rounds": 6, "local_epochs": 1}
        ),
        "full": Preset(
            5,
            grid([ONE, FOUR, FEDERATED], [0.001, 0.003, 0.01, 0.03]),
            {**SETTINGS, "epochs": 10, "rounds": 50, "local_epochs": 2, "evaluations": 20},
        ),
    },
    run=run,
    judge=judge,
    skip=impossible,
)
