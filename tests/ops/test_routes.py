"""The table: which route serves what, that calls follow it, and that nothing is waited for on an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import steadynorm as sn
from steadynorm import inputs, kernels, ops
from steadynorm.functional import batch_norm
from steadynorm.kernels import ACTIVATIONS, Apply, running
from steadynorm.kernels.running import Running
from steadynorm.ops import native, routes
from steadynorm.ops.routes import EAGER, FUNCTIONS, KERNELS, NATIVE, OPERATORS, STEP, choose

from ..support.cores import PlainCore, without_core

SHAPE = (6, 3, 4)
PLAIN = Apply(None, None, 1e-5)


def data(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values.to(dtype=dtype, device=device)


def kept(dtype: torch.dtype = torch.float32, **changes: Any) -> Running:
    return Running(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))._replace(**changes)


MASK = torch.ones(6, 1, 4, dtype=torch.bool)
TRAINING: dict[str, tuple[dict[str, Any], Apply, Running, tuple[str, str]]] = {
    "plain": ({}, PLAIN, kept(), (STEP, NATIVE)),
    "affine": ({}, PLAIN._replace(weight=torch.ones(3), bias=torch.ones(3)), kept(), (STEP, NATIVE)),
    "weight alone": ({}, PLAIN._replace(weight=torch.ones(3)), kept(), (STEP, NATIVE)),
    "no statistics": ({}, PLAIN, Running(), (STEP, NATIVE)),
    "statistics that stay": ({}, PLAIN, kept(moves=False), (STEP, NATIVE)),
    "guarded": ({}, PLAIN, kept(guarded=True), (STEP, NATIVE)),
    "momentum as a tensor": ({}, PLAIN, kept(momentum=torch.tensor(0.5)), (STEP, NATIVE)),
    "bfloat16": ({"dtype": torch.bfloat16}, PLAIN, kept(), (STEP, NATIVE)),
    "float16": ({"dtype": torch.float16}, PLAIN, kept(), (STEP, NATIVE)),
    "float64": ({"dtype": torch.float64}, PLAIN, kept(torch.float64), (STEP, NATIVE)),
    "statistics of two dtypes": ({}, PLAIN, kept(var=torch.ones(3).bfloat16()), (STEP, NATIVE)),
    "statistics with gaps": ({}, PLAIN, kept(mean=torch.zeros(6)[::2]), (KERNELS, NATIVE)),
    "moments collected": ({}, PLAIN, kept(collects=True), (KERNELS, KERNELS)),
    "mask": ({}, PLAIN._replace(mask=MASK), kept(), (STEP, KERNELS)),
    "residual": ({}, PLAIN._replace(residual=data(*SHAPE)), kept(), (STEP, NATIVE)),
    "float8": ({"dtype": torch.float8_e5m2}, PLAIN, kept(), (KERNELS, KERNELS)),
    "accelerator": ({"device": "meta"}, PLAIN, kept(), (NATIVE, NATIVE)),
    "accelerator, mask": ({"device": "meta"}, PLAIN._replace(mask=MASK.to("meta")), kept(), (KERNELS, KERNELS)),
    "accelerator, collected": ({"device": "meta"}, PLAIN, kept(collects=True), (KERNELS, KERNELS)),
}
"""How the data are drawn, what is applied, what becomes of statistics, and the route with the core and without it."""


@pytest.fixture(params=[True, False], ids=["core", "no core"])
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With a core and without one."""
    there = PlainCore()
    monkeypatch.setattr(kernels, "compiled", (lambda: there) if request.param else without_core)
    return request.param


@pytest.mark.parametrize("case", TRAINING.values(), ids=TRAINING)
def test_training(case: tuple, core: bool) -> None:
    drawn, apply, running, expected = case
    assert choose(data(*SHAPE, **drawn), apply, running).route == expected[0 if core else 1]


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("relu6", "hardswish")])
def test_every_activation(activation: str, core: bool) -> None:
    apply = PLAIN._replace(activation=activation)
    assert choose(data(*SHAPE), apply, kept()).route == (STEP if core else NATIVE)


