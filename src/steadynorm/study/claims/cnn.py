"""Does batch normalization help a small CNN, everything else equal?"""

from __future__ import annotations

import numpy as np

from ...records import Cell, Run
from ..claim import WITH, Claim, Judgement, Outcome, Preset
from ..models import cnn
from ..results import Results
from ..showing import in_words, means, milliseconds, training_figure
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import BARE, NETWORKS, NORMALIZED
from ..verdict import difference, judged, speedup

GRID = {"network": NETWORKS}


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    channels, size = data.train.images.shape[1:3]
    model = cnn(channels, size, data.classes, batch_norm=cell.factors["network"] == WITH)
    recipe = Recipe.of(cell)
    return fit(model, recipe, Images(data, recipe.batch_size, cell.seed), tools.keeper)


def judge(results: Results) -> Judgement:
    accuracy = difference(
        results, "test accuracy", NORMALIZED, BARE, "test accuracy, with BN − without", "points", scale=100
    )
    faster = speedup(results, NORMALIZED, BARE, "steps to the best validation accuracy without BN, without ÷ with")
    smoother = difference(
        results,
        roughness,
        BARE,
        NORMALIZED,
        "roughness of the validation loss, without − with BN",
        "nats",
        decides=False,
    )
    table = means(
        results,
        ["network"],
        {
            "test accuracy": "test accuracy",
            "best validation accuracy": "best validation accuracy",
            "validation-loss roughness": roughness,
            "processor ms a step": milliseconds,
        },
    )
    return Judgement(
        judged([accuracy, faster]),
        f"{in_words(accuracy)}; {in_words(faster)}.",
        [accuracy, faster, smoother],
        [training_figure(results, "network")],
        [table],
    )


def roughness(run: Run) -> float:
    """Root mean square of the second difference of the validation loss; nan below three evaluations."""
    losses = np.array([np.nan if y is None else y for y in run.series["validation loss"].y], dtype=np.float64)
    bends = np.diff(losses, n=2)
    return float(np.sqrt(np.mean(bends**2))) if bends.size else np.nan


CLAIM = Claim(
    name="cnn",
    question="Does batch normalization make a small CNN learn faster and better?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, abstract and sec. 4.2; the network of many tutorials",
    factors="batch normalization before each ReLU, or none",
    equal="initial weights (redundant biases too), data and its order, optimizer, learning rate, batch size, epochs",
    measure="test accuracy after the last step; steps to the other network's best validation accuracy",
    rule="supported if the 95% intervals of both over paired seeds lie above no effect; contradicted if both lie below",
    would_change="a learning rate tuned for each network (see learning-rate), harder data, a deeper network",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(2, GRID, {"epochs": 1, "batch_size": 64, "lr": 1e-3, "optimizer": "adam"}),
        "quick": Preset(3, GRID, {"epochs": 10, "batch_size": 64, "lr": 1e-3, "optimizer": "adam"}),
        "full": Preset(5, GRID, {"epochs": 10, "batch_size": 64, "lr": 1e-3, "optimizer": "adam", "data": "mnist"}),
    },
    run=run,
    judge=judge,
)
