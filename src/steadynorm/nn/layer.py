"""What all layers share: 16-bit casts leave their state wide, torch.fx keeps them whole, and they say who speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)


def widened(dtype: torch.dtype | None) -> torch.dtype:
    """What a layer's state is made in: the dtype asked for, or the default one; float32 where that has 16 bits."""
    wanted = torch.get_default_dtype() if dtype is None else dtype
    return torch.float32 if wanted in NARROW else wanted


class Speaker:
    """Who speaks in a layer's error messages; the words are made when there is something to say."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __str__(self) -> str:
        return self.layer._speaker()


class Layer(torch.nn.Module):
    """A layer of so many channels."""

    num_features: int

    def _speaker(self) -> str:
        return f"{type(self).__name__}(num_features={self.num_features})"

    def _record(self, input: torch.fx.Proxy, mask: Any, residual: Any) -> Any:
        """The layer as one node of a graph traced by torch.fx, which treats only torch's own modules so by itself."""
        path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
        given = {name: value for name, value in (("mask", mask), ("residual", residual)) if value is not None}
        return input.tracer.create_proxy("call_module", path, (input,), given)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As torch's, but no parameter or buffer becomes 16-bit: a cast moves it and leaves its dtype."""

        def widely(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            narrowed = new.dtype in NARROW and tensor.dtype not in NARROW
            return tensor.detach().to(new.device, torch.float32) if narrowed else new

        return super()._apply(widely, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **named: Any) -> None:
        """As torch's; 16-bit values are widened first, which matters where they become the parameters (assign=True)."""
        for name in (*self._parameters, *self._buffers):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype in NARROW:
                state_dict[prefix + name] = value.float()
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)
