"""Is it worth it to whiten, where batch normalization only scales?"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...nn import BatchNorm2d, WhiteningBatchNorm
from ...records import Cell, Effect, Figure, Run
from ..claim import Claim, Judgement, Outcome, Preset
from ..models.norms import normalized_cnn
from ..results import Results
from ..showing import bars, in_words, means, milliseconds, training_figure
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..verdict import best, difference, judged, paired_ratio, ratio, speedup, steps_to

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "whitening, exact": lambda channels: WhiteningBatchNorm(channels, method="zca"),
    "whitening, Newton": lambda channels: WhiteningBatchNorm(channels, method="iternorm"),
    "whitening, Newton, groups of 8": lambda channels: WhiteningBatchNorm(channels, group_size=8, method="iternorm"),
}
BN, FULL = {"norm": "BN"}, ("whitening, exact", "whitening, Newton")


def run(cell: Cell, tools: Tools) -> Outcome:
    data, recipe = tools.data(), Recipe.of(cell)
    channels, size = data.train.images.shape[1:3]
    model = normalized_cnn(channels, size, data.classes, NORMS[str(cell.factors["norm"])])
    return fit(model, recipe, Images(data, recipe.batch_size, cell.seed), tools.keeper)


def judge(results: Results) -> Judgement:
    others = [name for name in NORMS if name != "BN"]
    times = [time_ratio(results, name) for name in others]
    steps = [speedup(results, {"norm": name}, BN, f"steps to BN's best, BN ÷ {name}", decides=False) for name in others]
    a_step = [
        ratio(results, milliseconds, {"norm": name}, BN, f"processor time of a step, {name} ÷ BN", decides=False)
        for name in others
    ]
    accuracy = [
        difference(
            results,
            "test accuracy",
            {"norm": name},
            BN,
            f"test accuracy, {name} − BN",
            "points",
            scale=100,
            decides=False,
        )
        for name in others
    ]
    measures = {"test accuracy": "test accuracy", "processor ms a step": milliseconds}
    panels = [
        bars(results, milliseconds, "norm", "Processor time of a training step", "ms"),
        bars(results, "test accuracy", "norm", "Test accuracy after the last step", "accuracy"),
    ]
    return Judgement(
        judged(times),
        f"{'; '.join(map(in_words, [times[0], steps[0], a_step[0], accuracy[0]]))}.",
        [*times, *steps, *a_step, *accuracy],
        [Figure("Cost and gain", "Means over seeds, and their range.", panels), training_figure(results, "norm")],
        [means(results, ["norm"], measures)],
    )


def time_ratio(results: Results, name: str) -> Effect:
    """Processor seconds of training to the highest validation accuracy that both reach, pair by pair."""
    first, second = ({run.cell.seed: run for run in results.select(norm=norm)} for norm in (name, "BN"))
    one, other = {}, {}
    for seed in sorted(first.keys() & second.keys()):
        bests = best(first[seed]), best(second[seed])
        if None in bests:
            continue
        goal = min(value for value in bests if value is not None)
        one[seed], other[seed] = seconds_to(first[seed], goal), seconds_to(second[seed], goal)
    return paired_ratio(
        one, other, f"processor seconds to the best accuracy that both reach, {name} ÷ BN", decides=name in FULL
    )


def seconds_to(run: Run, accuracy: float) -> float:
    """Processor seconds of training, until validation accuracy is at least this; 0 if it never is."""
    return (steps_to(run, accuracy) or 0) * milliseconds(run) / 1000


GRID = {"norm": list(NORMS)}
SETTINGS = {"batch_size": 64, "optimizer": "momentum", "lr": 0.01}
CLAIM = Claim(
    name="whitening",
    question="Is batch normalization the cheaper way to an accuracy than full whitening, of which it is a shortcut?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 2 and 3; Huang et al. 2018, arXiv:1804.08450, and 2019, "
    "arXiv:1904.03441, who whiten",
    factors="each convolution's outputs normalized by BN, or whitened: exactly by eigenvalues, by Newton's iteration, "
    "and by that in groups of 8 channels",
    equal="initial weights (He et al. 2015), data and its order, optimizer, rate, batch size, epochs, threads",
    measure="processor seconds of training steps to the highest validation accuracy that both reach",
    rule="supported if the 95% intervals of the ratio of seconds, whitening over BN, lie above 1 for exact whitening "
    "and for Newton's iteration, over paired seeds; contradicted if both lie below",
    would_change="a rate tuned for each; dense or very correlated features; wide layers, where whitening costs more; a "
    "faster covariance and root than ours; another processor",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(1, GRID, {**SETTINGS, "steps": 2, "batch_size": 32}),
        "quick": Preset(3, GRID, {**SETTINGS, "epochs": 4, "evaluate_every": 5}),
        "full": Preset(5, GRID, {**SETTINGS, "epochs": 5, "data": "mnist", "evaluate_every": 100}),
    },
    run=run,
    judge=judge,
)
