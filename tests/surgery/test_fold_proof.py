"""What the proof needs: inference mode, float64, channels each for itself, and what it does when it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.surgery.example import Example
from steadynorm.surgery.folding import RETRIES, carry
from steadynorm.surgery.folding.proof import Record, compare

from ..support.foldable import randomised
from .test_fold_flow import Model, X


def two() -> nn.Module:
    """Two convolutions with a norm each."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    return randomised(nn.Sequential(*layers))


def test_inside_inference_mode() -> None:
    """Whose tensors do not count changes; the copy can be used outside, and trained on."""
    with torch.inference_mode():
        model, x = two(), torch.randn(2, 3, 6, 6)
        folded = sn.fold(model, x)
        expected = model(x)
        assert torch.is_inference_mode_enabled()
    assert [pair.norm for pair in folded.pairs] == ["1", "4"]
    torch.testing.assert_close(folded.model(x.clone()).detach(), expected.clone())
    assert not any(value.is_inference() for value in folded.model.state_dict().values())


def test_a_forward_in_inference_mode() -> None:
    class Inference(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            with torch.inference_mode():
                return super().forward(input)

    model = randomised(Inference(*two().children()))
    folded = sn.fold(model, X)
    assert len(folded.pairs) == 2
    torch.testing.assert_close(folded.model(X), model(X))

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if isinstance(y, Tensor):
                y.clamp_(min=-1e9)
            return self.norm(y)

    assert "is used 2 times on the example" in sn.fold(randomised(Changed()), X).kept[0].reason


def test_a_norm_with_which_the_proof_fails_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are folded."""
    right = carry.after

    def wrong(weights: Any, norm: Any) -> Any:
        return right(weights, norm._replace(shift=norm.shift + 1e-6) if len(norm.shift) == 3 else norm)

    monkeypatch.setattr(carry, "after", wrong)
    model = two()
    folded = sn.fold(model, X)
    assert [pair.norm for pair in folded.pairs] == ["4"]
    ((name, reason),) = folded.kept
    assert name == "1"
    assert reason.startswith("the proof failed with it: an error of ")
    assert "in float64, of 1e-09 allowed" in reason
    assert isinstance(folded.model[1], nn.BatchNorm2d)  # type: ignore[index]
    torch.testing.assert_close(folded.model(X), model(X))


@pytest.mark.parametrize("pairs", [2, RETRIES + 3])
def test_wrong_arithmetic_everywhere_is_an_error(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as nothing is left, or after some tries."""
    right = carry.after
    monkeypatch.setattr(carry, "after", lambda w, m: right(w, m._replace(shift=m.shift + 1e-6)))
    layers = [layer for _ in range(pairs) for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Tanh())]
    with pytest.raises(RuntimeError, match=r"at most 1e-09 in float64, got .* at the norm '1'. The model is as before"):
        sn.fold(randomised(nn.Sequential(*layers)), X)


def test_a_weight_that_16_bits_cannot_hold_stays_unfolded() -> None:
    model = two()
    with torch.no_grad():
        model[0].weight.mul_(1e3)  # type: ignore[index,operator,union-attr]
        model[1].running_var.fill_(1e-4)  # type: ignore[index,operator,union-attr]
        model[1].weight.fill_(10)  # type: ignore[index,operator,union-attr]
    folded = sn.fold(model.half(), X.half() * 1e-3)
    assert [pair.norm for pair in folded.pairs] == ["4"]
    assert "an error of inf in the model's dtype" in folded.kept[0].reason


def test_each_channel_counts_in_float64() -> None:
    """One that is a millionth of the largest is compared with itself."""

    def error(by_channel: bool) -> float:
        class Shifted(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return self.place(x)  # type: ignore[operator]

        model = Shifted()
        model.place = nn.Identity()
        value = torch.tensor([[1e5], [1.0]], dtype=torch.float64).T
        other = value + torch.tensor([[0.0, 1e-3]])
        theirs = Record({"place": [value]}, [value])
        example = Example((other,), {})
        return compare("fold", theirs, model, example, by_channel=by_channel).at["place"]

    assert error(True) == pytest.approx(1e-3)
    assert error(False) == pytest.approx(1e-8)


def test_padding_that_was_set_later() -> None:
    conv = nn.Conv2d(3, 4, 3)
    conv.padding = (1, 1)
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), conv))
    assert "pads by zeros, which the norm would have shifted" in sn.fold(model, X).kept[0].reason
    conv.padding = 0  # type: ignore[assignment]
    assert len(sn.fold(model, X).pairs) == 1


def test_a_weight_that_is_a_property_is_kept() -> None:
    class Scaled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 3, 1)
            self.inner = self._parameters.pop("weight")

        @property
        def weight(self) -> Tensor:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
            return self.inner * 2  # type: ignore[operator]

        @weight.setter
        def weight(self, value: Tensor) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
            self._parameters["weight"] = value  # type: ignore[assignment]

    model = randomised(nn.Sequential(Scaled(), nn.BatchNorm2d(3)))
    assert "its weight or bias is no parameter or buffer" in sn.fold(model, X).kept[0].reason


def test_weights_read_behind_isinstance() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        z = m.n(m.a(x))
        return z + m.a.weight.mean() * 0 if isinstance(x, Tensor) else z

    assert "the forward reads 'a.weight' itself on the example" in dict(sn.fold(Model(forward), X).kept)["n"]


def test_several_examples_prove_more() -> None:
    """A branch that one example does not take keeps its norms; the other's is folded by the other."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = two(), two()

        def forward(self, x: Tensor) -> Tensor:
            return self.large(x) if x.shape[2] > 4 else self.small(x)

    model = Branches().eval()
    for x, name in ((X, "large"), (X[:, :, :3], "small")):
        folded = sn.fold(model, x)
        assert {pair.norm for pair in folded.pairs} == {f"{name}.1", f"{name}.4"}
        for other in (X, X[:, :, :3]):
            torch.testing.assert_close(folded.model(other), model(other), rtol=1e-4, atol=1e-5)
    both = sn.fold(sn.fold(model, X).model, X[:, :, :3])
    assert not both.kept
