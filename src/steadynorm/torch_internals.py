"""Every private name of torch that computing here rests on, as one function each; all were read in torch 2.13.

What torch documents is used where it is needed. Another version is looked at here first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._library.effects import EffectType
from torch.autograd import forward_ad

in_transform = torch._C._are_functorch_transforms_active
"""Whether vmap, torch.func.grad and the like follow what is computed."""


def direct(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` for tensors that no transformation follows: without the steps that look for one."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def in_graph() -> bool:
    """Whether a compiler, an exporter or torch.jit.trace records what is computed."""
    compiler = torch.compiler  # its is_compiling takes longer: it asks torch.jit.script too, which calls no Python
    return compiler.is_dynamo_compiling() or compiler._is_compiling_flag or torch._C._is_tracing()


def in_forward_mode() -> bool:
    """Whether derivatives are taken forwards."""
    return forward_ad._current_level >= 0


def in_backward() -> bool:
    """Whether autograd is in the midst of a backward pass on this thread."""
    return torch._C._current_graph_task_id() >= 0


def unsafe_view(y: Tensor, shape: torch.Size) -> Tensor:
    """As `y.view(shape)`, but not a view for autograd: what is done in place to it copies no gradient."""
    return torch.ops.aten._unsafe_view(y, shape)


count_change = torch._C._increment_version
"""Has autograd know that an iterable of tensors has been written to; the public function first looks at the types."""


def process_group(name: str) -> dist.ProcessGroup:
    """The process group of that name."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def keep_in_order(operator: Any) -> None:
    """Has compilers run all calls of such operators in the order in which they were written."""
    operator.register_effect(EffectType.ORDERED)
