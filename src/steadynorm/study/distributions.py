"""How the distributions inside a network move while it trains: percentiles, and drift in standard deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PERCENTILES = (15, 50, 85)
TYPICAL = 0
"""The unit whose percentiles are followed: the first of its layer, which nothing sets apart from the others."""


class Watched(nn.Module):
    """A network whose hidden layers are watched.

    What an evaluation is compared with, the one before it, is kept as buffers, so that a training that was interrupted
    goes on with it.

    Args:
        network: the network.
        layers: by name, the modules whose inputs are watched, each (N, units).
        units: of every watched layer.
    """

    before: Tensor
    seen: Tensor

    def __init__(self, network: nn.Module, layers: Mapping[str, nn.Module], units: int) -> None:
        super().__init__()
        self.network = network
        self._layers = dict(layers)
        self.register_buffer("before", torch.zeros(len(layers), 2, units))
        self.register_buffer("seen", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def look(self, inputs: Tensor, follow: Sequence[str]) -> dict[str, float]:
        """Percentiles of the followed layers' typical unit, and every layer's drift since the last look.

        In eval mode, on inputs that should be the same every time; the first look gives no drift.
        """
        found = self.inputs_of_layers(inputs)
        figures = {
            f"{name}, {percentile}th percentile": value
            for name in follow
            for percentile, value in zip(PERCENTILES, percentiles(found[name][:, TYPICAL]), strict=True)
        }
        now = torch.stack([torch.stack([x.mean(0), x.std(0, correction=0)]) for x in found.values()])
        if self.seen:
            each = zip(found, self.before, now, strict=True)
            figures |= {f"{name}, drift": drift(*old, *new) for name, old, new in each}
        self.before.copy_(now)
        self.seen.fill_(True)
        return figures

    @torch.no_grad()
    def inputs_of_layers(self, inputs: Tensor) -> dict[str, Tensor]:
        """What goes into each watched module in eval mode, (N, units); the mode is left as it was."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda module, args: found.update({name: args[0].detach()})

        hooks = [module.register_forward_pre_hook(keep(name)) for name, module in self._layers.items()]
        training = self.training
        try:
            self.eval()
            self.network(inputs)
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()
        return {name: found[name] for name in self._layers}


def percentiles(values: Tensor) -> list[float]:
    """The 15th, 50th and 85th percentiles, interpolated linearly."""
    return torch.quantile(values.double(), torch.tensor(PERCENTILES, dtype=torch.float64) / 100).tolist()


def drift(mean: Tensor, std: Tensor, new_mean: Tensor, new_std: Tensor) -> float:
    r"""How far distributions moved, in standard deviations, as the mean over units.

    .. math:: \sqrt{\frac{(\mu' - \mu)^2 + (\sigma' - \sigma)^2}{(\sigma^2 + \sigma'^2) / 2}}

    The numerator is the 2-Wasserstein distance between normal distributions. Scaling a unit's values changes nothing.

    Args:
        mean, std: of each unit before, (units,).
        new_mean, new_std: after.
    """
    mean, std, new_mean, new_std = (x.double() for x in (mean, std, new_mean, new_std))
    moved = (new_mean - mean).square() + (new_std - std).square()
    scale = (std.square() + new_std.square()) / 2
    return float((moved / scale.clamp_min(torch.finfo(torch.float64).tiny)).sqrt().mean())
