"""``firnline harvest``: counts, catalogs that can't be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firnline.database import connect
from firnline.indexer.mirror import Fault, Faults
from firnline.settings import Settings

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "catalog.json"),
        (b"{", "catalog.json"),
        (b"<html>gone</html>", "catalog.json"),
        (b'{"type": "Feature"}', "FeatureCollection"),
        (b'{"features": 5}', "FeatureCollection"),
        (b"\xff\xfe\x00", "catalog.json"),
    ],
)
def test_an_unreadable_catalog(firn: Run, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "catalog.json"
    path.write_bytes(content)
    answer = firn("harvest", path, "--no-mosaics")
    assert answer.code == 1
    assert says in answer.error


def test_a_catalog_that_is_not_there(firn: Run, tmp_path: Path) -> None:
    assert firn("harvest", tmp_path / "none.json").code == 1
    assert "does not exist" in firn("harvest", tmp_path / "none.json").error
    assert "is not an allowed source" in firn("harvest", "https://evil.example/c.json").error
    assert firn("harvest", "https://evil.example/c.json").code == 2


def test_an_unreachable_source_is_never_no_data(
    firn: Run, sample: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.source._RETRIES", 1)
    monkeypatch.setattr("firnline.document._ATTEMPTS", 1)
    sample.server.faults = Faults(Fault("status", status=503))
    try:
        answer = firn("harvest", settings=settings)
        assert answer.code == 1
        assert "503" in answer.error
        answer = firn(
            "materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--dry-run"
        )
        assert answer.code == 1
        assert "503" in answer.error
        answer = firn("materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413")
        assert answer.code == 1
        assert "503" in answer.error
    finally:
        sample.server.faults = None


def test_harvest_counts(firn: Run, sample: Any, tmp_path: Path) -> None:
    settings = sample.settings(tmp_path / "new")
    (settings.data_dir / "firnline.db").unlink()
    cubes = len(sample.mirror.cubes)
    dry = firn("harvest", "--no-mosaics", "--dry-run", "--json", settings=settings).document
    assert dry["added"] == cubes
    first = firn("harvest", "--no-mosaics", "--json").document
    assert (first["added"], first["unchanged"]) == (cubes, 0)
    second = firn("harvest", "--no-mosaics", "--json").document
    assert (second["added"], second["changed"], second["unchanged"]) == (0, 0, cubes)
    engine = connect(settings.database)
    assert firn("status", "--json").document["items"] == {"itslive-cubes": cubes}
    engine.dispose()
    text = firn("harvest", "--no-mosaics")
    assert (text.code, str(cubes) in text.out) == (0, True)
