"""What a harvest did: for people, and as JSON for the run log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from firnline.document import Validators
from firnline.indexer.catalog import Failure
from firnline.version import __version__


@dataclass(frozen=True)
class Counts:
    """What became of the items of a collection."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    retired: int = 0
    """No longer in their source: kept, and hidden from every reader."""
    revived: int = 0
    """Retired ones that their source has again."""


def total(counts: Mapping[str, Counts]) -> Counts:
    """The sum over the collections."""
    rows = [asdict(each) for each in counts.values()]
    return Counts(**{name: sum(row[name] for row in rows) for name in asdict(Counts())})


@dataclass(frozen=True)
class Report:
    """What a harvest did, or in a dry run would do."""

    sources: tuple[str, ...]
    started: datetime
    finished: datetime
    dry_run: bool
    counts: Mapping[str, Counts]
    """By collection."""
    failures: tuple[Failure, ...]
    """Features and regions that gave no item, and files that gave no answer, with the reason."""
    missing: int
    """Files of mosaics, and composites, that were looked for and don't exist."""
    repeated: int
    """Cubes that a later catalog of the same harvest has too, and that were taken from there."""
    deep: bool = False
    """Whether the files themselves were looked at."""
    asked: int = 0
    """Files of mosaics, and composites, that were asked for if they exist."""
    not_modified_since: datetime | None = None
    """When the catalogs were last read, where they have not changed since and were not read."""
    written: int = 0
    """Rows that were put or retired: also those that only changed their source."""
    run: int | None = None
    """Key of its row in the run log; None in a dry run."""
    basis: Mapping[str, Any] = field(default_factory=dict)
    """All but the catalogs that decides what a harvest makes of them."""
    validators: Mapping[str, Validators] = field(default_factory=dict)
    """By source: what to ask with whether it has changed."""

    @property
    def failed(self) -> int:
        """Number of features that should be items and are none, and of files without an answer."""
        return sum(not failure.skipped for failure in self.failures)

    @property
    def skipped(self) -> int:
        """Number of features and regions that are not there, by what the source says."""
        return sum(failure.skipped for failure in self.failures)

    @property
    def total(self) -> Counts:
        """The sum over the collections."""
        return total(self.counts)

    @property
    def added(self) -> int:
        """Items that were not there before, of all collections."""
        return self.total.added

    @property
    def changed(self) -> int:
        """Items whose content changed, of all collections."""
        return self.total.changed

    def lines(self, *, failures: int = 20) -> list[str]:
        """The report for people; of the failures the first so many, each with its reason."""
        lines = [
            f"{name}: {counts.added} added, {counts.changed} changed, "
            f"{counts.unchanged} unchanged, {counts.retired} retired"
            + (f", {counts.revived} revived" if counts.revived else "")
            for name, counts in self.counts.items()
        ]
        if self.not_modified_since is not None:
            lines.append(f"not modified since {self.not_modified_since:%Y-%m-%d %H:%M:%S} UTC")
        elif self.total == Counts(unchanged=self.total.unchanged):
            lines.append("nothing changed")
        if self.repeated:
            lines.append(
                f"{self.repeated} cubes are in several catalogs: the last one's were taken"
            )
        if self.asked or self.missing:
            lines.append(
                f"{self.asked:,} files asked for; {self.missing:,} don't exist and are left out"
            )
        if self.not_modified_since is None:
            lines.append(f"{self.failed} failed, {self.skipped} skipped")
        for failure in self.failures[:failures]:
            place = "" if failure.index is None else f"feature {failure.index} "
            lines.append(f"  {place}{failure.id or 'without a name'}: {failure.reason}")
        if len(self.failures) > failures:
            lines.append(f"  and {len(self.failures) - failures} more (--json lists all)")
        if self.dry_run:
            lines.append("dry run: nothing was written")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "sources": list(self.sources),
            "firnline": __version__,
            "started": self.started.isoformat(),
            "finished": self.finished.isoformat(),
            "seconds": round((self.finished - self.started).total_seconds(), 3),
            "dry_run": self.dry_run,
            "deep": self.deep,
            "not_modified_since": None
            if self.not_modified_since is None
            else self.not_modified_since.isoformat(),
            **asdict(self.total),
            "failed": self.failed,
            "skipped": self.skipped,
            "asked": self.asked,
            "missing": self.missing,
            "repeated": self.repeated,
            "written": self.written,
            "basis": dict(self.basis),
            "validators": {name: asdict(known) for name, known in self.validators.items()},
            "collections": {name: asdict(counts) for name, counts in self.counts.items()},
            "failures": [asdict(failure) for failure in self.failures],
        }

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict())
