"""Real networks, with random weights and statistics: how many norms go, why the others stay, and ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import steadynorm as sn

from ..support.foldable import PreActivation, UNet, by_name, randomised, torch_fuse

QUICK = {"resnet18": (20, 0), "mobilenet_v3_small": (34, 0), "timm/resnet10t": (14, 0), "regnet_y_400mf": (53, 0)}
SLOW = {
    "resnet50": (53, 0),
    "efficientnet_b0": (49, 0),
    "densenet121": (59, 62),
    "inception_v3": (94, 2),
    "timm/efficientnet_lite0": (49, 0),
    "timm/regnety_002": (44, 0),
    "timm/tf_efficientnet_b0": (44, 5),
    "timm/resnetv2_50": (32, 17),
}
"""Norms that are folded, and kept."""


def build(name: str) -> nn.Module:
    settings = {"init_weights": False} if name == "inception_v3" else {}
    return randomised(by_name(name, **settings))


def check(name: str, counts: tuple[int, int]) -> sn.surgery.Folded:
    """As many as expected; right on other data of another size, to half of float32's digits."""
    model = build(name)
    pixels = 96 if name == "inception_v3" else 64
    folded = sn.fold(model, torch.randn(1, 3, pixels, pixels))
    assert (len(folded.pairs), len(folded.kept)) == counts
    assert folded.error_in_float64 is not None
    assert folded.error_in_float64 < 1e-12
    assert max(pair.error for pair in folded.pairs) < 2e-5
    x = torch.randn(2, 3, pixels + 32, pixels)
    with torch.no_grad():
        expected = model(x)
        assert float((folded.model(x) - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    return folded


def test_the_page_s_table() -> None:
    """Its counts are those that the tests below find."""
    page = (Path(__file__).parents[2] / "docs" / "folding.md").read_text(encoding="utf-8")
    for name, (folded, kept) in {**QUICK, **SLOW}.items():
        assert f"| {name} | {folded} | {kept} |" in page


@pytest.mark.parametrize("name", QUICK)
def test_networks(name: str) -> None:
    check(name, QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_networks(name: str) -> None:
    folded = check(name, SLOW[name])
    reasons = {kept.reason for kept in folded.kept}
    if name == "densenet121":
        assert all("relu" in reason.lower() and reason.endswith("follows it") for reason in reasons)
    if name == "inception_v3":
        assert reasons == {"it is not called on the example"}
    if name == "timm/tf_efficientnet_b0":
        assert all("Conv2dSame has a forward of its own" in reason for reason in reasons)
    if name == "timm/resnetv2_50":
        assert all("its activation or residual comes before the next layer" in reason for reason in reasons)


def test_unet_with_grouped_transposed_convolutions() -> None:
    """torch's own fusion of these fails."""
    model = randomised(UNet())
    x = torch.randn(2, 3, 16, 16)
    folded = sn.fold(model, x)
    assert (len(folded.pairs), len(folded.kept)) == (12, 0)
    torch.testing.assert_close(folded.model(x), model(x), rtol=1e-4, atol=1e-5)
    up = model.up2
    with pytest.raises(RuntimeError, match="size of tensor a"):
        torch.nn.utils.fusion.fuse_conv_bn_eval(up[0], up[1], transpose=True)  # type: ignore[index]


def test_where_torch_s_fuse_is_right_ours_agrees() -> None:
    model = build("resnet18")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(sn.fold(model, x).model(x), torch_fuse(model)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "pre-activation", pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)])
def test_onnx(name: str, tmp_path: Path) -> None:
    """With a dynamic batch, at the exporter's own opset: what was folded is gone, and the runtime agrees."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = {"unet": UNet, "pre-activation": PreActivation}.get(name, lambda: build(name))()
    x = torch.randn(2, 3, 32, 32)
    folded = sn.fold(randomised(model), x)
    path = tmp_path / "folded.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own deprecations
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.onnx.export(folded.model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("BatchNormalization") == len(folded.kept)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        y = torch.randn(batch, 3, 32, 32)
        (actual,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
        expected = model(y).detach()
        assert float((torch.from_numpy(actual) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
