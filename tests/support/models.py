"""Networks of torchvision and timm, which take the norm layer as an argument."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

NormLayer = Callable[..., torch.nn.Module]


def torchvision() -> ModuleType:
    """torchvision, or a skip.

    A wheel built for another torch cannot load its compiled part, which none of its networks need; its import then
    fails for want of two operators' schemas, which are given here.
    """
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def timm() -> ModuleType:
    """timm, which imports torchvision, or a skip."""
    torchvision()
    return pytest.importorskip("timm")


def resnet18(norm_layer: NormLayer) -> torch.nn.Module:
    """torchvision's, 11 million parameters, 20 norms."""
    return torchvision().models.resnet18(norm_layer=norm_layer, num_classes=5)


def resnet10t(norm_layer: NormLayer) -> torch.nn.Module:
    """timm's, 5 million parameters, 14 norms; many of timm's other networks wrap the norm they are given."""
    return timm().create_model("resnet10t", norm_layer=norm_layer, num_classes=5)
