"""What tracing does not show: outputs that are kept, uses behind isinstance, hooks of containers, changes of an input.

In each, the example hides the mistake that folding would be: by zeros, by signs, or as its first call shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.foldable import randomised
from .test_fold_flow import Model, X


def kept(forward: Callable[..., Any], example: Any = X, **reasons: str) -> None:
    """Nothing is folded, for these reasons."""
    folded = sn.fold(Model(forward), example)
    assert not folded.pairs
    found = dict(folded.kept)
    for name, reason in reasons.items():
        assert reason in found[name], found


class Two(Model):
    """Whose forward takes two arguments."""

    def forward(self, x: Tensor, h: Tensor) -> Any:  # type: ignore[override]
        return self.by(self, x, h)


def test_an_output_kept_for_the_next_call() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.n(y)
        if getattr(m, "last", None) is not None:
            z = z + m.last
        m.last = y
        return z

    kept(forward, n="something keeps the output of 'a' after the forward")


def test_an_output_kept_in_a_list() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        m.last = [y]
        return m.n(y)

    kept(forward, n="something keeps the output of 'a' after the forward")


class Stashing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.y = self.a(x)
        return self.n(self.y)


class Reading(nn.Module):
    """Cannot be traced, and reads what its child left behind, times what is 0 on the example."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Stashing()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = self.block(x)
        if bool(x.sum() > -1e9):
            z = z + self.block.y * h
        del self.block.y
        return z


def test_an_output_read_by_a_parent_that_is_not_traced() -> None:
    folded = sn.fold(randomised(Reading()), (X, torch.zeros(1)))
    assert "the output of 'block.a' is used 2 times on the example" in folded.kept[0].reason


@pytest.mark.parametrize("reads", [False, True])
def test_a_hook_on_a_container(reads: bool) -> None:
    """It sees the convolution's output, or changes it; it never sees what torch.fx traces with."""
    seen: list[Any] = []

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        seen.append(type(output))
        return None if reads else output * 1

    model = randomised(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)))
    model[0].register_forward_hook(hook)  # type: ignore[operator]
    folded = sn.fold(model, X)
    assert "it comes after hooks of '0'" in folded.kept[0].reason
    assert set(seen) == {Tensor}


def test_a_hook_on_a_container_s_inputs() -> None:
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))))
    model[1].register_forward_pre_hook(lambda *_: None)  # type: ignore[operator]
    folded = sn.fold(model, X)
    assert [pair.norm for pair in folded.pairs] == ["1.1"]
    assert "hooks of '1' follows it" in folded.kept[0].reason


def test_a_use_that_torch_fx_does_not_see() -> None:
    """Zeros on the example hide it from the proof."""

    def forward(m: Any, x: Tensor, h: Tensor) -> Tensor:
        y = m.a(x)
        z = m.n(y)
        return z + y * h if isinstance(h, Tensor) else z

    folded = sn.fold(Two(forward), (X, torch.zeros(1)))
    assert "the output of 'a' is used 2 times on the example, once as torch.fx traced it" in dict(folded.kept)["n"]

    def behind(m: Any, x: Tensor, h: Tensor) -> Tensor:
        y = m.n(x)
        z = m.a(y)
        return z + y * h if isinstance(h, Tensor) else z

    folded = sn.fold(Two(behind), (X, torch.zeros(1)))
    assert "the output of 'n' is used 2 times on the example" in dict(folded.kept)["n"]


def test_a_use_hidden_by_scale() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.n(y)
        return torch.cat([z * 1e12, y], 1) if isinstance(x, Tensor) else z

    kept(forward, n="the output of 'a' is used 2 times on the example")


