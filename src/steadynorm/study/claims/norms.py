"""Is batch normalization better than layer, instance and group normalization on a CNN?"""

from __future__ import annotations

from ...records import Cell, Effect, Figure
from ..claim import Claim, Judgement, Outcome, Preset
from ..models.norms import normalization, normalized_cnn
from ..results import Results
from ..showing import SECONDS, bars, in_words, means
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import EQUAL, RATE, RULE, at_best_rates, last_validation, rates_in_words, tuned_figures
from ..verdict import difference, judged_best

OTHERS = ("group", "layer", "instance")


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    channels, size = data.train.images.shape[1:3]
    recipe = Recipe.of(cell)
    model = normalized_cnn(channels, size, data.classes, normalization(str(cell.factors["norm"])))
    return fit(model, recipe, Images(data, recipe.batch_size, cell.seed), tools.keeper)


def judge(results: Results) -> Judgement:
    best = at_best_rates(results, "norm")

    def over(other: str) -> Effect:
        norms = {"norm": "batch"}, {"norm": other}
        label = f"test accuracy, batch − {other}"
        return difference(best, "test accuracy", *norms, label, "points", scale=100, decides=other in OTHERS)

    effects = [over(other) for other in OTHERS]
    measures = {
        "test accuracy": "test accuracy",
        "validation accuracy, last step": last_validation,
        **SECONDS,
    }
    best_figure = Figure(
        "Accuracy",
        "Test accuracy after the last step, each at its own best learning rate; means over seeds, and their range.",
        [bars(best, "test accuracy", "norm", "Test accuracy", "accuracy")],
    )
    return Judgement(
        judged_best(effects),
        f"{'; '.join(map(in_words, effects))}; {rates_in_words(results, 'norm')}.",
        [*effects, over("none")],
        [best_figure, *tuned_figures(results, "norm")],
        [means(results, ["norm", RATE], measures)],
    )


NAMES = ["none", "batch", "group", "layer", "instance"]
RATES = [3e-4, 1e-3, 3e-3, 1e-2]
SETTINGS = {"batch_size": 64, "optimizer": "adam"}

CLAIM = Claim(
    name="norms",
    question="On a CNN at an ordinary batch size, is batch normalization better than group, layer and instance "
    "normalization?",
    source="Wu & He 2018, arXiv:1803.08494, table 1 and fig. 4: ResNet-50 on ImageNet at batch 32, errors 23.6% "
    "(batch), 24.1% (group), 25.3% (layer), 28.4% (instance)",
    factors="the normalization before each convolution's ReLU: none, batch, group (8 groups), layer (over channels and "
    "positions), instance; the learning rate",
    equal=f"{EQUAL}; the dense layers, which none normalizes",
    measure="test accuracy after the last step",
    rule=f"{RULE}, supported if batch is above group, layer and instance, contradicted if one of them is above it, by "
    "95% intervals over paired seeds",
    would_change="another batch size (see batch-size), more groups, a deeper network, longer training",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(1, {"norm": NAMES, "lr": [1e-3]}, {**SETTINGS, "steps": 3, "evaluate_every": 2}),
        "quick": Preset(3, {"norm": NAMES, "lr": RATES}, {**SETTINGS, "epochs": 3, "evaluate_every": 10}),
        "full": Preset(5, {"norm": NAMES, "lr": RATES}, {**SETTINGS, "epochs": 10, "data": "cifar10"}),
    },
    run=run,
    judge=judge,
)
