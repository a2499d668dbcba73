"""How a refusal is tested: beside torch's, and with nothing changed by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steadynorm import SteadynormError


def refused_by_both(theirs: Callable[[], Any], ours: Callable[[], Any], message: str) -> None:
    """Both raise; whoever catches torch's exception catches ours, which is a SteadynormError too."""
    with pytest.raises(Exception) as torch_info:
        theirs()
    with pytest.raises(type(torch_info.value), match=message) as info:
        ours()
    assert isinstance(info.value, SteadynormError)


def expect_unchanged(layer: torch.nn.Module, call: Callable[[], Any]) -> None:
    """The state dict is the same bit for bit after the call."""
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    modes = [module.training for module in layer.modules()]
    call()
    after = layer.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert torch.equal(tensor.view(-1).view(torch.uint8), after[name].view(-1).view(torch.uint8)), name
    assert modes == [module.training for module in layer.modules()]
