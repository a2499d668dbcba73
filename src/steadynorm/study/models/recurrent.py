"""A network with memory, normalized in the ways that have been proposed for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import InvalidArgumentError
from ...nn import BatchNorm1d

NORMS = ("none", "batch", "recurrent batch", "layer")


class StepNorm(nn.Module):
    """Batch normalization with one weight and statistics of its own for each time step, and no bias.

    Args:
        width: number of features.
        steps: of the sequence.
        weight: initial value.
        bias: with one for all steps.
    """

    def __init__(self, width: int, steps: int, weight: float, *, bias: bool = False) -> None:
        super().__init__()
        self.steps = nn.ModuleList([BatchNorm1d(width, affine=False) for _ in range(steps)])
        self.weight = nn.Parameter(torch.full((width,), weight))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor, step: int) -> Tensor:
        y = self.weight * self.steps[step](x)
        return y if self.bias is None else y + self.bias


class Recurrent(nn.Module):
    r"""An LSTM over the rows of an image, from top to bottom, and a classifier of its last state.

    .. math:: (f, i, o, g) = N_h(W_h h_{t-1}) + N_x(W_x x_t) + b, \quad
        c_t = \sigma(f) c_{t-1} + \sigma(i) \tanh g, \quad h_t = \sigma(o) \tanh N_c(c_t)

    Args:
        inputs: numbers in a row.
        steps: rows.
        width: of the state.
        classes: number of outputs.
        norm: "none"; "batch", which normalizes the sum of both parts with the same statistics at every step, as any
            other layer would be; "recurrent batch", each part and the cell, by statistics of each step, with weights
            that start at 0.1; "layer", each part and the cell, with weights that start at 1.

    Reference: Cooijmans et al. 2016, arXiv:1603.09025 (recurrent batch normalization); Ba, Kiros & Hinton 2016,
    arXiv:1607.06450, eq. 20 to 22.
    """

    of_input: StepNorm | nn.LayerNorm
    of_state: StepNorm | nn.LayerNorm
    of_cell: StepNorm | nn.LayerNorm
    of_sum: BatchNorm1d

    def __init__(self, inputs: int, steps: int, width: int, classes: int, norm: str) -> None:
        super().__init__()
        if norm not in NORMS:
            raise InvalidArgumentError(f"Recurrent: expected a norm of {', '.join(NORMS)}, got {norm!r}.")
        self.norm, self.width = norm, width
        self.input = nn.Linear(inputs, 4 * width, bias=False)
        self.state = nn.Linear(width, 4 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * width))
        self.classify = nn.Linear(width, classes)
        nn.init.xavier_uniform_(self.input.weight)
        for gate in self.state.weight.split(width):
            nn.init.orthogonal_(gate)
        with torch.no_grad():
            self.bias[:width] = 1  # remembers at first
        if norm == "batch":
            self.of_sum = BatchNorm1d(4 * width)
        elif norm == "recurrent batch":
            self.of_input, self.of_state = (StepNorm(4 * width, steps, 0.1) for _ in range(2))
            self.of_cell = StepNorm(width, steps, 0.1, bias=True)
        elif norm == "layer":
            self.of_input, self.of_state = (nn.LayerNorm(4 * width, bias=False) for _ in range(2))
            self.of_cell = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1]; logits (N, classes)."""
        rows = images.transpose(1, 2).flatten(2)
        h = c = rows.new_zeros(len(rows), self.width)
        for step in range(rows.shape[1]):
            forget, update, out, new = self._gates(self.input(rows[:, step]), self.state(h), step).chunk(4, 1)
            c = forget.sigmoid() * c + update.sigmoid() * new.tanh()
            h = out.sigmoid() * self._cell(c, step).tanh()
        return self.classify(h)

    def _gates(self, x: Tensor, h: Tensor, step: int) -> Tensor:
        if self.norm == "recurrent batch":
            return self.of_state(h, step) + self.of_input(x, step) + self.bias
        if self.norm == "layer":
            return self.of_state(h) + self.of_input(x) + self.bias
        return (self.of_sum(h + x) if self.norm == "batch" else h + x) + self.bias

    def _cell(self, c: Tensor, step: int) -> Tensor:
        if self.norm == "recurrent batch":
            return self.of_cell(c, step)
        return self.of_cell(c) if self.norm == "layer" else c
