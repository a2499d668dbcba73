"""Does batch normalization keep gradients of one size through the depth of a network?"""

from __future__ import annotations

import math

from torch import nn

from ...records import Cell, Figure, Line, Panel, Run, Series, Table, finite
from ..claim import WITH, WITHOUT, Claim, Judgement, Outcome, Preset
from ..dense import initialize, network, weights
from ..gradients import loss_and_gradient
from ..results import Results
from ..showing import in_words
from ..sources import Batch, Images, standardized
from ..tools import Tools
from ..training import Recipe, fit
from ..verdict import difference, judged

START, END = "at initialization", "after training"
GAINS = {"relu": math.sqrt(2), "sigmoid": 4.0}
"""Of the initial weights, such that a gradient through the activation near 0 keeps its size: He's for ReLU, 4 for the
slope 1/4 of the sigmoid."""


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    model = network(cell, data, batch_norm=cell.factors["network"] == WITH)
    initialize(model, GAINS[str(cell.factors["activation"])])
    recipe = Recipe.of(cell)
    source = Images(data, recipe.batch_size, cell.seed, prepare=standardized(data))
    batch = source.batch(0)

    def probe(model: nn.Module, step: int) -> dict[str, float]:
        return {"imbalance": imbalance(gradient_norms(model, batch))}

    norms = {START: gradient_norms(model, batch)}
    outcome = fit(model, recipe, source, tools.keeper, probe)
    norms[END] = gradient_norms(model, batch)
    for when, found in norms.items():
        depth = [float(layer) for layer in range(1, len(found) + 1)]
        outcome.series[f"gradient norm {when}"] = Series(depth, [v if math.isfinite(v) else None for v in found])
        outcome.values[f"imbalance {when}"] = finite(imbalance(found))
        outcome.values[f"first ÷ last {when}"] = finite(math.exp(log_ratio(found)))
    return outcome


def gradient_norms(model: nn.Module, batch: Batch) -> list[float]:
    """Norm of the gradient of the batch's loss, in train mode, towards each weight matrix from input to output."""
    _, gradients = loss_and_gradient(model, batch, weights(model))
    return [float(gradient.norm()) for gradient in gradients]


def log_ratio(norms: list[float]) -> float:
    """Natural logarithm of the gradient of the first hidden layer over that of the last, of those of equal shape.

    The first layer of all and the output layer have other shapes. nan where a norm is not finite or both are 0.
    """
    first, last = norms[1], norms[-2]
    if not (math.isfinite(first) and math.isfinite(last)) or first == last == 0:
        return math.nan
    return math.log(max(first, SMALLEST)) - math.log(max(last, SMALLEST))


SMALLEST = 1e-30
"""What a gradient of 0 counts as."""


def imbalance(norms: list[float]) -> float:
    """Decades between the gradients of the first and the last hidden layer, whichever is larger."""
    return abs(log_ratio(norms)) / math.log(10)


def judge(results: Results) -> Judgement:
    depth = max(results.levels("depth"), default=0)
    effects = [
        difference(
            results,
            f"imbalance {when}",
            {"network": WITHOUT, "activation": activation, "depth": depth},
            {"network": WITH, "activation": activation, "depth": depth},
            f"{activation}, {depth} layers, {when}: decades between first and last gradient, without − with BN",
            "decades",
        )
        for activation in results.levels("activation")
        for when in (START, END)
    ]
    accuracies = [
        difference(
            results,
            "test accuracy",
            {"network": WITH, "activation": activation, "depth": depth},
            {"network": WITHOUT, "activation": activation, "depth": depth},
            f"{activation}, {depth} layers: test accuracy, with BN − without",
            "points",
            scale=100,
            decides=False,
        )
        for activation in results.levels("activation")
    ]
    found = [*effects, *accuracies]
    each = [f"{a}: {judged(effects[2 * n : 2 * n + 2])}" for n, a in enumerate(results.levels("activation"))]
    words = f"{', '.join(each)}; {'; '.join(map(in_words, found))}."
    return Judgement(judged(found), words, found, figures(results, depth), [table(results)])


