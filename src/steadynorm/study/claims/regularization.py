"""Does batch normalization regularize, so that dropout is needed less?"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...records import Cell, Figure, Panel, Run, finite
from ..claim import WITH, WITHOUT, Claim, Judgement, Outcome, Preset
from ..data import ImageData
from ..dense import initialize, network
from ..results import Results
from ..showing import in_words, means, sweep
from ..sources import Images, mixed, standardized
from ..sweeps import accuracy, by_level, mean_accuracy
from ..tools import Tools
from ..training import Recipe, evaluate, fit
from ..verdict import difference, judged, paired_difference


def run(cell: Cell, tools: Tools) -> Outcome:
    data = fewer(tools.data(), int(cell.factors["examples"] or 0), cell.seed)
    model = network(cell, data, batch_norm=cell.factors["network"] == WITH)
    initialize(model)
    recipe = Recipe.of(cell)
    source = Images(data, recipe.batch_size, cell.seed, prepare=standardized(data))
    outcome = fit(model, recipe, source, tools.keeper)
    loss, correct = evaluate(model, source.part("train"))
    outcome.values.update({"accuracy on training images": correct, "loss on training images": finite(loss)})
    return outcome


def fewer(data: ImageData, examples: int, seed: int) -> ImageData:
    """With so many training images only, drawn by the seed; all the validation and test images."""
    order = torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(mixed(seed, 0)))
    return replace(data, train=data.train.take(order[:examples]))


def gap(run: Run) -> float | None:
    """Accuracy on the training images minus that on the test images, both in eval mode."""
    train, test = run.values["accuracy on training images"], run.values["test accuracy"]
    return None if train is None or test is None else train - test


def loss_gap(run: Run) -> float | None:
    """Loss on the test images minus that on the training images, in nats."""
    train, test = run.values["loss on training images"], run.values["test loss"]
    return None if train is None or test is None else test - train


def judge(results: Results) -> Judgement:
    results = results.complete()
    bare, normalized = {"network": WITHOUT, "dropout": 0.0}, {"network": WITH, "dropout": 0.0}
    smaller = difference(
        results, gap, bare, normalized, "gap between training and test accuracy, without − with BN", "points", scale=100
    )
    plain = {name: undropped(results, name) for name in (WITHOUT, WITH)}
    best = {name: dropped(results, name) for name in (WITHOUT, WITH)}
    gains = {
        name: {seed: best[name][seed] - plain[name][seed] for seed in plain[name].keys() & best[name].keys()}
        for name in plain
    }
    needed = paired_difference(
        gains[WITHOUT], gains[WITH], "what dropout adds to test accuracy, without − with BN", "points", scale=100
    )
    instead = paired_difference(
        plain[WITH], best[WITHOUT], "test accuracy, BN alone − dropout alone", "points", scale=100, decides=False
    )
    alone = paired_difference(
        plain[WITH],
        plain[WITHOUT],
        "test accuracy without dropout, with BN − without",
        "points",
        scale=100,
        decides=False,
    )
    losses = difference(
        results,
        loss_gap,
        bare,
        normalized,
        "gap between test and training loss, without − with BN",
        "nats",
        decides=False,
    )
    effects = [smaller, needed, instead, alone, losses]
    measures = {
        "accuracy on training images": "accuracy on training images",
        "test accuracy": "test accuracy",
        "gap in accuracy": gap,
        "gap in loss, nats": loss_gap,
    }
    table = means(results, ["examples", "dropout", "network"], measures)
    words = "; ".join(map(in_words, effects[:3]))
    return Judgement(judged(effects), f"{words}.", effects, [figure(results)], [table])


def undropped(results: Results, name: str) -> dict[int, float]:
    """Test accuracy without dropout by seed, averaged over the sizes of the training set."""
    return mean_accuracy(by_level(Results(results.select(dropout=0.0)), "examples", network=name))


def dropped(results: Results, name: str) -> dict[int, float]:
    """As `undropped`, with the dropout that validates best at each size."""
    runs = [run for run in results.runs if run.cell.factors["dropout"]]
    return mean_accuracy(by_level(Results(runs), "examples", network=name))


def figure(results: Results) -> Figure:
    panels: list[Panel] = []
    for examples in results.levels("examples"):
        some = Results(results.select(examples=examples))
        for title, measure in (("Test accuracy", accuracy), ("Training − test accuracy", gap)):
            heading = f"{title}, {examples} training images"
            panels.append(sweep(some, measure, "dropout", "network", heading, "accuracy", x="dropout probability"))
    caption = "After the last step, in eval mode. Lines are means over seeds, bands the range."
    return Figure("Overfitting by dropout", caption, panels)


def _grid(examples: list[int], dropout: list[float]) -> dict[str, list]:
    return {"network": [WITHOUT, WITH], "dropout": dropout, "examples": examples}


SETTINGS = {"architecture": "dense", "width": 256, "depth": 3, "batch_size": 50, "optimizer": "adam", "lr": 1e-3}

CLAIM = Claim(
    name="regularization",
    question="Does batch normalization reduce overfitting, so that dropout is needed less?",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, abstract, sec. 3.4 and 4.2.1",
    factors="batch normalization before each ReLU, or none; dropout after each; the number of training images",
    equal="initial weights (He's), training images and their order, Adam at one rate, batch size, steps",
    measure=(
        "accuracy on the training images minus that on the test images, without dropout; and how much test accuracy "
        "the dropout that validates best adds to that without; averaged over the sizes of the training set"
    ),
    rule="supported if the 95% intervals of both differences lie above no effect; contradicted if both lie below",
    would_change="augmentation, weight decay, a convolutional network, smaller (noisier) batches, stopping early",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(2, _grid([60], [0.0, 0.5]), {**SETTINGS, "width": 32, "steps": 5}),
        "quick": Preset(3, _grid([100, 500], [0.0, 0.2, 0.5]), {**SETTINGS, "steps": 300, "evaluate_every": 100}),
        "full": Preset(
            5,
            _grid([300, 1000, 3000, 10000], [0.0, 0.1, 0.2, 0.3, 0.5]),
            {**SETTINGS, "width": 512, "steps": 5000, "evaluate_every": 500, "data": "mnist"},
        ),
    },
    run=run,
    judge=judge,
)
