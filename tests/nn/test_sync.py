"""SyncBatchNorm with one process: plain batch normalization, and torch's contract."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch

import steadynorm as sn

from ..support.refusals import expect_unchanged, refused_by_both
from ..support.twins import agree, agree_in_state, normal, step

SHAPES = {"BatchNorm1d": (6, 3), "BatchNorm2d": (4, 3, 5, 6), "BatchNorm3d": (2, 3, 4, 3, 2)}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"activation": "silu"},
    {"momentum": None, "bias": False},
    {"affine": False, "track_running_stats": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_is_plain_without_a_group(kind: str, settings: dict[str, Any]) -> None:
    """Bit for bit, in train and eval mode, on any number of dimensions."""
    layer, plain = sn.SyncBatchNorm(3, **settings), getattr(sn, kind)(3, **settings)
    for training in (True, True, False):
        x = normal(*SHAPES[kind], dtype=torch.float32)
        agree(step(layer.train(training), x), step(plain.train(training), x), rtol=0, atol=0)
        agree_in_state(layer, plain, rtol=0, atol=0)


def test_masks_and_one_value_without_a_group() -> None:
    layer, plain = (kind(3, single_value="running") for kind in (sn.SyncBatchNorm, sn.BatchNorm1d))
    x, lengths = torch.randn(4, 3, 7), torch.tensor([7, 2, 0, 4])
    agree(layer(x, mask=lengths), plain(x, mask=lengths), rtol=0, atol=0)
    agree(layer(x[:1, :, 0]), plain(x[:1, :, 0]), rtol=0, atol=0)
    agree_in_state(layer, plain, rtol=0, atol=0)


def test_signature_starts_with_torchs() -> None:
    theirs = list(inspect.signature(torch.nn.SyncBatchNorm).parameters.values())
    ours = list(inspect.signature(sn.SyncBatchNorm).parameters.values())
    for our, their in zip(ours, theirs, strict=False):
        assert (our.name, our.kind, our.default) == (their.name, their.kind, their.default)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(theirs) :])


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str)
def test_checkpoints_both_ways(settings: dict[str, Any]) -> None:
    """State dicts are torch's, and load strictly; so do those of a plain layer, which this is without a group."""
    ours, theirs = (kind(3, **settings) for kind in (sn.SyncBatchNorm, torch.nn.SyncBatchNorm))
    ours(torch.randn(4, 3))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    agree_in_state(theirs, ours, rtol=0, atol=0)
    sn.SyncBatchNorm(3, **settings).load_state_dict(theirs.state_dict(), strict=True)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(way: Any) -> None:
    layer = sn.SyncBatchNorm(3, activation="relu", momentum=None)
    layer(torch.randn(4, 3))
    twin, x = way(layer), torch.randn(4, 3)
    assert repr(twin) == repr(layer)
    for name, value in twin.state_dict().items():
        assert value.data_ptr() != layer.state_dict()[name].data_ptr()
    agree(twin(x), layer(x), rtol=0, atol=0)
    agree_in_state(twin, layer, rtol=0, atol=0)


def test_is_a_batch_norm_that_ddp_takes_on_the_cpu() -> None:
    """DistributedDataParallel refuses instances of torch.nn.SyncBatchNorm unless they are on an accelerator."""
    layer = sn.SyncBatchNorm(3)
    assert isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    assert not isinstance(layer, torch.nn.SyncBatchNorm)


# ---- refusals ----


def test_one_dimension_is_refused() -> None:
    layer = sn.SyncBatchNorm(3)
    refused_by_both(
        lambda: torch.nn.SyncBatchNorm(3)(torch.randn(3)),
        lambda: expect_unchanged(layer, lambda: layer(torch.randn(3))),
        r"SyncBatchNorm\(num_features=3\): expected an input \(N, C, \*\), got 1-D input of shape \(3,\)",
    )


def test_one_value_a_channel_is_refused() -> None:
    layer = sn.SyncBatchNorm(3)
    with pytest.raises(ValueError, match=r"expected more than 1 value per channel when training"):
        expect_unchanged(layer, lambda: layer(torch.randn(1, 3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: sn.SyncBatchNorm(3, process_group=object()),
        lambda: sn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm1d(3), object()),
    ],
    ids=["layer", "conversion"],
)
def test_a_group_without_torch_distributed_is_refused(call: Any) -> None:
    with pytest.raises(RuntimeError, match=r"got a process_group, but torch\.distributed is not initialized") as info:
        call()
    assert isinstance(info.value, sn.SteadynormError)


def test_settings_are_checked() -> None:
    for settings in ({"eps": -1.0}, {"momentum": 2.0}, {"activation": "softmax"}, {"single_value": "guess"}):
        with pytest.raises(ValueError, match="SyncBatchNorm: expected"):
            sn.SyncBatchNorm(3, **settings)  # type: ignore[arg-type]
