"""to="none": a batch normalization goes, and the layer before it gets the bias that it did without."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .changes import Change, kind
from .flow import Flow, flows
from .replace import all_or_nothing, become_, check_optimizer, keep_in_step_
from .targets import Source

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers that a bias makes affine; exactly these classes."""


class _Step(NamedTuple):
    """What happens to one layer; `linear` gets `bias`, where there is one to get it."""

    source: Source
    new: nn.Module
    linear: nn.Module | None
    bias: nn.Parameter | None
    reason: str


def strip_(
    who: str, model: nn.Module, sources: list[Source], new: list[nn.Module], optimizer: torch.optim.Optimizer | None
) -> list[Change]:
    """Takes the layers out; all of them or none."""
    graphs = flows(who, model) if sources else []
    steps = [_step(source, layer, graphs) for source, layer in zip(sources, new, strict=True)]
    made = [Change(step.source.name, kind(step.source.layer), kind(step.new), step.reason) for step in steps]
    old = [parameter for step in steps for parameter in step.source.layer.parameters()]
    known = set(map(id, old))
    added = [
        (s.bias, s.linear.get_parameter("weight"))
        for s in steps
        if s.linear and s.bias is not None and id(s.bias) not in known
    ]
    check_optimizer(who, optimizer, [weight for _, weight in added])
    with all_or_nothing(model, optimizer):
        for step in steps:
            if step.linear is not None:
                step.linear.register_parameter("bias", step.bias)
            become_(step.source.layer, step.new)
        keep_in_step_(optimizer, model, old, added)
    return made


@torch.inference_mode(False)
def _step(source: Source, new: nn.Module, graphs: list[Flow]) -> _Step:
    linear, reason = _before(source, graphs)
    if linear is None:
        return _Step(source, new, None, None, f"the function is another; {reason}")
    weight, own = linear.get_parameter("weight"), source.layer._parameters["bias"]
    if own is None:
        bias = nn.Parameter(torch.zeros(source.layer.num_features, dtype=weight.dtype, device=weight.device))
    elif (own.dtype, own.device) != (weight.dtype, weight.device):
        bias = nn.Parameter(own.detach().to(weight), own.requires_grad)
    else:
        bias = own
    return _Step(source, new, linear, bias, "the function is another; the layer before it has the bias")


def _before(source: Source, graphs: list[Flow]) -> tuple[nn.Module | None, str]:
    """The linear layer whose bias this one made redundant; or None and why there is none to give one to."""
    nodes = [(flow, node) for flow in graphs for node in flow.calls.get(source.layer, ())]
    found = {flow.layer(node.args[0]) for flow, node in nodes if node.args}
    linear = found.pop() if len(found) == 1 else None
    if linear is None or type(linear) not in LINEAR or linear.weight is None:
        return None, "no linear layer before it to have its bias"
    if linear.bias is not None:
        return None, "the layer before it has a bias of its own"
    alone = all(_leads_only_there(flow, linear, source.layer) for flow in graphs)
    if not alone or width_of(linear) != source.layer.num_features:
        return None, "the layer before it is used otherwise too, and has no bias now"
    return linear, ""


def _leads_only_there(flow: Flow, linear: nn.Module, norm: nn.Module) -> bool:
    """Whether the linear layer is called where the norm is, once, and nothing else sees what it gives."""
    calls = flow.calls.get(linear, [])
    hidden = linear in flow.inside or any(call in flow.stored for call in calls)
    once = len(calls) == len(flow.calls.get(norm, ())) <= 1
    return once and not hidden and all(len(call.users) == 1 for call in calls)


def width_of(linear: nn.Module) -> int:
    """The channels of its output."""
    return linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels  # type: ignore[return-value]
