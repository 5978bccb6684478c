"""What was asked of the sources, and what came."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Counts:
    """What a fetch did.

    ``bytes`` as downloaded; ``absent`` chunks that the source lacks; ``reused`` ones (and indices
    of shards) that an earlier fetch had kept; ``conflicts`` are values that were there already from
    a cube before, and others; ``recomputed`` speeds that the source's type was too narrow for.
    """

    requests: int = 0
    bytes: int = 0
    chunks: int = 0
    absent: int = 0
    reused: int = 0
    conflicts: int = 0
    recomputed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _told: dict[str, int] = field(default_factory=dict, repr=False)

    def add(
        self,
        *,
        requests: int = 0,
        bytes: int = 0,
        chunks: int = 0,
        absent: int = 0,
        reused: int = 0,
        conflicts: int = 0,
        recomputed: int = 0,
    ) -> None:
        """Add to the counts, from any thread."""
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.chunks += chunks
            self.absent += absent
            self.reused += reused
            self.conflicts += conflicts
            self.recomputed += recomputed

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        names = ("requests", "bytes", "chunks", "absent", "reused", "conflicts", "recomputed")
        return {name: getattr(self, name) for name in names}

    def since_last(self) -> dict[str, int]:
        """What was added since this was asked last: what a tile's checkpoint keeps."""
        now = self.as_dict()
        new = {name: count - self._told.get(name, 0) for name, count in now.items()}
        self._told = now
        return new

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, int]]) -> Counts:
        """The sum of counts by name."""
        whole = cls()
        for part in parts:
            whole.add(**part)
        return whole
