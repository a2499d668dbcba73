"""Networks built with our layer in place of torch's: same checkpoints, same numbers, same tools."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import steadynorm as sn

from ..support.models import NormLayer, resnet10t, resnet18, torchvision
from ..support.twins import agree, agree_in_state, normal

Build = Callable[[NormLayer], torch.nn.Module]
NETWORKS = pytest.mark.parametrize(("build", "norms"), [(resnet18, 20), (resnet10t, 14)], ids=["resnet18", "resnet10t"])


def pair(build: Build, dtype: torch.dtype = torch.float64) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The network with torch's layer and with ours, equal in state: random weights, moved running statistics."""
    torch.manual_seed(0)
    theirs = build(torch.nn.BatchNorm2d).to(dtype)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts some at 0, which would hide a branch
    with torch.no_grad():
        theirs(normal(4, 3, 64, 64, dtype=dtype))
    ours = build(sn.BatchNorm2d).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def gradients(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and the gradient of a loss towards the input and each parameter."""
    x = x.clone().requires_grad_()
    y = model(x)
    named = {"input": x, **dict(model.named_parameters())}
    return y.detach(), dict(zip(named, torch.autograd.grad(y.square().mean(), list(named.values())), strict=True))


def relative_errors(model: torch.nn.Module, exact: dict[str, Tensor], x: Tensor) -> dict[str, float]:
    """Of output, gradients and buffers, in units of each tensor's norm."""
    y, grads = gradients(model, x)
    found = {"output": y, **grads, **{name: b for name, b in model.named_buffers() if b.is_floating_point()}}
    assert list(found) == list(exact)
    return {name: float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in found}


@NETWORKS
def test_our_layers_are_inside(build: Build, norms: int) -> None:
    """Every norm is ours, and torch's checkpoint loads strictly, both ways."""
    theirs, ours = pair(build, torch.float32)
    assert sum(type(module) is sn.BatchNorm2d for module in ours.modules()) == norms
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in ours.modules()) == norms
    theirs.load_state_dict(ours.state_dict(), strict=True)
    agree_in_state(ours, theirs, rtol=0, atol=0)


@NETWORKS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_agrees_in_float64(build: Build, norms: int, training: bool) -> None:
    """Output, gradients and running statistics.

    Roundings of 1e-16 grow to 3e-14 of the largest value through 20 layers, each of sums over up to 4608 products;
    1e-11 leaves room for another order of summation, while any mistake would be far larger.
    """
    theirs, ours = (model.train(training) for model in pair(build))
    x = normal(4, 3, 64, 64, seed=1)
    (our_y, our_grads), (their_y, their_grads) = gradients(ours, x), gradients(theirs, x)
    agree(our_y, their_y, rtol=1e-11, atol=1e-11 * float(their_y.abs().max()))
    for name, grad in their_grads.items():
        agree(our_grads[name], grad, rtol=1e-11, atol=1e-11 * float(grad.abs().max()))
    agree_in_state(ours, theirs, rtol=1e-11, atol=1e-11)


@NETWORKS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_further_from_float64_than_torch_in_float32(build: Build, norms: int, training: bool) -> None:
    """Against torch's network in float64, by the second smallest error of five inputs: at most twice torch's own.

    With about one input in ten, roundings change the sign of a value beside a ReLU's kink, or a maximum's place, and
    then gradients by a thousand times more: whose, is luck. Four such inputs of five are one case in thousands, while a
    layer that is less exact is so with all. Errors of a single tensor are random, torch's may be small by chance: 1e-6,
    eight roundings, is granted to each.
    """
    theirs, ours = (model.train(training) for model in pair(build, torch.float32))
    exact = build(torch.nn.BatchNorm2d).double().train(training)
    start, found = copy.deepcopy(theirs.state_dict()), []
    for seed in range(1, 6):
        for model in (theirs, ours, exact):
            model.load_state_dict(start)
        x = normal(2, 3, 64, 64, seed=seed, dtype=torch.float32)
        y, grads = gradients(exact, x.double())
        expected = {"output": y, **grads, **{name: b for name, b in exact.named_buffers() if b.is_floating_point()}}
        found.append([list(relative_errors(model, expected, x).values()) for model in (ours, theirs)])
    ours_of_all, theirs_of_all = torch.tensor(found).sort(0).values[1]
    assert (ours_of_all <= 2 * theirs_of_all + 1e-6).all()
    assert theirs_of_all[0] > 0  # of the output


def test_optimizer_steps() -> None:
    """Three steps of SGD with momentum leave both networks with the same state, in float64."""
    theirs, ours = pair(resnet10t)
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for seed in range(3):
            optimizer.zero_grad()
            model(normal(4, 3, 64, 64, seed=seed)).square().mean().backward()
            optimizer.step()
    agree_in_state(ours, theirs, rtol=1e-9, atol=1e-9)  # the 1e-11 of one step, amplified by two more


# ---- torch.fx ----


@NETWORKS
def test_traced(build: Build, norms: int) -> None:
    """torch.fx keeps every layer whole, as it keeps torch's: one node each, the numbers of the plain network."""
    _, model = pair(build)
    traced = torch.fx.symbolic_trace(model)
    kept = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(traced.get_submodule(str(node.target)), sn.BatchNorm2d) for node in kept) == norms
    x = normal(4, 3, 64, 64, seed=1)
    agree(traced.eval()(x), model.eval()(x), rtol=0, atol=0)


def test_traced_with_residual() -> None:
    """The residual is an input of the node."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)
            self.norm = sn.BatchNorm2d(3, activation="relu")

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x), residual=x)

    block = Block().eval()
    traced, x = torch.fx.symbolic_trace(block), torch.randn(2, 3, 4, 4)
    assert [str(node.target) for node in traced.graph.nodes] == ["x", "conv", "norm", "output"]
    agree(traced(x), block(x), rtol=0, atol=0)


def test_feature_extractor() -> None:
    """torchvision's, with and without our layers named as leaves."""
    torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    theirs, ours = (model.eval() for model in pair(resnet18))
    x = normal(4, 3, 64, 64, seed=1)
    nodes = {"layer1.0.bn1": "early", "layer3": "late"}
    expected = create_feature_extractor(theirs, nodes)(x)
    for tracer in ({}, {"leaf_modules": [sn.BatchNorm2d]}):
        features = create_feature_extractor(ours, nodes, tracer_kwargs=tracer)(x)
        for name in nodes.values():
            agree(features[name], expected[name], rtol=1e-11, atol=1e-11)
