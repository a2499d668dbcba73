"""The gradient of a model's loss on a batch, taken without changing the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn

from .sources import Batch


def loss_and_gradient(
    model: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter], seed: int = 0
) -> tuple[float, list[Tensor]]:
    """Mean cross-entropy of a batch in train mode, and its gradient; running statistics and the random state stay.

    Args:
        model: left as it was.
        batch: input and labels.
        parameters: of the model, to take the gradient towards.
        seed: of what the model draws at random, so that losses can be compared.
    """
    training = model.training
    normalized = any(isinstance(layer, sn.BatchNorm1d | sn.BatchNorm2d) for layer in model.modules())
    model.train()
    try:
        with (
            sn.hold_statistics(model) if normalized else nullcontext(),
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
        ):
            torch.manual_seed(seed)
            loss = F.cross_entropy(model(batch[0]), batch[1])
            return loss.item(), list(torch.autograd.grad(loss, parameters))
    finally:
        model.train(training)
