"""Which members of items leave (STAC API - Fields extension 1.0)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firnline.errors import InputError

_TOP = frozenset({
    "type", "stac_version", "stac_extensions", "id", "collection", "geometry", "bbox",
    "properties", "assets", "links",
})  # fmt: skip
_DEFAULT = (
    "type", "stac_version", "geometry", "bbox", "links", "assets",
    "properties.datetime", "properties.start_datetime", "properties.end_datetime",
)  # fmt: skip
_ALWAYS = ("type", "stac_version", "id", "collection")
"""What tells that it is an item, and which; the extension allows such a minimum."""
_MOST = 200


@dataclass(frozen=True)
class Fields:
    """Paths that are wanted and not wanted; of two that apply the longer one counts.

    Where only `include` is given nothing else leaves, and where only `exclude` is, all else does.
    """

    include: frozenset[tuple[str, ...]]
    exclude: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, include: Iterable[str], exclude: Iterable[str], *, default: bool = False) -> Fields:
        """From names, with or without ``properties.``; of none at all, a minimal valid item's.

        With `default` it is that minimal item, too, which what is in `exclude` is taken from if
        nothing is in `include`.
        """
        wanted, unwanted = {*map(_path, include)}, {*map(_path, exclude)}
        if len(wanted) + len(unwanted) > _MOST:
            raise InputError(f"fields takes {_MOST} names at most")
        if not wanted and (default or not unwanted):
            wanted = {path for path in map(_path, _DEFAULT) if not _within(path, unwanted)}
        elif not wanted:
            return cls(frozenset(), frozenset(unwanted))
        return cls(frozenset(wanted | {*map(_path, _ALWAYS)}), frozenset(unwanted))

    def has(self, name: str) -> bool:
        """Whether a member of the item itself leaves."""
        return self._decided((name,), not self.include)

    def of_item(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """What is left of an item; its own `item` stays as it is."""
        return self._pruned(item, (), not self.include)

    def _pruned(
        self, value: Mapping[str, Any], path: tuple[str, ...], kept: bool
    ) -> dict[str, Any]:
        left: dict[str, Any] = {}
        for name, member in value.items():
            here = (*path, name)
            stays = self._decided(here, kept)
            if isinstance(member, Mapping) and self._reach(here):
                inner = self._pruned(member, here, stays)
                if stays or inner:
                    left[name] = inner
            elif stays:
                left[name] = member
        return left

    def _decided(self, path: tuple[str, ...], inherited: bool) -> bool:
        if path in self.include:
            return True
        return inherited and path not in self.exclude

    def _reach(self, path: tuple[str, ...]) -> bool:
        """Whether a rule names something within `path`."""
        return any(
            len(rule) > len(path) and rule[: len(path)] == path
            for rules in (self.include, self.exclude)
            for rule in rules
        )


def _within(path: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> bool:
    """Whether a path is one of the others, or below one."""
    return any(path[: len(other)] == other for other in others)


def _path(name: str) -> tuple[str, ...]:
    parts: Sequence[str] = name.split(".")
    if not all(parts):
        raise InputError(f"fields: {name[:80]!r} is not a name as `id` or `properties.created`")
    return tuple(parts) if parts[0] in _TOP else ("properties", *parts)
