"""Images made by hand, small enough to learn in a second."""

from __future__ import annotations

import torch

from steadynorm.study.data import ImageData, Part


def small_data(examples: int = 65) -> ImageData:
    """Images of 28x28 whose class is how bright they are."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randint(20, (count, 1, 28, 28), generator=generator)
        return Part((labels[:, None, None, None] * 24 + noise).to(torch.uint8), labels)

    return ImageData("small", "small", part(examples), part(20), part(20))
