"""Does batch normalization make a small Inception learn in a fraction of the steps, and with sigmoids at all?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...records import DIVERGED, FINISHED, Cell, Effect, Figure, Table
from ..claim import Claim, Judgement, Outcome, Preset
from ..data import ImageData
from ..distortion import centred, distort
from ..models.inception import Inception
from ..results import Results
from ..showing import SECONDS, bars, in_words, means, training_figure
from ..sources import Images
from ..tools import Keeper, Tools
from ..training import Recipe, fit
from ..verdict import best, contrast, difference, judged, speedup, steps_to

MEMBERS = 6
ENSEMBLE = f"ensemble of {MEMBERS} BN-x30"
BASELINE = {"network": "Baseline"}
BEST = "best validation accuracy"


@dataclass(frozen=True)
class Variant:
    """How a network differs from the baseline: `changes` are the paper's (sec. 4.2.1), of everything but the rate."""

    batch_norm: bool = True
    sigmoid: bool = False
    rate: float = 1.0
    changes: bool = False


VARIANTS = {
    "Baseline": Variant(batch_norm=False),
    "BN-Baseline": Variant(),
    "BN-x5": Variant(rate=5, changes=True),
    "BN-x30": Variant(rate=30, changes=True),
    "BN-x5-Sigmoid": Variant(rate=5, changes=True, sigmoid=True),
    "Sigmoid": Variant(batch_norm=False, sigmoid=True),
    ENSEMBLE: Variant(rate=30, changes=True),
}
PAPER = {"BN-Baseline": 2.3, "BN-x5": 14.0, "BN-x30": 11.0}
"""How many times fewer steps than the baseline's 31.0M the paper's networks needed to 72.2% on ImageNet."""


def run(cell: Cell, tools: Tools) -> Outcome:
    data, variant = tools.data(), VARIANTS[str(cell.factors["network"])]
    if cell.factors["network"] == ENSEMBLE:
        return together(cell, data, variant, tools.keeper)
    return alone(cell, data, variant, cell.seed, tools.keeper)[0]


def alone(cell: Cell, data: ImageData, variant: Variant, seed: int, keeper: Keeper) -> tuple[Outcome, Tensor]:
    """One network trained, and its probabilities of the test images' classes."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = cell.settings
    model = Inception(
        data.train.images.shape[1],
        data.classes,
        settings["width"],
        batch_norm=variant.batch_norm,
        sigmoid=variant.sigmoid,
        dropout=0.0 if variant.changes else 0.2,
    )
    mirror = data.name == "cifar10"  # a mirrored digit is none

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        return distort(x, generator, pixels=2, light=0.1 if variant.changes else 0.4, mirror=mirror)

    recipe = Recipe.of(cell)
    source = Images(data, recipe.batch_size, seed, prepare=centred, augment=augment)
    steps = recipe.epochs * source.steps_in_epoch
    recipe = replace(
        recipe,
        lr=recipe.lr * variant.rate,
        decay=recipe.decay ** (6 if variant.changes else 1),
        weight_decay=recipe.weight_decay / (5 if variant.changes else 1),
        evaluate_every=max(1, steps // settings["evaluations"]),
    )
    outcome = fit(model, recipe, source, keeper)
    with torch.no_grad():
        probabilities = torch.cat([model(x).softmax(1) for x, _ in source.part("test")])
    return outcome, probabilities


def together(cell: Cell, data: ImageData, variant: Variant, keeper: Keeper) -> Outcome:
    """Networks of other initial weights and data orders, trained one after the other; their mean probability decides.

    The series are those of the first.
    """
    nothing = {"accuracies": [], "sum": torch.zeros(len(data.test.labels), data.classes), "seconds": 0.0}
    state = keeper.restore() or nothing
    accuracies, total, seconds = list(state["accuracies"]), state["sum"], state["seconds"]
    for member in range(len(accuracies), MEMBERS):
        own = _Share(
            keeper, state.pop("inner", None), member, {"accuracies": accuracies, "sum": total, "seconds": seconds}
        )
        outcome, probabilities = alone(cell, data, variant, seed_of(cell, member), own)
        accuracies = [*accuracies, outcome.values["test accuracy"]]
        total = total + probabilities
        seconds += outcome.seconds["training"]
    accuracy = float((total.argmax(1) == data.test.labels).float().mean())
    values: dict[str, float | None] = {"test accuracy": accuracy, "test accuracy of one": sum(accuracies) / MEMBERS}
    finite = bool(total.isfinite().all())
    return Outcome(
        values, {}, {"training": seconds}, FINISHED if finite else DIVERGED, "" if finite else "a member did"
    )


def seed_of(cell: Cell, member: int) -> int:
    """No other run's."""
    return 1000 * (cell.seed + 1) + member


class _Share(Keeper):
    """Keeps one network's state together with what those before it gave."""

    def __init__(self, keeper: Keeper, inner: dict[str, Any] | None, member: int, before: dict[str, Any]) -> None:
        self._keeper, self._inner, self._member, self._before = keeper, inner, member, before

    def restore(self) -> dict[str, Any] | None:
        return self._inner

    def offer(self, done: int, total: int, state: Callable[[], dict[str, Any]]) -> None:
        self._keeper.offer(self._member * total + done, MEMBERS * total, lambda: {**self._before, "inner": state()})


