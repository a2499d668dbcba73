"""What compiled code is told: records of addresses and numbers."""

from __future__ import annotations

import struct

import numpy as np

from .tiling import Tiling

KERNELS = ("add_values", "add_moments", "apply", "add_products", "input_grad")
"""Addresses of the row kernels that a pass needs."""
ADDRESSES = ("dy", "x", "residual", "mask", "y", "dresidual", "count", "first", "second", "partial", "counts")
"""Of memory, 0 for none. dx goes to `y` too. The statistics of a pass are float64 (groups, channels): forward, count,
mean (first) and m2 (second); backward, the sums of dz (first) and of dz * xhat (second), and the count they are
divided by. Where tiles have more than one part, those of the parts are in partial, (groups, parts, 2, channels), and
counts, (groups, parts)."""
VECTORS = ("mean", "var", "weight", "bias")
"""Given values of each channel, of any dtype: an address, a dtype code, and the step from group to group."""
FLAGS = ("measures", "applies", "varies", "reversed", "streams")
"""Whether statistics (or sums) are taken, the output (or dx) is written, statistics depend on x, items are taken from
the last to the first, and what is written goes past the caches."""

CALL_FIELDS = (
    "taken",
    "next",
    *KERNELS,
    *ADDRESSES,
    *(f"{name}{part}" for name in VECTORS for part in ("", "_code", "_step")),
    *FLAGS,
    "itemsize",
    "kind",
    *Tiling._fields,
    "items",
    "threads",
)
"""`next` is the address of `taken`, the number of items that threads have taken; `kind` is a smooth activation's place
in `elements.SMOOTH`."""
CALL = np.dtype([(name, np.int64) for name in CALL_FIELDS] + [("eps", np.float64), ("slope", np.float64)])
PACK = struct.Struct(f"{len(CALL_FIELDS)}q2d")

ROW_FIELDS = (
    *("dy", "x", "residual", "keep", "y", "dresidual"),
    *("mean", "scale", "shift", "pulls", "push", "scratch", "staged", "sums", "products"),
    *("width", "rows", "stride", "kind", "varies", "streams"),
)
"""What a row kernel reads and writes: the first row of each tensor; one value a column, or one, of each coefficient;
where sums are added, as many; how many columns and rows there are, and how many values from one row to the next."""
ROW = np.dtype([(name, np.int64) for name in ROW_FIELDS] + [("slope", np.float64)])

UPDATE_FIELDS = ("running_mean", "running_var", "double", "count", "mean", "m2", "channels")
"""What moves the running statistics, float32 or `double`, towards a batch's moments."""
UPDATE = np.dtype([(name, np.int64) for name in UPDATE_FIELDS] + [("momentum", np.float64)])
PACK_UPDATE = struct.Struct(f"{len(UPDATE_FIELDS)}qd")

VERDICT_FIELDS = ("accepted", "mean", "invstd", "running_mean", "running_var", "channels")
"""What decides on float32 statistics that torch computed, and moves the running ones towards them if it accepts. Count
0: they are running statistics, and `invstd` is the variance."""
VERDICT = np.dtype(
    [(name, np.int64) for name in VERDICT_FIELDS] + [(n, np.float64) for n in ("count", "eps", "momentum")]
)
PACK_VERDICT = struct.Struct(f"{len(VERDICT_FIELDS)}q3d")
