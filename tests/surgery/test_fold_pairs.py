"""Each kind of pair, against the equations in float64: outputs of the folded model on other data than the example's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steadynorm as sn

from ..support.foldable import randomised


def normalized(x: Tensor, norm: Any) -> Tensor:
    """Algorithm 2 of the paper, by hand."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = (x - norm.running_mean.reshape(shape)) / torch.sqrt(norm.running_var.reshape(shape) + norm.eps)
    if norm.weight is not None:
        y = y * norm.weight.reshape(shape)
    return y if norm.bias is None else y + norm.bias.reshape(shape)


def gone(folded: sn.surgery.Folded, *names: str) -> None:
    """These norms, and no others, were folded."""
    assert {pair.norm for pair in folded.pairs} == set(names)


def close(actual: Tensor, expected: Tensor) -> None:
    """To some roundings of float64 of the largest value."""
    assert actual.shape == expected.shape
    difference = (actual - expected).detach().abs().max()
    assert float(difference) <= 1e-12 * float(expected.detach().abs().max())


@st.composite
def convolutions(draw: Any, transposed: bool | None = None) -> tuple[nn.Module, Tensor]:
    """A float64 convolution of any dimensions, groups, strides and paddings, and an input."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    into, out = (groups * draw(st.integers(1, 2)) for _ in range(2))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride, dilation = ([draw(st.integers(1, 2)) for _ in range(dims)] for _ in range(2))
    padding = [draw(st.integers(0, size - 1)) for size in kernel]
    given_: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    name = "Conv"
    if draw(st.booleans()) if transposed is None else transposed:
        name = "ConvTranspose"
        given_["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    elif draw(st.booleans()):
        given_["padding_mode"] = draw(st.sampled_from(["reflect", "replicate", "circular"]))
    torch.manual_seed(draw(st.integers(0, 100)))
    conv = getattr(nn, f"{name}{dims}d")(into, out, kernel, bias=draw(st.booleans()), **given_)
    return conv.double(), torch.randn(2, into, *[6] * dims, dtype=torch.float64)


def norm_of(draw: Any, channels: int, dims: int) -> nn.Module:
    affine, seed = draw(st.booleans()), draw(st.integers(0, 100))
    library = draw(st.sampled_from([nn, sn]))
    return randomised(getattr(library, f"BatchNorm{dims}d")(channels, eps=1e-3, affine=affine), seed).double()


@given(convolutions(), st.data())
@settings(deadline=None, max_examples=60)
def test_convolution_then_norm(drawn: tuple[nn.Module, Tensor], data: Any) -> None:
    conv, x = drawn
    norm = norm_of(data.draw, conv.out_channels, x.dim() - 2)  # type: ignore[arg-type]
    folded = sn.fold(nn.Sequential(conv, norm).eval(), x)
    gone(folded, "1")
    assert type(folded.model[1]) is nn.Identity  # type: ignore[index]
    other = torch.randn_like(x)
    close(folded.model(other), normalized(conv(other), norm))


@given(convolutions(transposed=False), st.data())
@settings(deadline=None, max_examples=60)
def test_norm_then_convolution(drawn: tuple[nn.Module, Tensor], data: Any) -> None:
    """Right wherever padding shows the norm's own values; zeros beside normalized values cannot be folded."""
    conv, x = drawn
    norm = norm_of(data.draw, conv.in_channels, x.dim() - 2)  # type: ignore[arg-type]
    folded = sn.fold(nn.Sequential(norm, conv).eval(), x)
    if any(conv.padding) and conv.padding_mode == "zeros":  # type: ignore[arg-type]
        gone(folded)
        assert folded.kept[0].reason.endswith("'1' pads by zeros, which the norm would have shifted")
    else:
        gone(folded, "0")
    other = torch.randn_like(x)
    close(folded.model(other), conv(normalized(other, norm)))


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_padding_by_name(padding: str) -> None:
    """ "valid" pads nothing; "same" with a kernel of one neither."""
    x = torch.randn(2, 3, 6, 6).double()
    for kernel in (1, 3):
        model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, kernel, padding=padding))).double()
        folded = sn.fold(model, x)
        gone(folded, *(["0"] if kernel == 1 or padding == "valid" else []))
        close(folded.model(x), model(x))


