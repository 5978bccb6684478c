"""The audit of dependencies: what is an error, and what is only said."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PYTHON = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3", "2.1"]}]},
        {"name": "c", "version": "4", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]},
        {"name": "d", "skip_reason": "not on PyPI"},
    ],
    "fixes": [],
}
NPM = {
    "vulnerabilities": {
        "x": {"severity": "high", "range": "<2", "fixAvailable": {"name": "x", "version": "2"}},
        "y": {"severity": "low", "range": "*", "fixAvailable": False},
    }
}
CLEAN: dict[str, Any] = {"dependencies": []}


@pytest.fixture
def audit() -> Any:
    path = Path(__file__).parents[1] / ".ci" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("probe", "report", "npm", "code", "said"),
    [
        (PYTHON, PYTHON, NPM, 1, ["b 2: PYSEC-1, mended in 3, 2.1", "x: high, <2"]),
        (PYTHON, CLEAN, {"vulnerabilities": {}}, 0, []),
        # an index that knows of no vulnerability at all has no say, nor has one that is away
        (CLEAN, PYTHON, {"error": {}}, 0, ["Python packages are NOT audited", "page's packages"]),
        (None, PYTHON, None, 0, ["Python packages are NOT audited", "page's packages"]),
    ],
)
def test_what_is_made_of_answers(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    probe: Any, report: Any, npm: Any, code: int, said: list[str],
) -> None:  # fmt: skip
    def answer(file: Path) -> Any:
        return probe if file.name == "known.txt" else report

    monkeypatch.setattr(audit, "pip_audit", answer)
    monkeypatch.setattr(audit, "answer", lambda *_: npm)
    assert audit.main() == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


def test_a_command_that_prints_no_answer_is_none(audit: Any, tmp_path: Path) -> None:
    assert audit.answer(["no-such-command"], tmp_path) is None
    assert audit.answer(["echo", "sorry"], tmp_path) is None
    assert audit.answer(["echo", '{"a": 1}'], tmp_path) == {"a": 1}
