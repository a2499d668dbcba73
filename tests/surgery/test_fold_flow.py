"""Which layer feeds which: layers called twice, outputs used twice, operations in between, untraceable forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn

from ..support.foldable import randomised, torch_fuse

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Convolutions a, b and norms n, m of three channels, in whatever order the function has."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.by = forward
        randomised(self)

    def forward(self, x: Tensor) -> Any:
        return self.by(self, x)


def error(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float((model(X) - other(X)).abs().max())


def check(forward: Callable[[Any, Any], Any], gone: str, **reasons: str) -> None:
    """Exactly these norms are gone, the others are kept for these reasons, and the outputs agree."""
    model = Model(forward)
    folded = sn.fold(model, X)
    kept = dict(folded.kept)
    assert {pair.norm for pair in folded.pairs} == set(gone.split()), kept
    for name, reason in reasons.items():
        assert reason in kept[name]
    assert error(model, folded.model) < 1e-5


def test_a_reused_convolution() -> None:
    """Followed by a norm once and by none the other time; torch.fx's fuse gives the norm to both."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.n(m.a(x)) + m.a(x * 2)

    model = Model(forward)
    assert error(model, torch_fuse(model)) > 0.3
    check(forward, "", n="'a' is called 2 times, and not always before this norm", m="not called on the example")


def test_a_reused_convolution_always_before_the_same_norm() -> None:
    """As a head is called on each level of a pyramid."""
    check(lambda m, x: m.n(m.a(x)) + m.n(m.a(x * 2)), "n")


def test_a_reused_convolution_before_two_norms() -> None:
    check(lambda m, x: m.n(m.a(x)) + m.m(m.a(x * 2)), "", n="'a' is called 2 times", m="'a' is called 2 times")


def test_a_norm_after_two_convolutions() -> None:
    """Both take it in."""
    check(lambda m, x: m.n(m.a(x)) + m.n(m.b(x)), "n")
    check(lambda m, x: m.n(m.a(x)) + m.n(x), "", n="it comes after the input 'x'")


def test_a_norm_before_two_convolutions() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.n(x)
        return m.a(y) + m.b(y)

    check(forward, "n")


def test_a_norm_before_a_convolution_and_something_else() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.n(x)
        return m.a(y) + y

    check(forward, "", n="add() follows it")


def test_an_output_used_twice() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.n(y) + y

    check(forward, "", n="the output of 'a' is used 2 times")


def test_an_output_used_twice_by_the_norm_itself() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), sn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y, residual=y)

    folded = sn.fold(randomised(Own()), X)
    assert folded.kept[0].reason.startswith("the output of 'conv' is used 2 times")


def test_a_convolution_s_output_that_is_returned() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x)
        return m.n(y), y

    assert sn.fold(Model(forward), X).kept[0].reason.startswith("the output of 'a' is used 2 times")


def test_asking_for_a_shape_is_no_use() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.n(y).reshape(y.shape[0], -1, y.size(2), y.size(3))

    check(forward, "n")


@pytest.mark.parametrize(
    "between", [torch.relu, lambda y: y + 1, lambda y: y.mul(2), lambda y: F.dropout(y, 0.5)], ids=range(4)
)
def test_operations_in_between(between: Callable[[Tensor], Tensor]) -> None:
    model = Model(lambda m, x: m.m(between(m.a(x))))
    assert {pair.norm for pair in sn.fold(model, X).pairs} == set()


def test_dropout_that_is_off_is_nothing() -> None:
    check(lambda m, x: m.n(F.dropout(m.a(x), 0.5, m.training)), "n")


def test_changes_in_place() -> None:
    """What the norm read is changed before the convolution runs: without the norm, that would read the change."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = x + 0
        y = m.n(x)
        x.mul_(3)
        return m.a(y) + x

    check(forward, "", n="something is changed in place between it and 'a'")

    def assigned(m: Any, x: Tensor) -> Tensor:
        x = x + 0
        y = m.n(x)
        x *= 3
        return m.a(y) + x

    check(assigned, "", n="something is changed in place between it and 'a'")

    def behind(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y += 1
        return m.n(y)

    check(behind, "", n="it comes after iadd()")

    def known_by_another_name(m: Any, x: Tensor) -> Tensor:
        y = z = m.a(x)
        y += 1
        return m.n(z)

    check(known_by_another_name, "", n="the output of 'a' is used 2 times")


def test_weights_that_the_forward_reads() -> None:
    check(lambda m, x: m.n(m.a(x)) * m.a.weight.mean(), "", n="the model reads 'a.weight' itself")
    check(lambda m, x: m.n(m.a(x)) * m.n.running_mean.sum(), "", n="reads 'n.running_mean' itself")


def test_tied_weights_are_untied() -> None:
    """Each convolution has its own norm, so that one weight becomes two."""
    model = Model(lambda m, x: m.n(m.a(x)) + m.m(m.b(x)))
    model.b.weight = model.a.weight
    folded = sn.fold(model, X)
    assert len(folded.pairs) == 2
    assert error(model, folded.model) < 1e-5
    assert model.b.weight is model.a.weight
    assert not torch.equal(folded.model.a.weight, folded.model.b.weight)  # type: ignore[arg-type]


def test_a_module_under_two_names() -> None:
    norm = nn.BatchNorm2d(3)
    model = randomised(nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU(), nn.Conv2d(3, 3, 1), norm))
    folded = sn.fold(model, X)
    assert [pair.into for pair in folded.pairs] == [("0", "3")]
    assert [type(folded.model[i]) for i in (1, 4)] == [nn.Identity] * 2  # type: ignore[index]
    assert error(model, folded.model) < 1e-5


def test_hooks_and_parametrizations_are_kept() -> None:
    seen: list[Tensor] = []
    hooked = Model(lambda m, x: m.n(m.a(x)))
    hooked.a.register_forward_hook(lambda *given: seen.append(given[2]))
    assert "'a' beside it cannot be changed: it has hooks" in sn.fold(hooked, X).kept[0].reason
    normed = Model(lambda m, x: m.n(m.a(x)))
    nn.utils.parametrizations.weight_norm(normed.a)
    assert "computed by a parametrization" in sn.fold(normed, X).kept[0].reason


def test_layers_with_a_forward_of_their_own_are_kept() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).abs()

    for layers in ((Scaled(3, 3, 1), nn.BatchNorm2d(3)), (nn.Conv2d(3, 3, 1), Own(3))):
        model = randomised(nn.Sequential(*layers))
        folded = sn.fold(model, X)
        assert "has a forward of its own" in folded.kept[0].reason
        assert error(model, folded.model) == 0


def test_norms_without_statistics_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert "no running statistics: every batch" in sn.fold(model, X).kept[0].reason


def test_a_norm_alone() -> None:
    folded = sn.fold(randomised(nn.BatchNorm2d(3)), X)
    assert folded.kept[0].reason.startswith("it is the whole model")
    assert str(folded).startswith("0 of 1 norms folded")
