"""Does batch normalization help a small 2-D CNN without pooling?"""

from __future__ import annotations

import torch
from torch import Tensor

from ...records import Cell
from ..claim import WITH, Claim, Outcome, Preset
from ..models.systems import conv2d_net
from ..sources import Images, pictures
from ..tools import Tools
from ..training import Recipe, fit
from ..tuning import EQUAL, NETWORKS, RULE, judge_with_or_without

SIZE = 28


def colour(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float32 (N, 3, 28, 28) in [0, 1]: grey repeated, of larger pictures the middle."""
    top, left = ((length - SIZE) // 2 for length in images.shape[2:])
    middle = images[..., top : top + SIZE, left : left + SIZE]
    return pictures(middle.expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)


def run(cell: Cell, tools: Tools) -> Outcome:
    recipe = Recipe.of(cell)
    source = Images(tools.data(), recipe.batch_size, cell.seed, prepare=colour)
    return fit(conv2d_net(batch_norm=cell.factors["network"] == WITH), recipe, source, tools.keeper)


RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
SETTINGS = {"batch_size": 64, "optimizer": "adam"}

CLAIM = Claim(
    name="conv2d",
    question="Does batch normalization make a small 2-D CNN without pooling learn faster and better?",
    source="introductions to batch normalization, whose examples show this network; Ioffe & Szegedy 2015, sec. 3.2",
    factors="batch normalization before each ReLU, or none; the learning rate",
    equal=f"{EQUAL}. Grey pictures are repeated over the three channels; larger ones are cut to their middle 28x28",
    measure="test accuracy after the last step; steps to the other network's best validation accuracy",
    rule=f"{RULE}, supported if the 95% intervals of both over paired seeds lie above no effect; contradicted if both "
    "lie below",
    would_change="harder data, a deeper network, longer training",
    data=("digits", "mnist", "fashion-mnist", "cifar10"),
    presets={
        "smoke": Preset(1, {"network": NETWORKS, "lr": [1e-3]}, {**SETTINGS, "steps": 4, "evaluate_every": 2}),
        "quick": Preset(3, {"network": NETWORKS, "lr": RATES}, {**SETTINGS, "epochs": 3, "evaluate_every": 10}),
        "full": Preset(5, {"network": NETWORKS, "lr": RATES}, {**SETTINGS, "epochs": 10, "data": "cifar10"}),
    },
    run=run,
    judge=judge_with_or_without,
)
