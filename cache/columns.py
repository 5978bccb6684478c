"""What is kept for each image pair: columns that may still be on their way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Raw = np.ndarray[Any, np.dtype[Any]]


class Columns(Mapping[str, Raw]):
    """Arrays ``(pair,)`` by name, each made when it's first looked at.

    Their names are known at once. Any number of threads may share them; they are pickled made.

    Parameters
    ----------
    makers
        Return an array; what one raises comes to who looks at its column.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Raw]]) -> None:
        self._names = tuple(makers)
        self._makers = dict(makers)
        self._made: dict[str, Raw] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Raw:
        with self._lock:
            if name not in self._made:
                self._made[name] = self._makers[name]()
                del self._makers[name]  # and what it was made of is let go
            return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