def test_norm_then_transposed_convolution() -> None:
    """Only where every output sees every input once."""
    x = torch.randn(2, 4, 6, 6).double()
    for transposed, folds in ((nn.ConvTranspose2d(4, 6, 1, groups=2), True), (nn.ConvTranspose2d(4, 6, 2, 2), False)):
        model = randomised(nn.Sequential(nn.BatchNorm2d(4), transposed)).double()
        folded = sn.fold(model, x)
        gone(folded, *(["0"] if folds else []))
        close(folded.model(x), model(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
def test_linear(bias: bool, dropped: bool) -> None:
    """Before, after, and through what does nothing in eval mode."""
    between = [nn.Dropout(0.5), nn.Identity()] if dropped else []
    layers = [nn.BatchNorm1d(5), *between, nn.Linear(5, 7, bias=bias), *between, nn.BatchNorm1d(7, affine=False)]
    model = randomised(nn.Sequential(*layers)).double()
    x = torch.randn(9, 5).double()
    folded = sn.fold(model, x)
    gone(folded, "0", str(len(layers) - 1))
    linear = next(layer for layer in layers if isinstance(layer, nn.Linear))
    close(folded.model(x[:4]), normalized(linear(normalized(x[:4], layers[0])), layers[-1]))


def flat(kind: str) -> nn.Module:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.flatten, self.linear = nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 4 * 5, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            y = {"module": self.flatten, "function": lambda y: torch.flatten(y, 1), "method": lambda y: y.flatten(1)}[
                kind
            ](y)
            return self.linear(y)

    return randomised(Flat()).double()


@pytest.mark.parametrize("kind", ["module", "function", "method"])
def test_norm_then_flatten_then_linear(kind: str) -> None:
    model, x = flat(kind), torch.randn(2, 3, 4, 5).double()
    folded = sn.fold(model, x)
    gone(folded, "norm")
    close(folded.model(x), model.linear(normalized(x, model.norm).flatten(1)))  # type: ignore[operator]


def test_flattened_otherwise_is_kept() -> None:
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(2), nn.Linear(20, 6))).double()
    gone(sn.fold(model, torch.randn(2, 3, 4, 5).double()))


def test_channels_that_are_not_the_last_are_kept() -> None:
    """Linear layers work on the last dimension, norms on the second; here both have 5."""
    for layers in ((nn.BatchNorm1d(5), nn.Linear(5, 5)), (nn.Linear(5, 5), nn.BatchNorm1d(5))):
        folded = sn.fold(randomised(nn.Sequential(*layers)), torch.randn(4, 5, 5))
        gone(folded)
        assert "not the norm's on the example, of 3 dimensions" in folded.kept[0].reason


def test_a_convolution_without_batch_is_kept() -> None:
    """The norm takes its channels for a batch."""
    gone(sn.fold(randomised(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))), torch.randn(3, 6)))


@pytest.mark.parametrize("affine", [True, False])
def test_norm_then_norm(affine: bool) -> None:
    """The second goes into the first; where there is a convolution, both go into that."""
    first, second = nn.BatchNorm2d(3, affine=affine), sn.BatchNorm2d(3, activation="relu")
    x = torch.randn(2, 3, 4, 4).double()
    merged = sn.fold(randomised(nn.Sequential(first, second)).double(), x)
    gone(merged, "1")
    close(merged.model(x), normalized(normalized(x, first), second).relu())
    into = nn.Sequential(nn.Conv2d(3, 3, 1), first, second).double()
    both = sn.fold(into.eval(), x)
    gone(both, "1", "2")
    close(both.model(x), into(x))


def test_norm_takes_a_norm_in_and_goes_into_the_next_layer() -> None:
    """Norm, norm, convolution: nothing is left but the convolution; another norm after it goes there too."""
    layers = [nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]
    model = randomised(nn.Sequential(*layers)).double()
    x = torch.randn(2, 3, 6, 6).double()
    folded = sn.fold(model, x)
    gone(folded, "0", "1", "3")
    close(folded.model(x), model(x))
