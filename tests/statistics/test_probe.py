"""Layers with a forward of their own: measured if they normalize what they are given, refused by name if not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.errors import ModelError

from ..support.models import timm
from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal


class Same(sn.BatchNorm1d):
    def forward(self, x: Tensor, **more: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, **more)


class White(sn.WhiteningBatchNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).relu()


class Own(nn.BatchNorm1d):
    """Without torch's function."""

    def forward(self, input: Tensor) -> Tensor:
        y = (input - self.running_mean[:, None]) / (self.running_var[:, None] + self.eps).sqrt()  # type: ignore[index]
        return torch.tanh(y)


class Transposing(nn.BatchNorm1d):
    """Channels last."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(-1, 1)).movedim(1, -1)


class Shifting(sn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input + 1)


class Scaling(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


class Activating(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.relu(input))


class Twice(sn.BatchNorm1d):
    def _step(self, who: object, x: Tensor, apply: Any, core: Any, running: Any) -> Any:
        return super()._step(who, x * x, apply, core, running)


NORMALIZING = {
    "renamed": Same,
    "own arithmetic": Own,
    "whitening": lambda c: White(c, 2),
    "exact whitening": lambda c: White(c, 2, method="zca"),
    "timm": lambda c: timm().layers.BatchNormAct2d(c),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", NORMALIZING)
def test_what_normalizes_its_input_is_measured(kind: str, sequential: bool, dtype: torch.dtype) -> None:
    layer = NORMALIZING[kind](4).to(dtype)
    x = normal(30, 4, 2, 3, dtype=dtype) if kind == "timm" else normal(30, 4, 5, dtype=dtype)
    sn.recalibrate_(nn.Sequential(layer), x[:0].split(1) + x.split(8), sequential=sequential)
    values = x.double().movedim(1, 0).flatten(1)
    agree(layer.running_mean.double(), values.mean(1), rtol=1e-5)
    if kind.endswith("whitening"):
        agree(layer.running_covariance.double(), torch.stack([g.cov() for g in values.split(2)]), rtol=1e-4, atol=1e-4)
    else:
        agree(layer.running_var.double(), values.var(1), rtol=1e-5)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("kind", [Transposing, Shifting, Scaling, Activating, Twice])
def test_what_rearranges_it_is_refused(kind: Any, length: int, sequential: bool) -> None:
    """By its name and with the remedy, also where lengths and channels are as many."""
    model = nn.Sequential(nn.Identity(), kind(4)).double()
    x = normal(8, 6, length) if kind is Transposing and length == 5 else normal(8, 4, length)
    x = normal(8, 5, 4) if kind is Transposing and length == 5 else x

    def call() -> None:
        with pytest.raises(
            ValueError, match=rf"recalibrate_: expected .*C=4, got .*test_probe\.{kind.__name__} at '1', whose own"
        ) as info:
            sn.recalibrate_(model, [x], sequential=sequential)
        assert isinstance(info.value, ModelError)

    expect_unchanged(model, call)


def test_an_input_by_another_name_is_refused() -> None:
    layer = Same(3).double()
    with pytest.raises(ValueError, match=r"C=3, got .*Same at the model itself"):
        sn.recalibrate_(layer, [{"x": normal(8, 3)}])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_told_apart(dtype: torch.dtype) -> None:
    x = normal(30, 4, 4, dtype=dtype)
    sn.recalibrate_(Same(4).to(dtype), [x])
    for kind in (Transposing, Shifting, Scaling):
        with pytest.raises(ModelError, match="whose own forward"):
            sn.recalibrate_(kind(4).to(dtype), [x])


def test_other_arguments_reach_the_layer() -> None:
    layer, x = Same(3).double(), normal(5, 3, 6)
    lengths = torch.tensor([6, 2, 0, 1, 5])
    sn.recalibrate_(layer, [x], call=lambda model, batch: model(batch, mask=lengths))
    real = x.movedim(1, 0)[:, torch.arange(6) < lengths[:, None]]
    agree(layer.running_mean, real.mean(1))