def figures(results: Results, depth: int) -> list[Figure]:
    caption = (
        "Norm of the gradient towards each layer's weights, from the input (1) to the output, on one batch in train "
        "mode. Lines are means over seeds, bands the range."
    )
    every = [(f"{activation} {name}", activation, name) for activation in results.levels("activation") for name in BOTH]

    def lines(series: str) -> list[Line]:
        return [results.curve(series, label, network=n, activation=a, depth=depth) for label, a, n in every]

    by_depth = [Panel(when.capitalize(), "layer", "norm", lines(f"gradient norm {when}"), "y") for when in (START, END)]
    over_steps = [Panel("Imbalance over training", "step", "decades", lines("imbalance"))]
    over_steps.append(Panel("Validation accuracy", "step", "accuracy", lines("validation accuracy")))
    return [
        Figure(f"Gradient norms by depth, {depth} hidden layers", caption, by_depth),
        Figure(
            "Over training",
            "Imbalance: decades between the gradients of the second and of the last hidden layer, whichever is larger.",
            over_steps,
        ),
    ]


def table(results: Results) -> Table:
    rows: list[list[float | str | None]] = []
    for activation in results.levels("activation"):
        for depth in results.levels("depth"):
            for name in BOTH:
                chosen = {"activation": activation, "depth": depth, "network": name}
                found = [geometric(results.select(**chosen), f"first ÷ last {when}") for when in (START, END)]
                mean = results.mean("test accuracy", **chosen)
                rows.append([activation, str(depth), name, *found, None if math.isnan(mean) else mean])
    columns = [
        "activation",
        "hidden layers",
        "network",
        f"first ÷ last {START}",
        f"first ÷ last {END}",
        "test accuracy",
    ]
    return Table("Gradient of the first over that of the last hidden layer, geometric means over seeds", columns, rows)


def geometric(runs: list[Run], name: str) -> float | None:
    found = [math.log(value) for run in runs if (value := run.values[name])]
    return math.exp(sum(found) / len(found)) if found else None


BOTH = (WITHOUT, WITH)


def _grid(depths: list[int]) -> dict[str, list]:
    return {"activation": ["sigmoid", "relu"], "depth": depths, "network": [WITHOUT, WITH]}


SETTINGS = {"architecture": "dense", "width": 100, "batch_size": 60, "optimizer": "sgd", "lr": 0.1}

CLAIM = Claim(
    name="gradient-flow",
    question="Does batch normalization keep gradients from vanishing or exploding through the depth of a network?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 1 and 3.3",
    factors="batch normalization before each activation, or none; sigmoid or ReLU; hidden layers",
    equal=(
        "initial weights (He's for ReLU, for the sigmoid four over the root of the fan-in, which makes up for its "
        "slope of a quarter), data and its order, plain SGD at one rate, steps"
    ),
    measure=(
        "decades between the norms of the gradients towards the weights of the second and of the last hidden layer "
        "(the first of all has another shape), in the deepest network, at initialization and after training"
    ),
    rule=(
        "supported if the 95% intervals for both activations, before and after training, lie above no effect; "
        "contradicted if all lie below; so undecided where one activation gains and the other loses"
    ),
    would_change="other initial weights, depth, residual connections, a rate tuned for each network",
    data=("digits", "mnist", "fashion-mnist"),
    presets={
        "smoke": Preset(2, _grid([3]), {**SETTINGS, "steps": 4}),
        "quick": Preset(3, _grid([5, 10, 20]), {**SETTINGS, "steps": 200, "evaluate_every": 20}),
        "full": Preset(5, _grid([5, 10, 20, 50]), {**SETTINGS, "epochs": 5, "evaluate_every": 100, "data": "mnist"}),
    },
    run=run,
    judge=judge,
)
