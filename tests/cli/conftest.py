"""A command, run in this process: what it prints, and its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from firnline.cli import main
from firnline.settings import Settings


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.out == ""
        assert "Traceback" not in self.err
        return line

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def firn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a command in this process, in an empty installation unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRNLINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("FIRNLINE_RETRY_SECONDS", "0")
    # structlog keeps the stream that it is first given, which here ends with the test
    monkeypatch.setattr("firnline.logs.configure", lambda settings: None)
    capsys.readouterr()

    def run(
        *arguments: object, settings: Settings | None = None, database: str | None = None
    ) -> Answer:
        if database is not None:
            monkeypatch.setenv("FIRNLINE_DATABASE_URL", database)
        if settings is not None:
            monkeypatch.setenv("FIRNLINE_DATA_DIR", str(settings.data_dir))
            monkeypatch.setenv("FIRNLINE_ALLOWED_SOURCES", ",".join(settings.allowed_sources))
            monkeypatch.setenv("FIRNLINE_CATALOG_URLS", ",".join(settings.catalog_urls))
            monkeypatch.setenv("FIRNLINE_MOSAIC_ROOTS", ",".join(settings.mosaic_roots))
        monkeypatch.setattr(sys, "argv", ["firnline", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Answer(int(caught.value.code or 0), out, err)

    with structlog.testing.capture_logs() as events:
        yield run
    sys.stderr.write("\n".join(map(str, events)))  # seen when the test fails
