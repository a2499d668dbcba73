"""Copies and checkpoints: pickles, deep copies, and state dicts of torch's layers and ours in each other."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

import steadynorm as sn

from ..support.twins import SHAPES, agree, agree_in_state, normal, twins


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "leaky_relu", "negative_slope": 0.3, "momentum": None}], ids=str
)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_give_the_same_output(way: str, settings: dict[str, Any]) -> None:
    """The copy has the settings, the state and the mode, and shares no memory."""
    layer = sn.BatchNorm2d(3, **settings)
    layer(torch.randn(4, 3, 5, 5))
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert repr(twin) == repr(layer)
    x = torch.randn(4, 3, 5, 5)
    state = copy.deepcopy(layer.state_dict())
    y = twin(x)
    agree(dict(layer.state_dict()), dict(state), rtol=0, atol=0)
    agree(y, layer(x), rtol=0, atol=0)
    agree_in_state(twin, layer, rtol=0, atol=0)
    agree(twin.eval()(x), layer.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_checkpoints_both_ways(kind: str, settings: dict[str, Any]) -> None:
    """torch's checkpoint on disk loads strictly, with `weights_only`, into ours, and ours into torch's."""
    theirs, ours = twins(kind, **settings)
    with torch.no_grad():
        for layer in (theirs, ours):
            layer(normal(*SHAPES[kind][0], seed=3))
    for source, target in ((theirs, getattr(sn, kind)), (ours, getattr(torch.nn, kind))):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        loaded = target(3, dtype=torch.float64, **settings)
        loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
        agree_in_state(loaded, source, rtol=0, atol=0)


def test_checkpoint_without_a_count() -> None:
    """As torch saved them before version 2 of the layer: num_batches_tracked is missing, and stays what it was."""
    theirs, ours = twins()
    state = {k: v for k, v in theirs.state_dict().items() if k != "num_batches_tracked"}
    ours.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*running_var"):
        ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "running_var"})
