"""Training images distorted at random, each in its own way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def centred(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float32 in [-2, 2], middle grey at 0, channels last."""
    return images.float().sub_(127.5).div_(63.75).contiguous(memory_format=torch.channels_last)


def distort(x: Tensor, generator: torch.Generator, *, pixels: int, light: float, mirror: bool) -> Tensor:
    """Images moved, mirrored, and changed in contrast and brightness.

    Args:
        x: (N, C, H, W), centred.
        generator: all that is drawn comes from it.
        pixels: the farthest that an image is moved, up or down and to a side; what comes in is middle grey.
        light: contrast is multiplied by up to 1 ± light, and then brightness moved by up to ± light.
        mirror: left and right are swapped in half of the images.
    """
    examples, _, height, width = x.shape
    padded = F.pad(x, (pixels,) * 4)
    down, right = torch.randint(2 * pixels + 1, (2, examples, 1, 1), generator=generator)
    rows, columns = down + torch.arange(height)[None, :, None], right + torch.arange(width)[None, None, :]
    if mirror:
        swapped = torch.rand(examples, 1, 1, generator=generator) < 0.5
        columns = torch.where(swapped, columns.flip(2), columns)
    moved = padded.permute(0, 2, 3, 1)[torch.arange(examples)[:, None, None], rows, columns].permute(0, 3, 1, 2)
    contrast, brightness = light * (2 * torch.rand(2, examples, 1, 1, 1, generator=generator) - 1)
    return moved * (1 + contrast) + brightness
