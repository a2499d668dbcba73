"""Batch normalization whose statistics stop partway through training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenFrom(nn.Sequential):
    """A network that from some training step on normalizes by its running statistics, which then stay.

    Weights go on learning. Steps are counted with the network's state.

    Args:
        layers: the network's.
        step: the first that trains with frozen statistics.
    """

    steps: Tensor

    def __init__(self, layers: nn.Sequential, step: int) -> None:
        super().__init__(*layers)
        self._from = step
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(int(self.steps) < self._from)
            self.steps += 1
        return super().forward(input)
