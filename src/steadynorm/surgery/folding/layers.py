"""Which layers folding knows, and what stands in the way of changing one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from ...errors import InvalidArgumentError
from ...nn import FrozenBatchNorm, WhiteningBatchNorm
from ...nn.batchnorm import _BatchNorm as _Ours
from .arithmetic import Map

_TORCHS = nn.modules.batchnorm._BatchNorm
_FOREIGN = {
    ("torchvision.ops.misc", "FrozenBatchNorm2d"),
    ("timm.layers.norm_act", "BatchNormAct2d"),
    ("timm.layers.norm_act", "SyncBatchNormAct"),
    ("timm.layers.norm_act", "FrozenBatchNormAct2d"),
}
"""Classes of others whose forward is batch normalization by running statistics, then their `drop` and `act` if any."""


def is_norm(module: nn.Module) -> bool:
    """Whether it is batch normalization: torch's, ours, a frozen one, or a subclass."""
    return isinstance(module, (_TORCHS, FrozenBatchNorm)) or any(_name(kind) in _FOREIGN for kind in type(module).mro())


def is_linear(module: nn.Module) -> bool:
    """Whether it is a convolution, plain or transposed, or a linear layer, or a subclass."""
    return isinstance(module, (_ConvNd, nn.Linear))


def is_known(module: nn.Module) -> bool:
    return is_norm(module) or is_linear(module)


def dims(module: nn.Module) -> int:
    """Dimensions of what a convolution or linear layer gives, when its channels are the second of them."""
    return 2 if isinstance(module, nn.Linear) else len(module.kernel_size) + 2  # type: ignore[arg-type]


def pads_by_zeros(convolution: Any) -> bool:
    """Whether outputs of a convolution, plain or transposed, see zeros beside the input; asks what its forward does."""
    padding = convolution.padding
    if convolution.padding_mode != "zeros" or padding == "valid":
        return False
    if padding == "same":
        return any(size > 1 for size in convolution.kernel_size)
    both = padding, convolution.output_padding
    return any(any(sizes) if isinstance(sizes, (tuple, list)) else sizes for sizes in both)


def obstacle(module: nn.Module) -> str | None:
    """Why this layer cannot be changed, whatever surrounds it; None if it can."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if "forward" in vars(module) or not _knows(type(module)):
        return f"{type(module).__name__} has a forward of its own"
    if is_parametrized(module):
        return (
            "its weight is computed by a parametrization; "
            "torch.nn.utils.parametrize.remove_parametrizations makes it a plain one"
        )
    if any(name not in module._parameters and name not in module._buffers for name in ("weight", "bias")):
        return "its weight or bias is no parameter or buffer"
    if any(getattr(module, name) for name in hooks):
        return "it has hooks, which would see other values"
    if any(nn.parameter.is_lazy(value) for value in module.parameters()):
        return "it is not initialized yet"
    return _without_statistics(module) if is_norm(module) else None


def _without_statistics(norm: Any) -> str | None:
    spread = norm.running_covariance if isinstance(norm, WhiteningBatchNorm) else norm.running_var
    if norm.running_mean is None or spread is None:
        return "it has no running statistics: every batch is normalized by its own"
    return None


def _knows(kind: type) -> bool:
    """Whether the methods that compute are those of a class we know."""
    for method in ("forward", "_conv_forward", "_step"):
        definer = next((parent for parent in kind.mro() if method in vars(parent)), None)
        if definer is None:
            continue
        ours = definer.__module__.startswith(("torch.nn.modules.", "steadynorm.nn."))
        if not ours and _name(definer) not in _FOREIGN:
            return False
    return True


def _name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__name__


@torch.no_grad()
def map_of(norm: Any) -> Map:
    """The affine map that a norm is in eval mode, before residual and activation, in float64 on the CPU."""
    if isinstance(norm, WhiteningBatchNorm):
        matrix, shift = copy.deepcopy(norm).cpu().double().linear_map()
        return Map(matrix, shift)
    mean, var = wide(norm.running_mean), wide(norm.running_var)
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * wide(norm.weight)
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + wide(norm.bias)
    return Map(scale.reshape(-1, 1, 1), shift)


def wide(values: Tensor) -> Tensor:
    """A copy in float64 on the CPU, which every device's values can be brought to."""
    return values.detach().to("cpu", torch.float64, copy=True)


def epilogue(norm: Any) -> nn.Module | None:
    """What a norm does after its affine map, besides adding a residual; None if nothing."""
    if isinstance(norm, (_Ours, FrozenBatchNorm)):
        return _activation(norm.activation, norm.negative_slope)
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    if len(rest) < 2:
        return rest[0] if rest else None
    return nn.Sequential(*rest)


def _activation(name: str | None, slope: float) -> nn.Module | None:
    if name is None:
        return None
    if name == "leaky_relu":
        return nn.LeakyReLU(slope)
    kinds = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "silu": nn.SiLU,
        "hardswish": nn.Hardswish,
        "gelu": nn.GELU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
    }
    return kinds[name]()


class AddThen(nn.Module):
    """What remains of a folded norm that is given a residual: adds it, then applies the activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, *, mask: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise InvalidArgumentError(
                "AddThen: expected no mask, got one, for a norm that was folded with an example without. Fold the "
                "model with an example that has a mask: then this norm is kept."
            )
        return self.activation(input if residual is None else input + residual)


def group_size(norm: nn.Module) -> int:
    """Channels that a norm mixes with each other."""
    return norm.group_size if isinstance(norm, WhiteningBatchNorm) else 1


def holds(module: nn.Module, tensor: Any) -> bool:
    """Whether a tensor is a parameter or buffer of the module itself."""
    return any(
        value is tensor for value in (*module._parameters.values(), *module._buffers.values()) if value is not None
    )
