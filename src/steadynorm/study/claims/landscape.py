"""Is the loss smoother along the gradient with batch normalization, and does noise after it undo its help?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...nn import BatchNorm1d, BatchNorm2d
from ...records import Cell, Figure, Run, Setting
from ..claim import WITH, WITHOUT, Claim, Judgement, Outcome, Preset
from ..dense import initialize, network
from ..gradients import loss_and_gradient
from ..results import Results
from ..showing import CAPTION, curves, in_words, means
from ..sources import Batch, Images, standardized
from ..tools import Tools
from ..training import Recipe, fit
from ..verdict import difference, judged, ratio

NOISY = "with BN and noise"
STRIDES = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the learning rate at which the probes look."""
PROBES = {
    "loss range": ("Range of the loss along the gradient", "nats"),
    "gradient change": ("Change of the gradient along it", "norm"),
    "smoothness": ("Effective smoothness", "change of the gradient ÷ distance"),
}


class Noise(nn.Module):
    """Scales and shifts each value at random in train mode, by noise whose mean and spread change every step.

    y = (1 + a) x + b with a ~ N(m, s²) and b ~ N(m', s'²), drawn for each value; m and m' in ±shift, s and s' in
    [0, spread], drawn for each channel and step. So the distribution of activations moves from step to step.

    Reference: in the manner of Santurkar et al. 2018, arXiv:1805.11604, sec. 2.1; the strength is chosen here.
    """

    def __init__(self, shift: float = 0.5, spread: float = 0.5) -> None:
        super().__init__()
        self.shift, self.spread = shift, spread

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + self._draw(x)) + self._draw(x)

    def _draw(self, x: Tensor) -> Tensor:
        shape = (1, x.shape[1], *[1] * (x.dim() - 2))
        mean = (2 * torch.rand(shape, dtype=x.dtype) - 1) * self.shift
        return mean + torch.rand(shape, dtype=x.dtype) * self.spread * torch.randn_like(x)


def run(cell: Cell, tools: Tools) -> Outcome:
    data = tools.data()
    model = network(cell, data, batch_norm=cell.factors["network"] != WITHOUT)
    initialize(model)
    if cell.factors["network"] == NOISY:
        add_noise(model)
    recipe = Recipe.of(cell)
    source = Images(data, recipe.batch_size, cell.seed, prepare=standardized(data))

    def probe(model: nn.Module, step: int) -> dict[str, float]:
        return along_gradient(model, source.batch(step), recipe.lr, step)

    return fit(model, recipe, source, tools.keeper, probe)


def add_noise(model: nn.Sequential) -> None:
    """Puts noise between each batch normalization and its activation."""
    for name, layer in list(model.named_children()):
        if isinstance(layer, BatchNorm1d | BatchNorm2d):
            layer.activation = None
            setattr(model, name, nn.Sequential(layer, Noise(), nn.ReLU()))


def along_gradient(model: nn.Module, batch: Batch, lr: float, seed: int) -> dict[str, float]:
    """Santurkar's probes of a batch's loss in train mode, at the weights and at steps from them down the gradient.

    Args:
        model: left as it was; its weights move meanwhile.
        batch: input and labels.
        lr: the steps are `STRIDES` times this times the gradient.
        seed: of the noise, which is the same for every step.

    Returns:
        "loss range": the largest loss minus the smallest, in nats. "gradient change": the largest norm of a change of
        the gradient. "smoothness": the largest such norm over the length of its step.

    Reference: Santurkar et al. 2018, arXiv:1805.11604, sec. 3.1 and fig. 4.
    """
    parameters = list(model.parameters())
    loss, gradient = loss_and_gradient(model, batch, parameters, seed)
    length = norm(gradient)
    losses, changes, slopes = [loss], [0.0], [0.0]
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        for stride in STRIDES:
            with torch.no_grad():
                for parameter, start, slope in zip(parameters, kept, gradient, strict=True):
                    parameter.copy_(start - stride * lr * slope)
            there, other = loss_and_gradient(model, batch, parameters, seed)
            losses.append(there)
            changes.append(norm([a - b for a, b in zip(other, gradient, strict=True)]))
            slopes.append(changes[-1] / (stride * lr * length) if length else 0.0)
    finally:
        with torch.no_grad():
            for parameter, start in zip(parameters, kept, strict=True):
                parameter.copy_(start)
    return {
        "loss range": largest(losses) - min(losses),
        "gradient change": largest(changes),
        "smoothness": largest(slopes),
    }


