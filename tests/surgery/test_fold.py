"""fold as a verb: the model is left alone, the report is true, the proof can fail, and refusals say what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.surgery import folding as package

from ..support.foldable import PreActivation, UNet, randomised

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))  # type: ignore[return-value]


def everything(model: nn.Module) -> list[Any]:
    """State, modes, hooks and the modules themselves."""
    return [
        [(name, value.clone()) for name, value in model.state_dict().items()],
        [(name, id(module), module.training, len(module._forward_hooks)) for name, module in model.named_modules()],
        [(name, id(value), value.requires_grad, value.grad) for name, value in model.named_parameters()],
    ]


def unchanged(model: nn.Module, before: list[Any]) -> bool:
    after = everything(model)
    same = all(torch.equal(a[1], b[1]) for a, b in zip(before[0], after[0], strict=True))
    return same and before[1:] == after[1:]


def test_the_model_is_left_alone() -> None:
    """And so are the caller's random numbers."""
    model = small()
    before, state = everything(model), torch.get_rng_state()
    folded = sn.fold(model, X)
    assert unchanged(model, before)
    assert torch.equal(state, torch.get_rng_state())
    shared = {value.data_ptr() for value in model.state_dict().values()}
    assert not shared & {value.data_ptr() for value in folded.model.state_dict().values()}


@pytest.mark.parametrize("stage", ["trace", "watch", "plan", "carry_out_", "compare", "_report"])
def test_an_exception_in_the_middle_changes_nothing(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("in the middle")

    model = small()
    before = everything(model)
    monkeypatch.setattr(package, stage, fail)
    with pytest.raises((KeyError, ValueError)):
        sn.fold(model, X)
    assert unchanged(model, before)


def test_the_copy() -> None:
    """Same class and tree, in eval mode; its checkpoint fits another fold, though that has other values."""
    folded = sn.fold(small(), X)
    assert [type(layer) for layer in folded.model] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.BatchNorm2d]  # type: ignore[attr-defined]
    assert not any(module.training for module in folded.model.modules())
    fresh = sn.fold(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval(), X).model
    fresh.load_state_dict(folded.model.state_dict(), strict=True)
    assert torch.equal(fresh(X), folded.model(X))


def test_modes_stay() -> None:
    """Dropout that was left on is on in the copy, and then is no identity."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.Dropout()).eval()
    for index in (1, 3):
        model[index].train()
    folded = sn.fold(model, X)
    assert folded.kept[0].reason.startswith("it comes after '1' (Dropout)")
    assert [layer.training for layer in folded.model] == [False, True, False, True]  # type: ignore[attr-defined]


def test_parameters_stay_parameters() -> None:
    """Of the weight's kind: a folded model can be trained on; a frozen weight stays frozen."""
    model = small()
    model[0].weight.requires_grad_(False)
    assert [p.requires_grad for p in sn.fold(model, X).model[0].parameters()] == [False, False]  # type: ignore[index]
    sn.fold(small(), X).model(X).sum().backward()


def test_report() -> None:
    """Printed and as numbers; errors are those of float32 and float64 roundings, not 0."""
    folded = sn.fold(small(), X)
    (pair,), (kept,) = folded.pairs, folded.kept
    assert (pair.norm, pair.into, pair.kind) == ("1", ("0",), "Conv2d → BatchNorm2d")
    assert 0 < pair.error < 2e-6
    assert 0 < pair.error_in_float64 < 1e-14  # type: ignore[operator]
    assert (kept.norm, kept.reason) == ("3", "it comes after '2' (ReLU); the end of the forward follows it")
    lines = str(folded).splitlines()
    assert lines[0].startswith("1 of 2 norms folded; largest error of the output ")
    assert lines[2].split() == ["norm", "into", "kind", "error", "in", "float64"]
    assert lines[3].startswith("1     0     Conv2d → BatchNorm2d  ")
    assert lines[-1] == "3     it comes after '2' (ReLU); the end of the forward follows it"


def test_wrong_arithmetic_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a millionth, which float32's rounding would hide."""
    right = package.carry.after
    monkeypatch.setattr(package.carry, "after", lambda w, m: right(w, m._replace(shift=m.shift + 1e-6)))
    model = small()
    before = everything(model)
    message = r"fold: expected an error of at most 1e-09 in float64, got .* at the norm '1'. The model is as before"
    with pytest.raises(RuntimeError, match=message):
        sn.fold(model, X)
    assert unchanged(model, before)


