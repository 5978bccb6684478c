"""Known vulnerabilities of what is pinned: an error if there is a version without them.

Asks PyPI (by pip-audit) and npm's registry. Where one of them has no answer, as an index that is a
mirror may not, this says so, and is no error: an outage is not a reason to stop. That PyPI answers
is known by an old release whose vulnerabilities it has to know.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
KNOWN = "requests==2.19.0"


def of_python(report: Mapping[str, Any]) -> list[str]:
    """What pip-audit found that an upgrade mends, a line each."""
    return [
        f"{each['name']} {each['version']}: {vulnerability['id']}, mended in "
        + ", ".join(vulnerability["fix_versions"])
        for each in report["dependencies"]
        for vulnerability in each.get("vulns", [])
        if vulnerability["fix_versions"]
    ]


def of_npm(report: Mapping[str, Any]) -> list[str]:
    """What `npm audit` found that an upgrade mends, a line each."""
    return [
        f"{name}: {each['severity']}, {each['range']}"
        for name, each in report["vulnerabilities"].items()
        if each["fixAvailable"]
    ]


def answer(command: list[str], folder: Path = REPO) -> Any:
    """The JSON that a command prints, whatever its exit code; None if it prints none."""
    try:
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )
        return json.loads(run.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError):
        return None


def pip_audit(requirements: Path) -> Any:
    """pip-audit's report on pinned requirements."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    return answer([sys.executable, "-m", "pip_audit", *options, "-r", str(requirements)])


def main() -> int:
    """Exit code: 1 where something is to be upgraded."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "known.txt"
        known.write_text(KNOWN + "\n")
        probe = pip_audit(known)
        report = pip_audit(REPO / "constraints.txt") if probe and of_python(probe) else None
    if report is None:
        print("audit: PyPI's vulnerabilities can't be had here; Python packages are NOT audited")
    else:
        found += of_python(report)
    report = answer(["npm", "audit", "--json"], REPO / "web")
    if not isinstance(report, dict) or "vulnerabilities" not in report:
        print("audit: npm's vulnerabilities can't be had here; the page's packages are NOT audited")
    else:
        found += of_npm(report)
    for line in found:
        print(f"audit: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
