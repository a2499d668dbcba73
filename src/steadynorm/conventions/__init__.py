"""Batch normalization of other frameworks: their settings and weights become ours, and ours theirs.

=====================  ===========================  ============================  ============================
.                      torch, steadynorm            Keras                         Flax
=====================  ===========================  ============================  ============================
momentum               of the new batch: 0.1        of the old statistics: 0.99   of the old statistics: 0.99
eps                    1e-5                         1e-3                          1e-5
running variance       divided by n - 1             divided by n                  divided by n
channels               dimension 1                  the last dimension            the last dimension
=====================  ===========================  ============================  ============================
"""

from .flax import FlaxBatchNorm, from_flax, to_flax
from .keras import KerasBatchNorm, from_keras, to_keras

__all__ = ["FlaxBatchNorm", "KerasBatchNorm", "from_flax", "from_keras", "to_flax", "to_keras"]
