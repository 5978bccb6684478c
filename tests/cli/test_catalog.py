"""``firnline harvest`` and ``firnline catalog``: counts, and files that can't be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
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
    monkeypatch.setattr("firnline.web._RETRIES", 0)
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


def test_the_catalog_as_a_file(firn: Run, sample: Any, settings: Settings, tmp_path: Path) -> None:
    cubes = len(sample.mirror.cubes)
    there, here = tmp_path / "catalog.parquet", f"sqlite:///{tmp_path / 'other.db'}"
    done = firn("catalog", "export", there, "--json", settings=settings)
    assert done.code == 0, done.err
    assert done.document == {
        "file": str(there),
        "collections": {"itslive-cubes": cubes, "subsets": 0, "velocity-mosaics": 0},
        "bytes": there.stat().st_size,
        "left_out": {},
    }
    assert list(geopandas.read_parquet(there)["collection"]) == ["itslive-cubes"] * cubes
    only = ["--collection-id", "itslive-cubes"]
    text = firn("catalog", "export", tmp_path / "a.ndjson", *only, "--collections")
    assert f"itslive-cubes: {cubes} items" in text.out
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.ndjson", "a.itslive-cubes.json"}

    first = firn("catalog", "import", there, database=here)
    assert first.code == 0
    assert f"itslive-cubes: {cubes} added, 0 changed, 0 unchanged" in first.out
    assert "0 failed" in first.out
    second = firn("catalog", "import", tmp_path / "a.ndjson", "--json").document
    assert (second["added"], second["unchanged"], second["failed"]) == (0, cubes, 0)
    status = firn("status", "--json").document
    assert status["items"] == {"itslive-cubes": cubes}
    assert status["harvests"][0]["sources"] == ["import:a.ndjson"]
    assert f"{cubes} unchanged  import:a.ndjson" in firn("status").out


def test_an_import_tells_what_failed(firn: Run, tmp_path: Path) -> None:
    item = {
        "type": "Feature", "stac_version": "1.1.0", "id": "a", "collection": "subsets",
        "geometry": {"type": "Point", "coordinates": [1, 2]}, "bbox": [1, 2, 1, 2],
        "properties": {"datetime": "2020-01-01T00:00:00Z"}, "assets": {}, "links": [],
    }  # fmt: skip
    path = tmp_path / "a.ndjson"
    path.write_text(json.dumps(item) + "\n{\n")
    some = firn("catalog", "import", path)
    assert (some.code, "1 added" in some.out, "1 failed" in some.out) == (0, True, True)
    assert "  line 2 without an id: it is not JSON: " in some.out
    path.write_text("{\n")
    none = firn("catalog", "import", path)
    assert (none.code, "1 failed" in none.out) == (1, True)
    none = firn("catalog", "import", path, "--json")
    assert (none.code, none.document["failures"][0]["line"]) == (1, 1)


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["export", "a.csv"], 2, "a.csv: the ending decides what it is; accepted: .parquet, "),
        (["import", "a.json"], 2, "accepted: .parquet, "),
        (["import", "none.ndjson"], 1, "none.ndjson does not exist"),
        (["export", "none/a.ndjson"], 2, "No such file or directory"),
        (["export", "a.ndjson", "--collection-id", "x"], 2, "there is no collection 'x'"),
        (["import", "a.ndjson", "--collection", "a.ndjson"], 2, "is not a STAC collection"),
    ],
)
def test_what_is_wrong_with_a_file(
    firn: Run, tmp_path: Path, command: list[str], code: int, says: str
) -> None:
    (tmp_path / "a.ndjson").write_text("5")
    answer = firn("catalog", *command)
    assert (answer.code, says in answer.error) == (code, True)
