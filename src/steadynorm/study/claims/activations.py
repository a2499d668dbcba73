"""Does batch normalization keep the inputs of sigmoids stable while a network trains?"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ...records import Cell, Effect, Figure, Line, Panel, Run
from ..claim import WITH, Claim, Judgement, Outcome, Preset
from ..distributions import PERCENTILES, Watched
from ..models.systems import sigmoid_net
from ..results import Measure, Results
from ..showing import CAPTION, curves, in_words, means, sweep
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import BARE, NETWORKS, NORMALIZED, RATE, RULE, at_best_rates, rates_in_words
from ..verdict import VALIDATION, difference, judged, ratio, speedup

LAYERS = ("layer 1", "layer 2", "layer 3")
WATCHED = 1000
"""Validation images that distributions are measured on, or all there are."""


def binary(images: Tensor) -> Tensor:
    """uint8 (N, 1, H, W) as 0 and 1: ink above half."""
    return (images > 127).float()


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    recipe = Recipe.of(cell)
    network = sigmoid_net(
        data.train.images.shape[2],
        data.classes,
        float(cell.settings["std"]),  # type: ignore[arg-type]
        batch_norm=cell.factors["network"] == WITH,
    )
    model, inputs = watched(network), binary(data.validation.images[:WATCHED])
    source = Images(data, recipe.batch_size, cell.seed, prepare=binary)
    # The first look, before any training, is left out: running statistics know nothing yet.
    return fit(model, recipe, source, tools.keeper, lambda _, step: model.look(inputs, LAYERS) if step else {})


def watched(network: nn.Sequential) -> Watched:
    """The inputs of its sigmoids, and what its linear layers give, before a normalization if there is one."""
    sigmoids = [i for i, module in enumerate(network) if isinstance(module, nn.Sigmoid)]
    normalized = len(network) == 2 + 3 * len(sigmoids)
    layers = {name: network[i] for name, i in zip(LAYERS, sigmoids, strict=True)}
    if normalized:
        layers |= {f"{name} before BN": network[i - 1] for name, i in zip(LAYERS, sigmoids, strict=True)}
    return Watched(network, layers, network[1].out_features)  # type: ignore[arg-type]


def drift(layer: str, *, late: bool = False) -> Measure:
    """Mean drift of a layer's sigmoid inputs from one evaluation to the next, in standard deviations.

    Args:
        layer: its name.
        late: only in the second half of the steps, after the fast changes of the start.
    """

    def measure(run: Run) -> float:
        series = run.series.get(f"{layer}, drift")
        if series is None or not series.x:
            return np.nan
        begin = max(series.x) / 2 if late else 0
        known = [y for x, y in zip(series.x, series.y, strict=True) if y is not None and x > begin]
        return float(np.mean(known)) if known else np.nan

    return measure


def judge(results: Results) -> Judgement:
    best = at_best_rates(results, "network")

    def less(layer: str, rate: float | None = None, *, decides: bool = False, late: bool = False) -> Effect:
        one, other = ({**which, **({RATE: rate} if rate is not None else {})} for which in (BARE, NORMALIZED))
        where = ("best rates" if rate is None else f"rate {rate:g}") + ", second half of the steps" * late
        label = f"drift of the inputs of {layer}'s sigmoids at {where}, without ÷ with BN"
        return ratio(best if rate is None else results, drift(layer, late=late), one, other, label, decides=decides)

    stable = [less(layer, decides=True) for layer in LAYERS]
    late = [less(layer, decides=True, late=True) for layer in LAYERS]
    matched = [less(layer, rate) for rate in results.levels(RATE) for layer in LAYERS]
    lower = sum(effect.estimate is not None and effect.estimate > 1 for effect in matched)
    label = "steps to the best validation accuracy without BN, without ÷ with"
    faster = speedup(best, NORMALIZED, BARE, f"{label}, at best rates", decides=False)
    accuracy = difference(
        best,
        *("test accuracy", NORMALIZED, BARE, "test accuracy at best rates, with BN − without", "points"),
        scale=100,
        decides=False,
    )
    said = "; ".join(map(in_words, [*stable, late[-1], accuracy, faster]))
    return Judgement(
        judged([*stable, *late]),
        f"{said}; {rates_in_words(results, 'network')}; at equal rates the mean drift is lower with BN in {lower} of "
        f"{len(matched)} pairs of layer and rate.",
        [*stable, *late, *matched, accuracy, faster],
        figures(results, best),
        [means(results, ["network", RATE], measures())],
    )


def measures() -> dict[str, Measure]:
    drifts = {f"drift of the sigmoids' inputs, {layer}": drift(layer) for layer in LAYERS}
    raw = {f"drift before BN, {layer}": drift(f"{layer} before BN") for layer in LAYERS}
    return {"test accuracy": "test accuracy", **drifts, **raw}


def figures(results: Results, best: Results) -> list[Figure]:
    chosen = {f"Learning rate {rate:g}": _at(results, rate) for rate in results.levels(RATE)} | {"Best rates": best}
    accuracy = [
        panel for title, runs in chosen.items() for panel in curves(runs, "network", {VALIDATION: (title, "accuracy")})
    ]
    drifts = {f"{layer}, drift": (layer.capitalize(), "standard deviations") for layer in LAYERS}
    seed = results.seeds[0] if results.seeds else 0
    return [
        Figure(
            "Accuracy",
            f"Validation accuracy; the last panel has each network at its best rate. {CAPTION}",
            accuracy,
        ),
        Figure(
            "Inputs of one sigmoid in each layer",
            f"{{15, 50, 85}}th percentiles over a fixed set of validation images, in eval mode, of what goes into the "
            f"first unit of each hidden layer; seed {seed}, each network at its best rate. The source's figure 1 shows "
            "one such unit of the last layer.",
            [_percentiles(best, name, layer, seed) for layer in reversed(LAYERS) for name in NETWORKS],
        ),
        Figure(
            "Drift",
            "How far the distribution of each unit's input moved since the evaluation before, in its standard "
            "deviations, as the mean over the units of a layer; each network at its best rate. Means over seeds, and "
            "their range.",
            curves(best, "network", drifts, log="y"),
        ),
        Figure(
            "Drift and learning rate",
            "Mean drift over the whole training, at every rate tried; means over seeds, and their range.",
            [
                sweep(results, drift(layer), RATE, "network", layer.capitalize(), "standard deviations", log="xy")
                for layer in LAYERS
            ],
        ),
    ]


def _at(results: Results, rate: float) -> Results:
    return Results([run for run in results.runs if run.cell.factors[RATE] == rate])


def _percentiles(best: Results, network: str, layer: str, seed: int) -> Panel:
    lines: list[Line] = []
    for run in best.select(network=network):
        if run.cell.seed == seed:
            for percentile in PERCENTILES:
                series = run.series.get(f"{layer}, {percentile}th percentile")
                if series is not None:
                    lines.append(Line(f"{percentile}th", list(series.x), list(series.y)))
    return Panel(f"{layer.capitalize()}, {network}", "step", "input of the sigmoid", lines)


SETTINGS = {"batch_size": 60, "optimizer": "sgd", "std": 0.1}

CLAIM = Claim(
    name="activations",
    question="Does batch normalization keep the inputs of sigmoids more stable while a network trains?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 4.1 and fig. 1; disputed as the cause of faster training by "
    "Santurkar et al. 2018, arXiv:1805.11604",
    factors="batch normalization before each of three layers of 100 sigmoids, or none; the learning rate",
    equal="binary images, initial weights (Gaussian of standard deviation 0.1, biases 0), data and its order, plain "
    "SGD, batch size 60, steps, evaluations, and the learning rates tried. The source does not state optimizer, rate "
    "or scale of the weights: these are ours",
    measure="drift of the distribution of each unit's input from one evaluation to the next, in its own standard "
    "deviations, on the same validation images in eval mode, as the mean over units and evaluations; and accuracy",
    rule=f"{RULE}, supported if in each of the three layers the drift without BN is above that with BN, both over all "
    "steps and over the second half of them, contradicted if below in each, by 95% intervals over paired seeds; "
    "accuracy, and drift at equal rates, are shown and do not decide",
    would_change="other rates or more steps, another initial scale, a deeper network, more data, which a network "
    "without BN does not know by heart in the second half; a measure of how gradients change instead of how inputs "
    "move (see landscape)",
    data=("digits", "mnist", "fashion-mnist"),
    presets={
        "smoke": Preset(2, {"network": NETWORKS, "lr": [0.3]}, {**SETTINGS, "steps": 60, "evaluate_every": 20}),
        "quick": Preset(
            3, {"network": NETWORKS, "lr": [0.1, 1.0, 10.0]}, {**SETTINGS, "steps": 1500, "evaluate_every": 50}
        ),
        "full": Preset(
            5,
            {"network": NETWORKS, "lr": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]},
            {**SETTINGS, "steps": 50_000, "evaluate_every": 500, "data": "mnist"},
        ),
    },
    run=run,
    judge=judge,
)
