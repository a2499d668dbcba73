"""What compiled code is told: records of addresses and numbers."""

from __future__ import annotations

import struct

import numpy as np

from .tiling import Tiling

COUNTERS = ("taken", "finished", "ready", "taken_again", "poisoned")
"""How many items threads have taken and finished, whether what all of them found is merged, how many items have
been taken for the second time, and whether the batch's moments are not finite. They begin at 0."""
ADDRESSES = (
    *("dy", "x", "residual", "mask", "y", "dresidual", "count", "first", "second", "variance", "partial", "counts"),
    *("running_mean", "running_var", "dweight", "dbias"),
)
"""Of memory, 0 for none. dx goes to `y` too. The statistics of a pass are float64 (groups, channels): forward, count,
mean (first), m2 (second) and, if wanted, variance; backward, the sums of dz (first) and of dz * xhat (second), and the
count they are divided by. Where tiles have more than one part, those of the parts are in partial, (groups, parts, 2,
channels), and counts, (groups, parts). Contiguous running statistics, of one dtype, move, and gradients of the
parameters are written, where there is one group."""
VECTORS = ("mean", "var", "weight", "bias")
"""Given values of each channel, of any dtype: an address, a dtype code, and the step from group to group."""
GIVEN = (
    *COUNTERS,
    *ADDRESSES,
    *(f"{name}{part}" for name in VECTORS for part in ("", "_code", "_step")),
    *("running_code", "guarded", "dweight_code", "dbias_code", "measures", "applies", "varies", "threads"),
)
"""What differs from call to call. The flags say whether moments that are not finite leave running statistics where they
are, statistics (or sums) are taken, the output (or dx) is written, and statistics depend on x."""
NUMBERS = ("eps", "slope", "momentum")
KERNELS = ("add_values", "add_moments", "apply", "add_products", "input_grad")
"""Addresses of the row kernels that a pass needs."""
PLANNED = (*KERNELS, "reversed", "streams", "itemsize", "kind", *Tiling._fields, "items")
"""What the shape, the dtype and the variant decide: whether items are normalized from the last to the first, whether
what is written goes past the caches, and `kind`, a smooth activation's place in `elements.SMOOTH`."""
CALL = np.dtype(
    [(name, np.int64) for name in GIVEN]
    + [(name, np.float64) for name in NUMBERS]
    + [(name, np.int64) for name in PLANNED]
)
PACK_GIVEN = struct.Struct(f"{len(GIVEN)}q{len(NUMBERS)}d")
PACK_PLANNED = struct.Struct(f"{len(PLANNED)}q")

ROW_FIELDS = (
    *("dy", "x", "residual", "keep", "y", "dresidual"),
    *("mean", "scale", "shift", "pulls", "push", "scratch", "staged", "sums", "products"),
    *("width", "rows", "stride", "keep_stride", "kind", "varies", "streams"),
)
"""What a row kernel reads and writes: the first row of each tensor; one value a column, or one, of each coefficient;
where sums are added, as many; how many columns and rows there are, and how many values from one row to the next.
`keep` has all bits set where an element is real, none where it is not; the rows of several channels share one line."""
ROW = np.dtype([(name, np.int64) for name in ROW_FIELDS] + [("slope", np.float64)])

VERDICT_FIELDS = ("accepted", "mean", "invstd", "running_mean", "running_var", "channels")
"""What decides on float32 statistics that torch computed, and moves the running ones towards them if it accepts. Count
0: they are running statistics, and `invstd` is the variance."""
VERDICT = np.dtype(
    [(name, np.int64) for name in VERDICT_FIELDS] + [(n, np.float64) for n in ("count", "eps", "momentum")]
)
PACK_VERDICT = struct.Struct(f"{len(VERDICT_FIELDS)}q3d")
