"""Does batch normalization help a small 1-D CNN on sequences?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...records import Cell
from ..claim import WITH, Claim, Outcome, Preset
from ..models.systems import conv1d_net
from ..sources import Images
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import EQUAL, NETWORKS, RULE, judge_with_or_without

LENGTH = 28


def profiles(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float32 (N, 3, 28): the mean ink, in [0, 1], of each column of each third of the height.

    A sequence from left to right with three channels: the upper, middle and lower third. Colours are averaged, pictures
    wider than 28 lose equally many columns left and right, and thirds of a height that 3 does not divide overlap by a
    row.
    """
    grey = images.float().div_(255).mean(1, keepdim=True)
    first = (grey.shape[3] - LENGTH) // 2
    return F.adaptive_avg_pool2d(grey[..., first : first + LENGTH], (3, LENGTH)).squeeze(1)


def run(cell: Cell, tools: Tools) -> Outcome:
    recipe = Recipe.of(cell)
    source = Images(tools.data(), recipe.batch_size, cell.seed, prepare=profiles)
    return fit(conv1d_net(batch_norm=cell.factors["network"] == WITH), recipe, source, tools.keeper)


RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
SETTINGS = {"batch_size": 64, "optimizer": "adam"}

CLAIM = Claim(
    name="conv1d",
    question="Does batch normalization make a small 1-D CNN learn faster and better?",
    source="introductions to batch normalization, whose examples show this network; Ioffe & Szegedy 2015, sec. 3.2",
    factors="batch normalization before each ReLU, or none; the learning rate",
    equal=f"{EQUAL}. The data is pictures as sequences: 28 columns, with the mean ink of their upper, middle and lower "
    "third as channels",
    measure="test accuracy after the last step; steps to the other network's best validation accuracy",
    rule=f"{RULE}, supported if the 95% intervals of both over paired seeds lie above no effect; contradicted if both "
    "lie below",
    would_change="sequences that are not pictures read column by column, a deeper network, longer training",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(2, {"network": NETWORKS, "lr": [1e-3, 1e-2]}, {**SETTINGS, "epochs": 1}),
        "quick": Preset(3, {"network": NETWORKS, "lr": RATES}, {**SETTINGS, "epochs": 10, "evaluate_every": 10}),
        "full": Preset(5, {"network": NETWORKS, "lr": RATES}, {**SETTINGS, "epochs": 10, "data": "mnist"}),
    },
    run=run,
    judge=judge_with_or_without,
)