@pytest.mark.parametrize("wants_gradient", [True, False])
def test_inference(wants_gradient: bool, core: bool) -> None:
    x, statistics = data(*SHAPE).requires_grad_(wants_gradient), (torch.zeros(3), torch.ones(3))
    call = choose(x, PLAIN, statistics=statistics)
    assert call.route == (KERNELS if core else NATIVE)
    assert call.differentiated == wants_gradient
    assert choose(x, PLAIN._replace(mask=MASK), statistics=statistics).route == KERNELS
    meta = (torch.zeros(3, device="meta"), torch.ones(3, device="meta"))
    assert choose(data(*SHAPE, device="meta"), PLAIN, statistics=meta).route == NATIVE


def test_groups(core: bool) -> None:
    assert choose(data(*SHAPE), PLAIN, groups=2).route == KERNELS
    own = torch.zeros(2, 3), torch.ones(2, 3)
    assert choose(data(*SHAPE), PLAIN, statistics=own, groups=2).route == KERNELS
    assert choose(data(*SHAPE), PLAIN, statistics=(own[0][:1], own[1][:1])).route == KERNELS


def test_empty_batch(core: bool) -> None:
    """torch's operator refuses it, and there is nothing to be fast at."""
    assert choose(data(0, 3, 4), PLAIN, kept()).route == KERNELS


def test_inference_tensor(core: bool) -> None:
    """The core would have moved statistics before autograd refuses to save what it is given."""
    with torch.inference_mode():
        x = data(*SHAPE)
    apply = PLAIN._replace(weight=torch.ones(3).requires_grad_())
    assert choose(x, apply, kept()).route == (KERNELS if core else NATIVE)
    assert choose(x, PLAIN, kept()).route == (STEP if core else NATIVE)


def test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is asked: a compiler's tensors have no memory to be looked at."""
    monkeypatch.setattr(routes, "in_graph", lambda: True)
    monkeypatch.setattr(routes, "has_memory", pytest.fail)
    assert choose(data(*SHAPE), PLAIN, kept()).route == OPERATORS


def test_forward_mode(core: bool) -> None:
    with forward_ad.dual_level():
        assert choose(data(*SHAPE), PLAIN, kept()).route == EAGER


def test_transformations(core: bool) -> None:
    """Also of tensors that the function only captures; and tensors without memory of their own."""
    found: list[str] = []
    captured, running = data(*SHAPE), kept()

    def note(x: Tensor) -> Tensor:
        found.append(choose(captured, PLAIN, running).route)
        return x

    torch.vmap(note)(data(2))
    torch.func.grad(lambda x: note(x).sum())(data(2))
    with FakeTensorMode() as mode:
        found.append(choose(mode.from_tensor(captured), PLAIN, running).route)
    assert found == [FUNCTIONS] * 3


# ---- calls follow the table ----


class Recorded(TorchDispatchMode):
    """The names of all operators, and none that reads a value back."""

    READING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "item", "_to_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.READING:
            raise AssertionError(f"{name} waits for the device")
        self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_read_is_seen() -> None:
    """So that the tests with it can fail."""
    reads: list[Callable[[Tensor], object]] = [
        bool,
        float,
        Tensor.nonzero,
        lambda t: t.any().item(),
        lambda t: t[t > 0],
    ]
    for read in reads:
        with pytest.raises(Exception, match="waits for the device"), Recorded():
            read(torch.ones(()))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors that nobody may look at, and no core: as an accelerator's."""
    monkeypatch.setattr(kernels, "compiled", without_core)
    for place in (inputs, running, native, routes, sn.functional, sn.nn.ghost, sn.nn.whitening, sn.nn.renorm):
        monkeypatch.setattr(place, "readable", lambda _: False)


def run(**settings: Any) -> list[str]:
    """The operators of a forward of (6, 3, 4)."""
    x = settings.pop("x", data(*SHAPE))
    with Recorded() as recorded:
        batch_norm(x, torch.zeros(3), torch.ones(3), torch.ones(3), torch.ones(3), **settings)
    return [name for name in recorded.names if name not in ("zeros", "ones", "empty")]


