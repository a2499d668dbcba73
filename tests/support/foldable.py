"""Networks to fold: statistics away from where they start, a UNet, a pre-activation ResNet, those of others."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .models import timm, torchvision


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, as if trained: means of standard deviation 0.5, variances and weights from 0.5 to 2."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                mean.normal_(0, 0.5, generator=generator)
                var.uniform_(0.5, 2, generator=generator)
                if isinstance(weight := layer.weight, Tensor):
                    weight.uniform_(0.5, 1.5, generator=generator)
                if isinstance(bias := layer.bias, Tensor):
                    bias.normal_(0, 0.5, generator=generator)
    return model.eval()


def by_name(name: str, **settings: Any) -> nn.Module:
    """A network of torchvision's, or of timm's as timm/NAME, with random weights and 10 classes."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        return timm().create_model(name.removeprefix("timm/"), num_classes=10, **settings)
    return getattr(torchvision().models, name)(num_classes=10, **settings)


def torch_fuse(model: nn.Module) -> nn.Module:
    """torch.fx's own folding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it warns of torch.jit
        from torch.fx.experimental.optimization import fuse
    return fuse(model)


class UNet(nn.Module):
    """Two levels; goes up by transposed convolutions in groups, with a norm each, and joins by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _double(3, 8), _double(8, 16), _double(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = _up(32, 16), _up(16, 8)
        self.join2, self.join1 = _double(32, 16), _double(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        d = self.join2(torch.cat([b, self.up2(c)], 1))
        return self.head(self.join1(torch.cat([a, self.up1(d)], 1)))


def _double(into: int, out: int) -> nn.Sequential:
    first = (nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))
    return nn.Sequential(*first, nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _up(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(into, out, 2, 2, groups=4), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class PreActivation(nn.Module):
    """A small pre-activation ResNet (He et al. 2016, arXiv:1603.05027): norm, ReLU, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(_PreBlock(8, 8), _PreBlock(8, 16))
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class _PreBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(into), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.short = nn.Conv2d(into, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return self.conv2(torch.relu(self.norm2(y))) + self.short(x)
