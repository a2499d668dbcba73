"""Does batch normalization belong before the activation or after it?"""

from __future__ import annotations

from ...records import Cell, Effect
from ..claim import Claim, Judgement, Outcome, Preset
from ..models.systems import PLACES, placed_cnn
from ..results import Results
from ..showing import in_words, means
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import EQUAL, RATE, RULE, at_best_rates, last_validation, rates_in_words, tuned_figures
from ..verdict import difference, judged, speedup


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    channels, size = data.train.images.shape[1:3]
    recipe = Recipe.of(cell)
    model = placed_cnn(channels, size, data.classes, str(cell.factors["place"]))
    return fit(model, recipe, Images(data, recipe.batch_size, cell.seed), tools.keeper)


def judge(results: Results) -> Judgement:
    best = at_best_rates(results, "place")

    def accuracy(one: str, other: str, decides: bool) -> Effect:
        label = f"test accuracy, {one} − {other}"
        places = {"place": one}, {"place": other}
        return difference(best, "test accuracy", *places, label, "points", scale=100, decides=decides)

    decisive = accuracy("before", "after", True)
    faster = speedup(
        best,
        {"place": "before"},
        {"place": "after"},
        "steps to the best validation accuracy of after, after ÷ before",
        decides=False,
    )
    measures = {"test accuracy": "test accuracy", "validation accuracy, last step": last_validation}
    return Judgement(
        judged([decisive]),
        f"{in_words(decisive)}; {in_words(faster)}; {rates_in_words(results, 'place')}.",
        [decisive, faster, accuracy("before", "none", False), accuracy("after", "none", False)],
        tuned_figures(results, "place"),
        [means(results, ["place", RATE], measures)],
    )


RATES = [1e-3, 3e-3, 1e-2, 3e-2]
GRID = {"place": PLACES, "lr": RATES}
SETTINGS = {"batch_size": 64, "optimizer": "adam"}

CLAIM = Claim(
    name="placement",
    question="Is batch normalization better before the activation than after it?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 3.2, for before; introductions whose networks have it after",
    factors="batch normalization of each convolution before its ReLU, after it (and before the pooling), or none; the "
    "learning rate",
    equal=EQUAL,
    measure="test accuracy after the last step",
    rule=f"{RULE}, supported if the 95% interval of before − after over paired seeds lies above 0; contradicted if "
    "below",
    would_change="other activations, deeper or residual networks, longer training",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(1, {"place": PLACES, "lr": [1e-3]}, {**SETTINGS, "steps": 4, "evaluate_every": 2}),
        "quick": Preset(3, GRID, {**SETTINGS, "epochs": 3}),
        "full": Preset(5, {"place": PLACES, "lr": [3e-4, *RATES]}, {**SETTINGS, "epochs": 10, "data": "cifar10"}),
    },
    run=run,
    judge=judge,
)