IN_PLACE = {
    "relu": "relu_",
    "relu6": "hardtanh_",
    "leaky_relu": "leaky_relu_",
    "sigmoid": "sigmoid_",
    "tanh": "tanh_",
    "silu": "silu_",
    "hardswish": "hardswish_",
    "gelu": "gelu",
}


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_torchs_operator_and_what_follows_in_place(training: bool) -> None:
    """One normalization, which moves the statistics too; nothing is copied."""
    assert run(training=training) == ["native_batch_norm"]
    assert run(training=training, residual=data(*SHAPE)) == ["native_batch_norm", "add_"]
    for activation, name in IN_PLACE.items():
        assert run(training=training, activation=activation) == ["native_batch_norm", name]


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": torch.tensor(0.25)},
        {"mask": torch.tensor([4, 1, 0, 2, 3, 4])},
        {"mask": MASK},
        {"residual": data(*SHAPE), "activation": "gelu"},
        {"single_value": "running"},
        {"x": data(*SHAPE, dtype=torch.bfloat16), "activation": "silu"},
        {"x": data(0, 3, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nothing_is_waited_for(settings: dict[str, Any], training: bool) -> None:
    assert run(**settings, training=training)


LAYERS: dict[str, Callable[[], Any]] = {
    "BatchNorm1d": lambda: sn.BatchNorm1d(3, activation="relu"),
    "momentum None": lambda: sn.BatchNorm1d(3, momentum=None),
    "ghosts": lambda: sn.GhostBatchNorm1d(3, 2),
    "renorm": lambda: sn.BatchRenorm1d(3, rmax=sn.nn.Ramp(2, 3, 0, 5), dmax=sn.nn.Ramp(1, 2, 0, 5)),
    "whitening": lambda: sn.WhiteningBatchNorm(3),
    "frozen": lambda: sn.FrozenBatchNorm(3),
}


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_no_layer_waits(build: Callable[[], Any], training: bool) -> None:
    """Forward and backward; guarded too, and with a mask."""
    layer = build().train(training)
    x = data(*SHAPE).requires_grad_()
    with Recorded():
        layer(x).sum().backward()
        layer(x, mask=torch.tensor([4, 1, 0, 2, 3, 4])).sum().backward()
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            with sn.guard_statistics(layer):
                layer(x).sum().backward()


@pytest.mark.parametrize("build", [build for name, build in LAYERS.items() if name != "whitening"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layers_on_meta(build: Callable[[], Any], training: bool) -> None:
    """A device without values: what is read back there raises. autocast, which whitening turns off, knows no meta."""
    layer, x = build().to("meta").train(training), data(*SHAPE, device="meta").requires_grad_()
    y = layer(x, residual=x)
    y.sum().backward()
    assert (y.device.type, y.shape, x.grad is not None) == ("meta", x.shape, True)


def test_calls_go_where_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    core = PlainCore()
    monkeypatch.setattr(kernels, "compiled", lambda: core)
    x, leaf, statistics = data(*SHAPE), data(*SHAPE).requires_grad_(), (torch.zeros(3), torch.ones(3))

    def called(function: Callable[[], Any]) -> list[str]:
        core.calls.clear()
        function()
        return list(core.calls)

    assert called(lambda: ops.train("", x, PLAIN, kept())) == ["train"]
    assert called(lambda: ops.train("", leaf, PLAIN, kept())[0].sum().backward()) == ["train", "train_backward"]
    assert called(lambda: ops.train("", x, PLAIN, kept(collects=True))) == ["forward"]
    assert called(lambda: ops.batch_norm(x, PLAIN, 2)) == ["forward"]
    assert called(lambda: ops.batch_norm(leaf, PLAIN, 2)[0].sum().backward()) == ["forward", "backward"]
    assert called(lambda: ops.normalize(x, *statistics, PLAIN)) == ["normalize"]
    assert called(lambda: ops.normalize(leaf, *statistics, PLAIN).sum().backward()) == ["normalize", "backward"]
    assert called(lambda: ops.moments(x, None)) == ["moments"]
    assert called(lambda: torch.vmap(lambda t: ops.moments(t, None).mean)(data(2, *SHAPE))) == []
