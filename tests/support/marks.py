"""Marks for tests during which torch warns of itself."""

import pytest

TORCH_JIT_WARNS = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:DeprecationWarning", "ignore:`torch.jit.script:FutureWarning"
)
"""On first use of forward-mode differentiation and of inductor; FutureWarning from torch 2.14 on."""

TREE_SPEC_WARNS = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")
"""When an exported program is copied."""

FUNCTION_WARNS = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
"""When an autograd function is compiled."""