def test_a_flattened_output_used_once_more() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(108, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            y = self.norm(x).flatten(1)
            z = self.linear(y)
            return z + y[:, :4] * h if isinstance(h, Tensor) else z

    folded = sn.fold(randomised(Flat()), (X, torch.zeros(1)))
    assert "the output of 'norm' is used 2 times on the example" in folded.kept[0].reason


def test_dropout_that_is_off_is_no_use() -> None:
    """Nor is asking for a shape."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = nn.functional.dropout(m.a(x), 0.5, m.training)
        return m.n(y) if y.shape is not None and y.dim() is not None else y

    assert len(sn.fold(Model(forward), X).pairs) == 1


class Several(Model):
    """`*more` is one value to torch.fx, and no tuple."""

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        y = self.a(x)
        z = self.n(y)
        return z + y * more[1] if isinstance(more, tuple) else z


def test_several_tensors_in_one_argument() -> None:
    folded = sn.fold(Several(torch.relu), (X, torch.zeros(1), torch.zeros(1)))
    assert "the output of 'a' is used 2 times on the example" in dict(folded.kept)["n"]


def test_an_empty_example_proves_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"fold: expected values to compare, got none .* Give .* example_inputs"):
        sn.fold(Model(lambda m, x: m.n(m.a(x))), torch.zeros(0, 3, 6, 6))


def test_changes_of_what_the_norm_was_given() -> None:
    """With positive values a ReLU changes nothing: the proof would pass."""
    x, changed = X.abs() + 1, "something is changed in place between it and 'a'"

    def overload(m: Any, x: Tensor) -> Tensor:
        z = m.n(x)
        torch.ops.aten.relu_.default(x)
        return m.a(z)

    kept(overload, x, n=changed)

    def packet(m: Any, x: Tensor) -> Tensor:
        z = m.n(x)
        torch.ops.aten.relu_(x)
        return m.a(z)

    kept(packet, x, n=changed)
    relu = nn.Sequential(nn.ReLU(inplace=True))

    def container(m: Any, x: Tensor) -> Tensor:
        z = m.n(x)
        relu(x) if isinstance(x, Tensor) else None
        return m.a(z)

    kept(container, x, n="what 'n' was given is changed before 'a' is called")

    def hidden(m: Any, x: Tensor) -> Tensor:
        z = m.n(x)
        if isinstance(x, Tensor):
            x.clamp_(min=0)
        return m.a(z)

    kept(hidden, x, n="what 'n' was given is changed before 'a' is called")

    def hidden_from_the_first(m: Any, x: Tensor) -> Tensor:
        z = m.m(m.n(x))
        if isinstance(x, Tensor):
            x.clamp_(min=0)
        return m.a(z)

    folded = sn.fold(Model(hidden_from_the_first), x)
    assert "n" not in {pair.norm for pair in folded.pairs}


def test_a_container_that_changes_in_place_in_a_coarse_trace() -> None:
    """Where another module without norms keeps the fine one from working, containers are called whole."""

    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.gate = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), Stubborn()
            self.relu = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)))

        def forward(self, x: Tensor) -> Tensor:
            z = self.norm(x)
            self.relu(x)
            return self.gate(self.conv(z))

    folded = sn.fold(randomised(Coarse()), X.abs() + 1)
    assert "something is changed in place between it and 'conv'" in folded.kept[0].reason


class Skipping(nn.Module):
    """A default argument that its parent does not give."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.a(x)
        return self.n(y) if skip is None else self.n(y + skip)


class Branching(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if bool(x.sum() > -1e9) else x


def test_arguments_of_a_child_are_those_of_the_example() -> None:
    model = randomised(Branching(Skipping()))
    folded = sn.fold(model, X)
    assert [pair.norm for pair in folded.pairs] == ["block.n"]
    torch.testing.assert_close(folded.model(X), model(X))
    assert folded.pairs[0].note == "inside a forward that is not traced: proven on the example's branch only"
    assert folded.pairs[0].note in str(folded)
    assert sn.fold(randomised(Skipping()), X).pairs[0].note == ""


def test_fresh_inputs_twice() -> None:
    """Nothing of the example, or of the first call, stays in the copy."""
    model = randomised(Branching(Skipping()))
    folded = sn.fold(model, X).model
    for seed in (1, 2):
        x = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
