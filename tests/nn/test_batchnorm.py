"""BatchNorm1d, BatchNorm2d, BatchNorm3d against the reference, on every named case."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import steadynorm as sn
from steadynorm import reference
from steadynorm.nn.batchnorm import _BatchNorm

from ..support.cases import CASES, Case, Example, by_name, example
from ..support.peers import gradients, torch_batch_norm
from ..support.tolerance import check

LAYERS = {2: sn.BatchNorm1d, 3: sn.BatchNorm1d, 4: sn.BatchNorm2d, 5: sn.BatchNorm3d}


def layer_for(case: Case, data: Example) -> _BatchNorm:
    """A layer with the example's parameters and running statistics that are not the initial ones."""
    layer = LAYERS[len(case.shape)](case.shape[1], affine=case.affine, activation=case.activation)
    layer.to(torch.float32 if case.dtype.itemsize < 4 else case.dtype)
    with torch.no_grad():
        if case.affine:
            layer.weight.copy_(data.weight)
            layer.bias.copy_(data.bias)
        layer.running_mean.fill_(0.9 * case.mean + 0.1)
        layer.running_var.fill_(case.std**2 * 1.5)
    return layer


def running_statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean.clone(), layer.running_var.clone()


def settings_for(case: Case, data: Example) -> reference.Settings:
    arrays = [None if t is None else t.detach().double().numpy() for t in (data.weight, data.bias, data.residual)]
    return reference.Settings(arrays[0], arrays[1], 1e-5, arrays[2], None, case.activation)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore::steadynorm.NonFiniteStatisticsWarning")
def test_case(case: Case, training: bool) -> None:
    """Output, gradients and running statistics stay within the tolerance rule of the reference."""
    data = example(case)
    layer = layer_for(case, data).train(training)
    settings = settings_for(case, data)
    x64, dy64 = data.x.double().numpy(), data.dy.double().numpy()
    mean, var = running_statistics(layer)
    old_mean, old_var = mean.double().numpy().copy(), var.double().numpy().copy()

    x = data.x.requires_grad_()
    residual = None if data.residual is None else data.residual.requires_grad_()
    y = layer(x, residual=residual)
    inputs = (x, layer.weight, layer.bias, residual)
    grads = gradients(y, data.dy, *inputs)
    peer = torch_batch_norm(x, mean, var, layer.weight, layer.bias, training, residual, case.activation)
    peer_grads = gradients(peer, data.dy, *inputs)

    if training:
        expected, batch = reference.forward(x64, settings)
        expected_grads = reference.backward(dy64, x64, settings)
        expected_running = reference.update_running(old_mean, old_var, batch, 0.1)
    else:
        expected = reference.inference(x64, old_mean, old_var, settings)
        expected_grads = reference.inference_backward(dy64, x64, old_mean, old_var, settings)
        expected_running = old_mean, old_var
    assert y.dtype == case.dtype
    check(y, expected, peer)
    for grad, peer_grad, expected_grad, terms in zip(
        grads, peer_grads, expected_grads, (1, case.values_per_channel, case.values_per_channel, 1), strict=True
    ):
        if grad is not None:
            check(grad, expected_grad, peer_grad, terms=max(terms, 1))
    for ours, expected, theirs in zip(running_statistics(layer), expected_running, (mean, var), strict=True):
        check(ours, expected, theirs)


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_large_mean_costs_no_accuracy(order: str) -> None:
    """Mean 1e4, standard deviation 1e-1: as exact as with mean 0, where torch loses four digits."""
    case = Case("", (16, 6, 14, 14), order=order, mean=1e4, std=1e-1)
    data = example(case)
    layer = layer_for(case, data)
    y = layer(data.x.requires_grad_())
    (dx,) = torch.autograd.grad(y, data.x, data.dy)
    settings, x64 = settings_for(case, data), data.x.detach().double().numpy()
    check(y, reference.forward(x64, settings)[0])
    check(dx, reference.backward(data.dy.double().numpy(), x64, settings).x)
    peer = torch_batch_norm(data.x, None, None, data.weight, data.bias, training=True)
    with pytest.raises(AssertionError):
        check(peer, reference.forward(x64, settings)[0])
