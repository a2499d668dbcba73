"""torch.compile and torch.export: one graph, one operator each way, the results of the plain layer."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim, ExportedProgram, export

import steadynorm as sn

from ..support.marks import TORCH_JIT_WARNS, TREE_SPEC_WARNS
from ..support.twins import agree, normal, twins


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Recorder:
    """A compiler backend that runs graphs as they are and counts the operators in each."""

    def __init__(self) -> None:
        self.graphs: list[tuple[str, Counter[str]]] = []
        compilers = {f"{kind}_compiler": self._compiler(kind) for kind in ("fw", "bw", "inference")}
        self.backend = aot_autograd(**compilers)

    def count(self, kind: str, prefix: str) -> list[int]:
        """In each graph of this kind, how many operators have names that start so."""
        return [sum(n for op, n in ops.items() if op.startswith(prefix)) for k, ops in self.graphs if k == kind]

    def _compiler(self, kind: str) -> Callable[..., Any]:
        def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            names = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
            self.graphs.append((kind, Counter(names)))

            def run(arguments: list[Any]) -> Any:
                result = graph(*arguments)
                arguments.clear()
                return result

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return compiler


def same_step(layer: torch.nn.Module, compiled: Any, size: int, residual: bool) -> None:
    """One forward and backward of each in float64: outputs, gradients and state."""
    owner, found = compiled._orig_mod, []
    for call, module in ((compiled, owner), (layer, layer)):
        x, rest = (normal(size, 3, 5, 6, seed=seed).requires_grad_() for seed in (1, 2))
        y = call(x, residual=rest if residual else None)
        wanted = (x, *module.parameters(), *((rest,) if residual else ()))
        found.append([y, *torch.autograd.grad(y, wanted, normal(*y.shape, seed=3))])
    agree(*found)
    agree(dict(owner.state_dict()), dict(layer.state_dict()))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("activation", "residual"), [(None, False), (None, True), ("relu", True)])
def test_compiled(training: bool, dynamic: bool, activation: str | None, residual: bool) -> None:
    """fullgraph; in training one operator forward and one backward, in eval none but torch's; dynamic compiles once."""
    _, layer = twins()
    layer.activation = activation
    layer.train(training)
    recorder = Recorder()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=dynamic, backend=recorder.backend)
    for size in (4, 7):
        same_step(layer, compiled, size, residual)
    graphs = 1 if dynamic else 2
    assert recorder.count("fw", "steadynorm.batch_norm") == [int(training)] * graphs
    assert recorder.count("bw", "steadynorm.batch_norm_backward") == [int(training)] * graphs
    assert recorder.count("fw", "steadynorm") == recorder.count("bw", "steadynorm")
    assert not recorder.count("inference", "")


@pytest.mark.parametrize("settings", [{"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str)
def test_settings_compiled(settings: dict[str, Any]) -> None:
    _, layer = twins(**settings)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        same_step(layer, compiled, 4, residual=False)


def test_memory_order_compiled() -> None:
    """channels_last in, out and in the gradient."""
    _, layer = twins()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x = normal(4, 3, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    y = compiled(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    agree(y, layer(x))
    assert y.stride() == dx.stride() == x.stride()


@TORCH_JIT_WARNS
def test_compiled_by_inductor() -> None:
    """A whole block, in float32, train and then eval."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), sn.BatchNorm2d(4, activation="relu"), torch.nn.Flatten())
    twin = copy.deepcopy(block)
    compiled = torch.compile(block, fullgraph=True)
    x = normal(4, 3, 6, 6, dtype=torch.float32)
    for training in (True, False):
        block.train(training)
        twin.train(training)
        outputs = (compiled(x), twin(x))
        grads = [
            torch.autograd.grad(y.square().sum(), list(m.parameters()))
            for y, m in zip(outputs, (block, twin), strict=True)
        ]
        torch.testing.assert_close(outputs[0], outputs[1])
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)  # sums of 64 products, in another order
    torch.testing.assert_close(dict(block.state_dict()), dict(twin.state_dict()))


def test_error_under_compile() -> None:
    """Where a graph may break, the user reads our message; where not, the compiler's that quotes it."""
    layer, x = sn.BatchNorm2d(3), torch.randn(2, 4, 5, 5)
    with pytest.raises(RuntimeError, match=r"^BatchNorm2d\(num_features=3\): expected running_mean") as info:
        torch.compile(layer, backend="aot_eager")(x)
    assert isinstance(info.value, sn.SteadynormError)
    with pytest.raises(RuntimeError, match=r"BatchNorm2d\(num_features=3\): expected running_mean"):
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert layer.num_batches_tracked == 0


# ---- export ----


class Block(torch.nn.Module):
    def __init__(self, activation: str | None) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = sn.BatchNorm2d(4, activation=activation, negative_slope=0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y, residual=y)


def exported(model: torch.nn.Module) -> ExportedProgram:
    return export(model, (normal(4, 3, 6, 6),), dynamic_shapes=({0: Dim("batch", min=2)},))


def operators(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@TREE_SPEC_WARNS
@pytest.mark.parametrize("activation", [None, "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh"])
def test_exported_in_eval(activation: str | None) -> None:
    """A program of torch's operators alone, for any batch size, that agrees with the layer."""
    torch.manual_seed(0)
    model = Block(activation).double()
    model(normal(8, 3, 6, 6))
    program = exported(model.eval())
    for found in (operators(program), operators(program.run_decompositions())):
        assert found
        assert all(name.startswith(("aten.", "<built-in function getitem>")) for name in found)
    for size in (2, 7):
        x = normal(size, 3, 6, 6, seed=size)
        agree(program.module()(x), model(x))


def test_exported_in_training() -> None:
    """The operator stays whole; the program's statistics move as the layer's."""
    torch.manual_seed(0)
    model = Block("relu").double()
    program = exported(copy.deepcopy(model))
    assert [name for name in operators(program) if name.startswith("steadynorm")] == ["steadynorm.batch_norm.default"]
    module = program.module()
    for size in (3, 7):
        x = normal(size, 3, 6, 6, seed=size)
        agree(module(x), model(x))
    agree(dict(module.named_buffers()), dict(model.named_buffers()))
    assert model.norm.num_batches_tracked == 2
