"""What a user passes as a mask → bool (N, 1, *), True where an element is real."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InvalidInputError
from .kernels import has_memory

_HINT = "Pass a bool mask (N, *), True where an element is real, or the lengths (N,) of sequences (N, C, L)."


def as_mask(who: str, mask: Tensor, input: Tensor) -> Tensor:
    """The mask of `input`, (N, C, *), with one value for each element that all channels share.

    Args:
        who: who speaks in error messages.
        mask: bool, (N, *) or (N, 1, *), each size as the input's or 1; or integer lengths (N,) of sequences (N, C, L),
            from 0 to L, of which the first so many positions are real.
        input: the data.

    Returns:
        bool (N, 1, *), contiguous.

    Raises:
        InvalidInputError (a ValueError): a mask of another dtype or shape, lengths out of range, or lengths of an input
            that is not (N, C, L).
    """
    if mask.device != input.device:
        raise InvalidInputError(
            f"{who}: expected a mask on the input's device {input.device}, got {mask.device}. Move it with .to(device)."
        )
    if mask.dtype == torch.bool:
        return _from_bool(who, mask, input)
    if mask.is_floating_point() or mask.is_complex():
        raise InvalidInputError(f"{who}: expected a bool mask or integer lengths, got {mask.dtype}. {_HINT}")
    return _from_lengths(who, mask, input)


def _from_bool(who: str, mask: Tensor, input: Tensor) -> Tensor:
    shape = (input.shape[0], 1, *input.shape[2:])
    full = mask.unsqueeze(1) if mask.dim() == input.dim() - 1 else mask
    if full.dim() != input.dim() or any(
        given != 1 and given != size for given, size in zip(full.shape, shape, strict=True)
    ):
        raise InvalidInputError(
            f"{who}: expected a mask of shape {(shape[0], *shape[2:])} or {shape} for the input of shape "
            f"{tuple(input.shape)}, got {tuple(mask.shape)}. {_HINT}"
        )
    return full.expand(shape).contiguous()


def _from_lengths(who: str, lengths: Tensor, input: Tensor) -> Tensor:
    if input.dim() != 3 or lengths.shape != input.shape[:1]:
        raise InvalidInputError(
            f"{who}: expected lengths of shape (N,) for an input (N, C, L), got lengths of shape "
            f"{tuple(lengths.shape)} and input of shape {tuple(input.shape)}. {_HINT}"
        )
    longest = input.shape[2]
    if not torch.compiler.is_compiling() and lengths.is_cpu and has_memory(lengths) and lengths.numel() > 0:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > longest:
            raise InvalidInputError(
                f"{who}: expected lengths from 0 to {longest}, the positions of the input, got {low} to {high}."
            )
    positions = torch.arange(longest, device=lengths.device)
    return (positions < lengths.unsqueeze(1)).unsqueeze(1)
