"""scikit-learn's digits, which come with the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import MissingExtraError
from .images import Part, hold_out

TITLE = "digits (scikit-learn, resized to 28x28)"


def load() -> tuple[Part, Part]:
    """1,797 digits of 8x8, resized to 28x28; a fifth of them for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the digits data set", "study") from error
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(small, size=(28, 28), mode="bilinear").round().to(torch.uint8)
    return hold_out(Part(images, torch.from_numpy(labels).long()), 5)
