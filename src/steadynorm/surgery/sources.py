"""Which batch normalization layers can become another kind of layer, and what they are."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..nn import FrozenBatchNorm, GhostBatchNorm2d, SyncBatchNorm, WhiteningBatchNorm
from ..nn.batchnorm import _BatchNorm
from ..nn.convertible import has_known_forward, is_uninitialized
from ..nn.renorm import _BatchRenorm

STEPS = (_BatchNorm._step, SyncBatchNorm._step, GhostBatchNorm2d._step, _BatchRenorm._step)
KNOWN = ("torch.", "steadynorm.")
STATE = {"weight", "bias"}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
PLAIN = {"__init__", "__repr__", "extra_repr", "__new__"}
"""Methods of a class that do nothing to what its layers compute."""
SIMPLE = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
"""Activation modules, and the activation of ours that does the same."""


def is_frozen(layer: nn.Module) -> bool:
    """Whether it is a batch normalization frozen by us, torchvision, timm or detectron2."""
    return isinstance(layer, FrozenBatchNorm) or "FrozenBatchNorm" in type(layer).__name__


def is_timms(layer: nn.Module) -> bool:
    """Whether it is timm's batch normalization with an activation, which ours can be too."""
    return _is_timms(type(layer))


def _is_timms(kind: type | None) -> bool:
    return kind is not None and kind.__module__ == "timm.layers.norm_act" and kind.__name__ == "BatchNormAct2d"


def obstacle(layer: nn.Module) -> str | None:
    """Why it cannot become another layer; None if it can."""
    if isinstance(layer, WhiteningBatchNorm):
        return "it has a covariance, which no other layer has"
    if is_uninitialized(layer):
        return "it is lazy and does not know its channels; run a batch first"
    if parametrize.is_parametrized(layer):
        return "its parameters are parametrized; remove the parametrization first"
    if layer._compiled_call_impl is not None:
        return "it is compiled"
    if "_guard" in layer.__dict__ or "_collector" in layer.__dict__:
        return "it is guarded, or accumulates statistics; leave that context first"
    if is_timms(layer):
        if "forward" in layer.__dict__ or not _has_known_epilogue(layer):
            return "its dropout or activation is none that a layer of ours applies"
        return None
    if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or not has_known_forward(layer, STEPS):
        return "its own forward would be lost"
    if (lost := _own_methods(layer)) is not None:
        return lost
    if not (set(layer._parameters) == STATE and set(layer._buffers) <= STATISTICS):
        return "it has parameters or buffers of its own"
    if layer._modules and foreign(layer) is None:
        return "it has layers inside"
    return None


def is_derived(layer: nn.Module) -> bool:
    """Whether its class is neither torch's nor ours."""
    return not type(layer).__module__.startswith(KNOWN)


def _own_methods(layer: nn.Module) -> str | None:
    """What a class of somebody else's adds that another class would not do; None if nothing."""
    if is_derived(layer) and isinstance(layer, _BatchNorm):
        return f"its class {type(layer).__qualname__} would be lost, which is derived from ours"
    for kind in type(layer).__mro__[:-1]:
        if kind.__module__.startswith(KNOWN):
            continue
        for name, value in vars(kind).items():
            if name not in PLAIN and (callable(value) or isinstance(value, (property, classmethod, staticmethod))):
                return f"{kind.__qualname__}.{name} would be lost"
    return None


def foreign(layer: nn.Module) -> type[nn.Module] | None:
    """The class of somebody else's that it had before it was converted."""
    return layer.__dict__.get("_foreign")


def gives_back_activation(layer: nn.Module) -> bool:
    """Whether the class that it had before applies its activation by itself."""
    own = activation(layer._modules.get("act")) if _is_timms(foreign(layer)) else None
    return own is not None and own.items() <= epilogue(layer).items()


def _has_known_epilogue(layer: nn.Module) -> bool:
    drop, act = layer._modules.get("drop"), layer._modules.get("act")
    known = isinstance(act, nn.Identity) or activation(act) is not None
    return isinstance(drop, nn.Identity) and set(layer._modules) == {"drop", "act"} and known


def activation(module: Any) -> dict[str, Any] | None:
    """The settings by which a layer of ours applies what an activation module does; None for any other module."""
    if not isinstance(module, nn.Module) or "forward" in module.__dict__:
        return None
    if type(module) in SIMPLE:
        return {"activation": SIMPLE[type(module)]}
    if type(module) is nn.LeakyReLU:
        return {"activation": "leaky_relu", "negative_slope": module.negative_slope}
    if type(module) is nn.GELU and module.approximate == "none":
        return {"activation": "gelu"}
    return None


def epilogue(layer: nn.Module) -> dict[str, Any]:
    """The settings of the activation inside a layer."""
    if is_timms(layer):
        return activation(layer._modules["act"]) or {}
    if getattr(layer, "activation", None) is None:
        return {}
    return {"activation": layer.activation, "negative_slope": layer.negative_slope}


def as_module(layer: nn.Module) -> nn.Module:
    """The activation inside a layer as a module; Identity for none."""
    settings = epilogue(layer)
    if not settings:
        return nn.Identity()
    if settings["activation"] == "leaky_relu":
        return nn.LeakyReLU(settings["negative_slope"])
    kinds = {name: kind for kind, name in SIMPLE.items()} | {"gelu": nn.GELU}
    return kinds[settings["activation"]]()