def test_tolerance() -> None:
    """bfloat16's own rounding is above a thousandth, and allowed by default."""
    model = small().bfloat16()
    assert sn.fold(model, X.bfloat16()).error < 0.05
    with pytest.raises(RuntimeError, match=r"at most 0.0001 in the model's dtype, .* Pass a larger tolerance if that"):
        sn.fold(model, X.bfloat16(), tolerance=1e-4)
    with pytest.raises(ValueError, match="fold: expected a positive tolerance, got 0"):
        sn.fold(model, X.bfloat16(), tolerance=0)
    with pytest.raises(ValueError, match="fold: expected a positive tolerance, got True"):
        sn.fold(model, X.bfloat16(), tolerance=True)


def test_overflow_is_found() -> None:
    """A weight that float16 cannot hold, where the original goes in two steps."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.constant_(model[0].weight, 1e3)  # type: ignore[arg-type]
    model[1].running_var.fill_(1e-6)  # type: ignore[union-attr,operator]
    with pytest.raises(RuntimeError, match="in the model's dtype, got inf at the output"):
        sn.fold(model.half(), X.half() * 1e-4)


def test_not_finite_proves_nothing() -> None:
    with pytest.raises(RuntimeError, match="expected finite values on the example, got inf or nan at the output"):
        sn.fold(small(), X / 0)


def test_nothing_to_compare() -> None:
    class Classes(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).argmax(1)

    with pytest.raises(RuntimeError, match=r"expected a model that returns floating-point tensors, .* Wrap the model"):
        sn.fold(Classes(*small()).eval(), X)


def test_a_forward_that_looks_at_its_norm() -> None:
    """It cannot run without; that is an error, not a wrong model."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.norm.momentum

    with pytest.raises(
        RuntimeError, match=r"the folded model cannot be run .* no attribute 'momentum'.* what a norm has"
    ):
        sn.fold(Looks().eval(), X)


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: Tensor | None = None, double: bool = False) -> dict[str, Any]:
        y = self.norm(self.conv(x))
        if double:
            y = y * 2
        return {"y": [y if scale is None else y * scale], "classes": y.argmax(1), "name": "any"}


@pytest.mark.parametrize(
    "example", [X, (X,), [X], (X, torch.tensor(2.0)), {"x": X, "double": True}, (X, None, True)], ids=range(6)
)
def test_inputs_and_outputs_of_every_form(example: Any) -> None:
    model = randomised(Inputs())
    folded = sn.fold(model, example)
    assert [pair.norm for pair in folded.pairs] == ["norm"]
    given = {"args": (example,)} if isinstance(example, Tensor) else {}
    args = () if isinstance(example, dict) else given.get("args", tuple(example))
    named = example if isinstance(example, dict) else {}
    torch.testing.assert_close(folded.model(*args, **named)["y"], model(*args, **named)["y"], rtol=1e-4, atol=1e-5)


def test_a_model_that_float64_cannot_run() -> None:
    """Judged in its own dtype alone."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.float()) @ torch.ones(6, 2)

    folded = sn.fold(randomised(Single()), X)
    assert folded.error_in_float64 is None
    assert folded.pairs[0].error_in_float64 is None
    assert "(not run in float64)" in str(folded)
    assert str(folded).splitlines()[-1].startswith("not run in float64: the model raised RuntimeError: ")


def test_noise_and_counters_in_eval_mode() -> None:
    """Both models draw the same numbers, and what they count is not counted in the model or its copy."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.body(x) + torch.rand_like(self.body(x))

    model = randomised(Noisy())
    folded = sn.fold(model, X)
    assert folded.error < 1e-6
    assert (float(model.calls), float(folded.model.calls)) == (0, 0)  # type: ignore[arg-type]


def test_a_fold_of_a_fold_has_nothing_left() -> None:
    """A copy of a copy has nothing left to fold but what was kept."""
    folded = sn.fold(UNet().eval(), torch.randn(1, 3, 16, 16))
    assert (len(folded.pairs), folded.kept) == (12, ())
    with pytest.raises(ValueError, match="got a UNet without any"):
        sn.fold(folded.model, torch.randn(1, 3, 16, 16))


def test_pre_activation() -> None:
    """Norms before a ReLU stay, unless a convolution comes before them."""
    model = randomised(PreActivation())
    folded = sn.fold(model, X)
    assert [pair.norm for pair in folded.pairs] == ["blocks.0.norm2", "blocks.1.norm2"]
    assert {kept.norm for kept in folded.kept} == {"blocks.0.norm1", "blocks.1.norm1", "norm"}
    assert all("relu() follows it" in kept.reason for kept in folded.kept)
    torch.testing.assert_close(copy.deepcopy(folded.model)(X), model(X), rtol=1e-4, atol=1e-5)
