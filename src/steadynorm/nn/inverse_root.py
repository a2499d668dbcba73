"""Inverse square roots of symmetric matrices (*, d, d), with derivatives of any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def by_eigenvalues(matrix: Tensor, eps: float) -> Tensor:
    r"""(matrix + eps)^(-1/2), exactly.

    .. math:: Q (\Lambda + \epsilon)^{-1/2} Q^T, \quad \text{matrix} = Q \Lambda Q^T

    Its derivatives do not divide by differences of eigenvalues, as those of `torch.linalg.eigh` do: equal eigenvalues
    are as good as any. A matrix that is not finite gives nan.

    Args:
        matrix: positive semidefinite up to rounding, (*, d, d); eigenvalues below 0 count as 0.
        eps: added to its diagonal, above 0 where it is singular.
    """
    return _InverseRoot.apply(matrix, eps)[0]


def by_newton(matrix: Tensor, eps: float, iterations: int) -> Tensor:
    r"""An approximation of (matrix + eps)^(-1/2) by Newton's iteration, which converges from below.

    .. math:: P_0 = I, \quad P_k = \tfrac{1}{2} (3 P_{k-1} - P_{k-1}^3 \Sigma_N), \quad
        \Sigma_N = \Sigma / \text{tr}\,\Sigma, \quad \Sigma^{-1/2} \approx P_T / \sqrt{\text{tr}\,\Sigma}

    Directions of small variance are amplified less than they should be, the fewer iterations the less. Computed in the
    coupled form (P_k and its product with Sigma_N), in which rounding errors do not grow with more iterations.

    Args:
        matrix: positive semidefinite, (*, d, d).
        eps: added to its diagonal.
        iterations: T; 0 divides by the root of the trace only.

    Reference: Huang et al. 2019, arXiv:1904.03441, Alg. 1; Higham 1997, "Stable iterations for the matrix square root".
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = matrix + eps * identity
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    product, inverse = matrix / trace, identity.expand_as(matrix)
    for _ in range(iterations):
        factor = 1.5 * identity - 0.5 * (inverse @ product)
        product, inverse = product @ factor, factor @ inverse
    return inverse / trace.sqrt()


class _InverseRoot(torch.autograd.Function):
    """The inverse root; and, for its derivatives, the eigenvalues of the root and the eigenvectors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        finite = matrix.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        values, vectors = torch.linalg.eigh(torch.where(finite, matrix, identity))
        roots = (values.clamp(min=0) + eps).sqrt()
        inverse = (vectors / roots.unsqueeze(-2)) @ vectors.mT
        return torch.where(finite, inverse, torch.nan), roots, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        matrix, ctx.eps = inputs
        inverse, roots, vectors = output
        ctx.mark_non_differentiable(roots, vectors)
        ctx.save_for_backward(matrix, inverse, roots, vectors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """d(inverse) = -inverse d(root) inverse, with root d(root) + d(root) root = d(matrix)."""
        matrix, inverse, roots, vectors = ctx.saved_tensors
        root = matrix @ inverse + ctx.eps * inverse
        return -_Lyapunov.apply(root, inverse @ grad_outputs[0] @ inverse, roots, vectors), None


class _Lyapunov(torch.autograd.Function):
    """The solution Z of S Z + Z S = right, for a symmetric S with given eigenvalues and eigenvectors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(root: Tensor, right: Tensor, roots: Tensor, vectors: Tensor) -> Tensor:
        sums = roots.unsqueeze(-1) + roots.unsqueeze(-2)
        return vectors @ ((vectors.mT @ right @ vectors) / sums) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        root, _, roots, vectors = inputs
        ctx.save_for_backward(root, output, roots, vectors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """S dZ + dZ S = d(right) - dS Z - Z dS: the same equation, which is its own adjoint."""
        root, solution, roots, vectors = ctx.saved_tensors
        right = _Lyapunov.apply(root, grad_outputs[0], roots, vectors)
        return -(right @ solution.mT + solution.mT @ right), right, None, None