def judge(results: Results) -> Judgement:
    singles = Results([run for run in results.runs if run.cell.factors["network"] != ENSEMBLE])
    faster = [
        speedup(
            results, {"network": name}, BASELINE, f"steps to the baseline's best, Baseline ÷ {name} (paper {paper}×)"
        )
        for name, paper in PAPER.items()
    ]
    sigmoid = gain(results, "BN-x5-Sigmoid", "Sigmoid", decides=True)
    better = [gain(results, name, "Baseline", decides=False) for name in (*PAPER, "BN-x5-Sigmoid")]
    effects = [*faster, sigmoid, *better, *of_ensemble(results)]
    alone = results.mean(BEST, network="Sigmoid")
    chance = "" if alone != alone else f"; without BN sigmoids reach {alone:.3f}, where guessing gives 0.1"
    measures = {BEST: BEST, "test accuracy": "test accuracy", **SECONDS}
    accuracy = bars(results, "test accuracy", "network", "Test accuracy after the last step", "accuracy")
    return Judgement(
        judged(effects),
        f"{'; '.join(map(in_words, [*faster, sigmoid]))}{chance}.",
        effects,
        [training_figure(singles, "network"), Figure("Accuracy", "Bars are means over seeds.", [accuracy])],
        [steps(singles), means(results, ["network"], measures)],
    )


def gain(results: Results, one: str, other: str, *, decides: bool) -> Effect:
    label = f"best validation accuracy, {one} − {other}"
    return difference(results, BEST, {"network": one}, {"network": other}, label, "points", scale=100, decides=decides)


def of_ensemble(results: Results) -> list[Effect]:
    """Its test accuracy against the mean of its members'; nothing where no preset asks for it."""
    many, one = (results.by_seed(name, network=ENSEMBLE) for name in ("test accuracy", "test accuracy of one"))
    gains = {seed: many[seed] - one[seed] for seed in sorted(many.keys() & one.keys())}
    label = f"test accuracy, ensemble of {MEMBERS} − one of it"
    return [contrast(gains, label, "points", scale=100, decides=False)] if gains else []


def steps(results: Results) -> Table:
    """How many steps each network needs to the best validation accuracy of the baseline of its seed."""
    goals = {run.cell.seed: best(run) for run in results.select(**BASELINE)}
    rows: list[list[float | str | None]] = []
    for name in results.levels("network"):
        pairs = [(run, goals.get(run.cell.seed)) for run in results.select(network=name)]
        needed = [steps_to(run, goal) for run, goal in pairs if goal is not None]
        there = [step for step in needed if step is not None]
        rows.append([name, sum(there) / len(there) if there else None, len(there), len(needed), PAPER.get(name)])
    columns = ["network", "steps, mean of those that get there", "get there", "of", "paper: times fewer steps"]
    return Table("Steps to the baseline's best validation accuracy", columns, rows)


NETWORKS = [name for name in VARIANTS if name != ENSEMBLE]
SETTINGS = {"batch_size": 32, "optimizer": "momentum", "lr": 0.02, "decay": 0.5, "weight_decay": 1e-4}
CLAIM = Claim(
    name="inception",
    question="Does batch normalization train an Inception in a fraction of the steps, and with sigmoids at all?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 4.2, fig. 2 and 3",
    factors="Baseline; BN-Baseline adds BN; BN-x5 and BN-x30 also have 5 and 30 times the rate, falling 6 times as "
    "fast, a fifth of the L2 penalty, a quarter of the distortion of light, and no dropout; "
    f"sigmoids with BN, as BN-x5, and without, as the baseline; at the full preset an ensemble of {MEMBERS} BN-x30",
    equal="data, thoroughly shuffled for each epoch and without local response normalization for the baseline too, "
    "batch size, steps, momentum 0.9, initial weights (He et al. 2015 for ReLU, Glorot & Bengio 2010 for sigmoids; the "
    "paper does not give its own); the baseline's rate is the best in a trial with one other seed, judged by the same "
    "validation images: 0.02 of 0.005, 0.01, 0.02, 0.05 and 0.1 on digits; 0.02 too of 0.01, 0.02, 0.05, 0.1 and 0.2 "
    "after three epochs of CIFAR-10; dropout, where it is not left out, is of 0.2",
    measure="steps to the best validation accuracy of the baseline; best validation accuracy; the ensemble's test "
    "accuracy against one network's",
    rule="supported if the 95% intervals over paired seeds of three ratios of steps lie above 1 and that of the gain "
    "of BN with sigmoids above 0; contradicted if all lie below",
    would_change="ImageNet and the whole Inception, where the paper trained 31 million steps; a rate of the baseline's "
    "so high that 30 times it is too much for BN too; another way to start sigmoids",
    data=("digits", "mnist", "cifar10"),
    presets={
        "smoke": Preset(
            2, {"network": NETWORKS}, {**SETTINGS, "epochs": 1, "evaluations": 2, "width": 2, "batch_size": 256}
        ),
        "quick": Preset(3, {"network": NETWORKS}, {**SETTINGS, "epochs": 5, "evaluations": 20, "width": 8}),
        "full": Preset(
            3,
            {"network": list(VARIANTS)},
            {**SETTINGS, "data": "cifar10", "epochs": 8, "evaluations": 80, "width": 8},
        ),
    },
    run=run,
    judge=judge,
)
