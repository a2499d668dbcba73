"""Is batch normalization bad for recurrent networks, and which normalization is not?"""

from __future__ import annotations

from typing import Any

from ...records import Cell, Effect, Figure
from ..claim import Claim, Judgement, Outcome, Preset
from ..models.recurrent import NORMS, Recurrent
from ..results import Results
from ..showing import SECONDS, bars, in_words, means
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import RATE, at_best_rates, last_validation, rates_in_words, tuned_figures
from ..verdict import difference, judged, speedup


def run(cell: Cell, tools: Tools) -> Outcome:
    data, settings = tools.data(), dict[str, Any](cell.settings)
    channels, rows, columns = data.train.images.shape[1:]
    model = Recurrent(channels * columns, rows, settings["width"], data.classes, str(cell.factors["norm"]))
    recipe = Recipe.of(cell)
    return fit(model, recipe, Images(data, recipe.batch_size, cell.seed), tools.keeper)


def judge(results: Results) -> Judgement:
    best = at_best_rates(results, "norm")

    def minus(one: str, other: str, *, decides: bool = False) -> Effect:
        label = f"test accuracy, {one} − {other}"
        pair = {"norm": one}, {"norm": other}
        return difference(best, "test accuracy", *pair, label, "points", scale=100, decides=decides)

    deciding = [minus("none", "batch", decides=True), minus("layer", "batch", decides=True)]
    proposed = [minus("recurrent batch", other) for other in ("batch", "none", "layer")]
    faster = [
        speedup(best, {"norm": norm}, {"norm": "none"}, f"steps to the best without, none ÷ {norm}", decides=False)
        for norm in NORMS[1:]
    ]
    measures = {
        "test accuracy": "test accuracy",
        "validation accuracy, last step": last_validation,
        **SECONDS,
    }
    accuracy = bars(best, "test accuracy", "norm", "Test accuracy after the last step", "accuracy")
    return Judgement(
        judged(deciding),
        f"{'; '.join(map(in_words, [*deciding, *proposed]))}; {rates_in_words(results, 'norm')}.",
        [*deciding, *proposed, *faster],
        [Figure("Accuracy", "Each at its own best learning rate.", [accuracy]), *tuned_figures(results, "norm")],
        [means(results, ["norm", RATE], measures)],
    )


SETTINGS = {"optimizer": "adam", "batch_size": 64}
CLAIM = Claim(
    name="sequence",
    question="Is batch normalization bad for a recurrent network, where layer normalization is not?",
    source="what tutorials say of it; Cooijmans et al. 2016, arXiv:1603.09025, which disagrees; Ba, Kiros & Hinton "
    "2016, arXiv:1607.06450",
    factors="an LSTM without normalization; with BN of each step's preactivations, statistics shared by all steps, "
    "whose running averages therefore are mostly of the last rows; "
    "with recurrent BN (input, recurrent part and cell apart, weights from 0.1, statistics of each step); with layer "
    "normalization; learning rates",
    equal="initial weights (Glorot & Bengio 2010 for the input, orthogonal for the state, forget bias 1), data and its "
    "order, optimizer, batch size, epochs, and the rates tried, of which each has its best by validation accuracy",
    measure="test accuracy of the last step, in classifying an image that is read row by row",
    rule="supported if the 95% intervals of no normalization minus BN, and of layer normalization minus BN, both lie "
    "above 0 over paired seeds; contradicted if both lie below",
    would_change="inference of the BN with shared statistics by those of the training set; sequences of other or "
    "varying lengths, for which statistics of each step are missing; longer ones, pixel by pixel; small batches",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(
            2, {"norm": list(NORMS), "lr": [3e-3]}, {**SETTINGS, "epochs": 1, "width": 8, "batch_size": 512}
        ),
        "quick": Preset(3, {"norm": list(NORMS), "lr": [1e-3, 3e-3, 1e-2]}, {**SETTINGS, "epochs": 6, "width": 32}),
        "full": Preset(
            5,
            {"norm": list(NORMS), "lr": [1e-3, 3e-3, 1e-2]},
            {**SETTINGS, "epochs": 5, "width": 100, "data": "mnist"},
        ),
    },
    run=run,
    judge=judge,
)
