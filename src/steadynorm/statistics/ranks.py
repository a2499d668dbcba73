"""Several ranks that measure one population: they go on together, or all stop."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from ..errors import InvalidArgumentError, SynchronizationError
from ..nn.sync import _group_name
from ..ops.sync import exchanging
from .population import Population
from .reduce import _gathered
from .sites import Site

Result = TypeVar("Result")


class Ranks:
    """The ranks of a process group; this process alone where there is none.

    Raises:
        InvalidArgumentError (a ValueError): a process group that this rank is not in.
        SynchronizationError (a RuntimeError): process_group given and torch.distributed not initialized.
    """

    def __init__(self, who: str, process_group: dist.ProcessGroup | None) -> None:
        self.who = who
        self.alone = _group_name(who, process_group) is None
        self.group = process_group

    def all_do(self, work: Callable[[], Result], device: torch.device) -> Result:
        """What `work` returns here; raises where it raised, and on every other rank, once all are done with it."""
        if self.alone:
            return work()
        try:
            result = work()
        except Exception:
            self._failed(True, device)
            raise
        if failed := self._failed(False, device):
            raise SynchronizationError(
                f"{self.who}: rank {', '.join(map(str, failed))} raised an error, and nothing has changed on any. "
                "See the output of that rank."
            )
        return result

    def _failed(self, here: bool, device: torch.device) -> list[int]:
        flags = _gathered(self.who, torch.tensor([here], dtype=torch.int32, device=device), self.group)
        return flags.flatten().nonzero().flatten().tolist()

    def check_same(self, layers: Sequence[Site], settings: tuple) -> None:
        """Raises InvalidArgumentError where the ranks' models or settings differ."""
        if self.alone:
            return
        ours = repr(([(site.name, tuple(site.spread.shape)) for site in layers], settings))
        digest = torch.tensor([zlib.crc32(ours.encode())], device=layers[0].mean.device)
        digests = _gathered(self.who, digest, self.group)
        if (digests != digests[0]).any():
            raise InvalidArgumentError(
                f"{self.who}: expected the same model and settings on every rank, got {ours:.500} on this one."
            )

    def merge(self, layers: Sequence[Site], found: dict[str, Population]) -> dict[str, Population]:
        """The populations of all ranks, one for each of these layers; of nothing where a layer was not reached."""
        own = [found.get(site.name, site.nothing()) for site in layers]
        if self.alone:
            return {site.name: population for site, population in zip(layers, own, strict=True)}
        device = layers[0].mean.device
        rows = [population.packed() for population in own]
        gathered = _gathered(self.who, torch.cat([row.to(device) for row in rows]), self.group)
        parts = gathered.split([len(row) for row in rows], dim=1)
        return {
            site.name: Population.merge([population.unpacked(row.to(site.mean.device)) for row in part])
            for site, population, part in zip(layers, own, parts, strict=True)
        }

    def all_have(self, own: list) -> list[list]:
        """What each rank has, in the order of ranks."""
        if self.alone:
            return [own]
        found: list = [None] * dist.get_world_size(self.group)
        with exchanging(self.who):
            dist.all_gather_object(found, own, self.group)
        return found
