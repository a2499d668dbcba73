"""from_keras, to_keras, from_flax and to_flax without those frameworks: settings, round trips, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import steadynorm as sn
from steadynorm.conventions.layers import complement

from ..support.refusals import expect_unchanged

ONES = [np.ones(3, np.float32)] * 4
MOMENTA = st.decimals(0, 1, places=6).map(float)


def there_and_back(name: str, layer: nn.Module, count: int | None = None) -> Any:
    if name == "keras":
        return sn.from_keras(*sn.to_keras(layer, count=count), ndim=4, count=count)
    return sn.from_flax(*sn.to_flax(layer, count=count), ndim=4, count=count)


def layer_of(momentum: float, eps: float, affine: bool, bias: bool, dtype: torch.dtype, seed: int) -> sn.BatchNorm2d:
    layer = sn.BatchNorm2d(4, eps, momentum, affine, bias=bias, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 3, generator=generator)
    return layer


def expect_same(found: nn.Module, expected: nn.Module, rtol: float = 0) -> None:
    assert repr(found) == repr(expected)
    state = found.state_dict()
    assert list(state) == list(expected.state_dict())
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", ["keras", "flax"])
@given(MOMENTA, st.floats(0, 0.1), st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_there_and_back_is_the_same_layer(
    name: str, momentum: float, eps: float, affine: bool, bias: bool, dtype: torch.dtype
) -> None:
    """Bit for bit; with a count, up to rounding."""
    layer = layer_of(momentum, eps, affine, bias, dtype, seed=0)
    expect_same(there_and_back(name, layer), layer)
    expect_same(there_and_back(name, layer, count=7), layer, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["keras", "flax"])
def test_a_shift_without_a_scale_there_and_back(name: str) -> None:
    """A weight of ones that is never trained is no scale, and is none when it comes back."""
    layer = layer_of(0.1, 1e-5, True, True, torch.float32, seed=1)
    assert layer.weight is not None
    nn.init.ones_(layer.weight)
    assert there_and_back(name, layer).weight.requires_grad
    layer.weight.requires_grad_(False)
    found = there_and_back(name, layer)
    expect_same(found, layer)
    assert not found.weight.requires_grad
    assert found.bias.requires_grad
    names = list(sn.to_flax(layer).variables["params"]), len(sn.to_keras(layer).weights)
    assert names == (["bias"], 3)


@given(MOMENTA)
def test_momentum_as_people_write_it(momentum: float) -> None:
    assert complement(complement(momentum)) == momentum
    assert complement(momentum) == pytest.approx(1 - momentum, abs=1e-15)


def test_settings_in_each_framework_s_terms() -> None:
    layer = sn.BatchNorm2d(3, eps=1e-3, momentum=0.1)
    assert sn.to_keras(layer).config == {"axis": -1, "momentum": 0.9, "epsilon": 1e-3, "center": True, "scale": True}
    settings = sn.to_flax(layer, axis=1).settings
    assert settings == {"axis": 1, "momentum": 0.9, "epsilon": 1e-3, "use_bias": True, "use_scale": True}
    defaults: Any = sn.from_keras({}, np.stack(ONES), ndim=2)  # type: ignore[arg-type]
    assert (type(defaults), defaults.momentum, defaults.eps) == (sn.BatchNorm1d, 0.01, 1e-3)
    stats = {"mean": ONES[0], "var": ONES[0]}
    defaults = sn.from_flax({}, {"params": {"scale": ONES[0], "bias": ONES[0]}, "batch_stats": stats}, ndim=5)
    assert (type(defaults), defaults.momentum, defaults.eps) == (sn.BatchNorm3d, 0.01, 1e-5)


@pytest.mark.parametrize("library", [sn, nn])
def test_synchronized_layers(library: Any) -> None:
    layer = library.SyncBatchNorm(3, momentum=0.5)
    config, weights = sn.to_keras(layer)
    assert config["synchronized"] is True
    settings, variables = sn.to_flax(layer, axis_name="devices")
    assert settings["axis_name"] == "devices"
    for found in (sn.from_keras(config, weights), sn.from_flax(settings, variables)):
        assert type(found) is sn.SyncBatchNorm
        assert found.momentum == 0.5


def test_count_turns_one_variance_into_the_other() -> None:
    """A batch of 4 values a channel: Keras keeps its variance divided by 4, torch divided by 3."""
    batch = torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=torch.float64)
    theirs = [batch.mean(0).numpy(), batch.var(0, correction=0).numpy()]
    config = {"center": False, "scale": False}
    found: Any = sn.from_keras(config, theirs, ndim=2, count=4)
    torch.testing.assert_close(found.running_var, batch.var(0))
    kept: Any = sn.from_keras(config, theirs, ndim=2)
    assert torch.equal(kept.running_var, batch.var(0, correction=0))
    assert sn.to_keras(found, count=4).weights[1] == pytest.approx(theirs[1])
    assert sn.to_flax(found).variables["batch_stats"]["var"] == found.running_var.numpy()


def test_arrays_are_copies_and_the_layer_is_left_as_it_is() -> None:
    layer = layer_of(0.1, 1e-5, True, True, torch.float64, seed=0)

    def overwrite() -> None:
        for array in sn.to_keras(layer).weights:
            array[:] = 7
        sn.to_flax(layer).variables["params"]["scale"][:] = 7

    expect_unchanged(layer, overwrite)
    weights = sn.to_keras(layer).weights
    found = sn.from_keras({}, weights, ndim=4)
    weights[0][:] = 7
    assert torch.equal(found.get_parameter("weight"), layer.get_parameter("weight"))


def test_sixteen_bit_weights_are_widened() -> None:
    found = sn.from_keras({}, [array.astype(np.float16) for array in ONES], ndim=2)
    assert {tensor.dtype for tensor in (*found.parameters(), found.get_buffer("running_var"))} == {torch.float32}
    layer = nn.BatchNorm1d(3).bfloat16()
    assert {array.dtype for array in sn.to_keras(layer).weights} == {np.dtype(np.float32)}


def test_an_axis_in_a_list_of_one() -> None:
    """As Keras 2 writes it."""
    assert type(sn.from_keras({"axis": [3]}, ONES, ndim=4)) is sn.BatchNorm2d
    assert sn.to_keras(sn.BatchNorm2d(3), axis=[3]).config["axis"] == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "weights", "settings", "message"),
    [
        (nn.Linear(1, 1), None, {}, r"expected a keras\.layers\.BatchNormalization or its configuration, got Linear"),
        ({}, None, {"ndim": 4}, r"expected 4 weights \(gamma, beta, moving_mean, moving_variance\), got 0\. Build"),
        ({"scale": False}, ONES, {"ndim": 4}, r"expected 3 weights \(beta, moving_mean, moving_variance\), got 4"),
        ({}, [*ONES[:3], np.ones(4)], {"ndim": 4}, r"one value a channel each, got gamma \(3,\), .*variance \(4,\)"),
        ({}, [np.ones((3, 2))] * 4, {"ndim": 4}, r"one value a channel each, got gamma \(3, 2\)"),
        ({}, ONES, {}, r"expected ndim from 2 to 5, got None\. It is the number of dimensions"),
        ({}, ONES, {"ndim": 6}, "expected ndim from 2 to 5, got 6"),
        ({}, ONES, {"ndim": 4, "count": 1}, "expected count >= 2, got 1"),
        ({"axis": [1, 2]}, ONES, {"ndim": 4}, r"statistics over all axes but one, got axis=\[1, 2\]"),
        ({"renorm": True}, ONES, {"ndim": 4}, "expected a layer without renorm, got renorm=True"),
        (
            {"virtual_batch_size": 8},
            ONES,
            {"ndim": 4},
            "normalizes whole batches, got virtual_batch_size=8, whose",
        ),
        ({}, ONES, {"ndim": 4, "count": 4.5}, r"expected count >= 2, got 4\.5"),
        ({"epsilon": -1.0}, ONES, {"ndim": 4}, "expected eps >= 0, got -1.0"),
        ({"momentum": 1.5}, ONES, {"ndim": 4}, r"expected momentum in \[0, 1\], got -0\.5"),
    ],
)
def test_from_keras_refuses(config: Any, weights: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        sn.from_keras(config, weights, **settings)
    assert isinstance(info.value, sn.SteadynormError)


@pytest.mark.parametrize(
    ("module", "variables", "message"),
    [
        (nn.BatchNorm2d(3), {}, r"expected a BatchNorm of flax\.linen .*, got BatchNorm2d, which has no axis"),
        ({}, {"params": {"scale": ONES[0]}}, r"expected variables\['params'\]\['bias'\] of shape \(C,\), got none"),
        ({"use_scale": False}, {"params": {"scale": ONES[0]}}, "to be missing with use_scale=False, got one"),
        ({"axis": (1, 2)}, {}, r"statistics over all axes but one, got axis=\(1, 2\)"),
        ({"axis_index_groups": [[0], [1]]}, {}, r"expected one group of devices, got axis_index_groups=\[\[0\], \[1\]"),
    ],
)
def test_from_flax_refuses(module: Any, variables: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        sn.from_flax(module, variables, ndim=4)
    assert isinstance(info.value, sn.SteadynormError)


@pytest.mark.parametrize("to", [sn.to_keras, sn.to_flax])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (sn.BatchNorm2d(3, activation="relu"), "expected a layer without an activation, got activation='relu' inside"),
        (sn.BatchNorm2d(3, track_running_stats=False), "expected running statistics, got track_running_stats=False"),
        (sn.BatchNorm2d(3, momentum=None), "that move by a momentum, got momentum=None, the average of all batches"),
        (sn.GhostBatchNorm2d(3, 4), r"got steadynorm\.nn\.ghost\.GhostBatchNorm2d, which has no counterpart"),
        (sn.BatchRenorm2d(3), "BatchRenorm2d, which has no counterpart"),
        (sn.WhiteningBatchNorm(3), "WhiteningBatchNorm, which has no counterpart"),
        (nn.LayerNorm(3), "LayerNorm, which has no counterpart"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d, which has no counterpart"),
    ],
)
def test_refuses_layers_without_counterpart(to: Any, layer: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        to(layer)
    assert isinstance(info.value, sn.SteadynormError)


def test_refuses_other_settings() -> None:
    layer = sn.BatchNorm2d(3)
    for to in (sn.to_keras, sn.to_flax):
        with pytest.raises(ValueError, match=f"{to.__name__}: expected count >= 2, got 0"):
            to(layer, count=0)
        with pytest.raises(ValueError, match=r"over all axes but one, got axis=\[1, 2\]"):
            to(layer, axis=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected axis_name for a SyncBatchNorm, .* got 'i' for BatchNorm2d"):
        sn.to_flax(layer, axis_name="i")
    with pytest.raises(ValueError, match=r"expected axis_name for a SyncBatchNorm, .* got None for SyncBatchNorm"):
        sn.to_flax(sn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match=r"FrozenBatchNorm, which has no counterpart"):
        sn.to_flax(sn.FrozenBatchNorm(3))


def test_numbers_of_numpy_and_tensors_that_ask_for_gradients() -> None:
    batch = {"axis": np.int64(-1)}
    found = sn.from_keras(batch, ONES, ndim=4, count=np.int32(4))  # type: ignore[arg-type]
    torch.testing.assert_close(found.get_buffer("running_var"), torch.full((3,), 4 / 3))
    assert type(sn.to_keras(found, axis=np.int64(3)).config["axis"]) is int  # type: ignore[arg-type, call-arg]
    asking = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    variables = {"params": {"scale": asking, "bias": asking}, "batch_stats": {"mean": ONES[0], "var": ONES[0]}}
    found = sn.from_flax({}, variables, ndim=4)
    assert torch.equal(found.get_parameter("weight"), asking)
    assert found.get_parameter("weight") is not asking