def norm(tensors: Sequence[Tensor]) -> float:
    """Of all together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def largest(numbers: Sequence[float]) -> float:
    """nan if one is."""
    return math.nan if any(map(math.isnan, numbers)) else max(numbers)


def typical(run: Run, series: str) -> float:
    """The geometric mean of a series over training, of what is finite and positive."""
    found = [math.log(y) for y in run.series[series].y if y]
    return math.exp(sum(found) / len(found)) if found else math.nan


def judge(results: Results) -> Judgement:
    def pair(network: str) -> dict[str, Setting]:
        return {"network": network}

    smoother = [
        ratio(results, partial(typical, series=name), pair(WITHOUT), pair(WITH), f"{title.lower()}, without ÷ with BN")
        for name, (title, _) in PROBES.items()
    ]
    accuracies = [
        difference(
            results,
            "test accuracy",
            pair(one),
            pair(other),
            f"test accuracy, {one} − {other}",
            "points",
            scale=100,
            decides=False,
        )
        for one, other in ((WITH, WITHOUT), (NOISY, WITHOUT), (NOISY, WITH))
    ]
    measures = {title: partial(typical, series=name) for name, (title, _) in PROBES.items()} | {
        "test accuracy": "test accuracy"
    }
    caption = (
        f"On the next training batch, in train mode, at {', '.join(f'{s:g}' for s in STRIDES)} times the learning "
        "rate down the gradient. Lines are means over seeds, bands the range; what is not finite is left out."
    )
    figures = [
        Figure("The loss along the gradient, over training", caption, curves(results, "network", PROBES, log="y")),
        Figure("Training", CAPTION, curves(results, "network")),
    ]
    words = "; ".join(map(in_words, [*smoother, *accuracies[1:]]))
    table = means(results, ["network"], measures, "Geometric means over training, means over seeds")
    return Judgement(judged(smoother), f"{words}.", [*smoother, *accuracies], figures, [table])


GRID = {"network": [WITHOUT, WITH, NOISY]}
SETTINGS = {"architecture": "cnn", "batch_size": 64, "optimizer": "sgd", "lr": 0.05}

CLAIM = Claim(
    name="landscape",
    question="Is the loss smoother along its gradient with batch normalization?",
    source="Santurkar et al. 2018, arXiv:1805.11604, sec. 2.1, 3.1 and fig. 4",
    factors="batch normalization before each ReLU, or none; or with noise of changing mean and spread after it",
    equal="initial weights (He's), data and its order, plain SGD at one rate, steps",
    measure=(
        "at points along training, from half to four learning rates down the gradient: range of the loss; largest "
        "change of the gradient; and that change over the distance (effective smoothness); geometric means over "
        "training"
    ),
    rule="supported if the 95% intervals of all three ratios lie above no effect; contradicted if all lie below",
    would_change=(
        "another rate, which is also the distance looked at; noise of another strength; the smoothness is measured "
        "in the space of the weights, where scale-invariant weights that grow make it smaller by themselves"
    ),
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(2, GRID, {**SETTINGS, "architecture": "dense", "width": 16, "depth": 2, "steps": 4}),
        "quick": Preset(3, GRID, {**SETTINGS, "steps": 100, "evaluate_every": 10}),
        "full": Preset(5, GRID, {**SETTINGS, "epochs": 2, "evaluate_every": 20, "data": "mnist"}),
    },
    run=run,
    judge=judge,
)
