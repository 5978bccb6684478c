"""Settings: every name of the contract that is in force, read from the environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firnline.cli import main
from firnline.settings import CATALOG_URL, ITS_LIVE, MOSAIC_ROOT, Settings

EXAMPLES: dict[str, tuple[str, str, Any]] = {
    "DATA_DIR": ("data_dir", "/srv/firnline", Path("/srv/firnline")),
    "DATABASE_URL": ("database_url", "postgresql://u@h/db", "postgresql://u@h/db"),
    "CATALOG_URLS": (
        "catalog_urls", "https://a.example/c.json, /srv/b.geojson,",
        ("https://a.example/c.json", "/srv/b.geojson"),
    ),
    "MOSAIC_ROOTS": ("mosaic_roots", "https://a.example/m", ("https://a.example/m",)),
    "ALLOWED_SOURCES": ("allowed_sources", "a.example,s3://b/", ("a.example", "s3://b/")),
    "SIGNED_SOURCES": ("signed_sources", "s3://mine/,s3://ours/x", ("s3://mine/", "s3://ours/x")),
    "CACHE_URL": ("cache_url", "/mnt/cache", "/mnt/cache"),
    "CACHE_QUOTA": ("cache_quota", "50GB", 50_000_000_000),
    "CHUNK_CACHE_QUOTA": ("chunk_cache_quota", "1.5 GiB", 1_610_612_736),
    "MEMORY_LIMIT": ("memory_limit", "512MiB", 536_870_912),
    "CONCURRENCY": ("concurrency", "3", 3),
    "DASK_SCHEDULER": ("dask_scheduler", "tcp://scheduler:8786", "tcp://scheduler:8786"),
    "HARVEST_SCHEDULE": ("harvest_schedule", "0 3 * * 1", "0 3 * * 1"),
    "PUBLIC_URL": ("public_url", "https://ice.example/stac", "https://ice.example/stac"),
    "RETRY_SECONDS": ("retry_seconds", "60", 60.0),
    "API_KEYS_REQUIRED": ("api_keys_required", "false", False),
    "ANONYMOUS_SCOPES": ("anonymous_scopes", "read", ("read",)),
    "CORS_ORIGINS": ("cors_origins", "https://a.example", ("https://a.example",)),
    "SYNC_BYTES": ("sync_bytes", "1GB", 1_000_000_000),
    "MAX_JOB_BYTES": ("max_job_bytes", "50GB", 50_000_000_000),
    "MAX_AOI_KM2": ("max_aoi_km2", "2500.5", 2500.5),
    "RATE_LIMIT": ("rate_limit", "100/minute", "100/minute"),
    "LOG_FORMAT": ("log_format", "json", "json"),
    "LOG_LEVEL": ("log_level", "WARNING", "WARNING"),
    "LEASE_SECONDS": ("lease_seconds", "2.5", 2.5),
}  # fmt: skip
"""Variable: the field, a value as written, and as read. Those of the contract and our own."""

IN_FORCE = {name for name in EXAMPLES if EXAMPLES[name][0] in Settings.model_fields}
NOT_YET = {"DASK_SCHEDULER"}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where no .env lies


def test_every_setting_has_an_example_here() -> None:
    assert set(Settings.model_fields) == {EXAMPLES[name][0] for name in IN_FORCE}
    assert set(EXAMPLES) - IN_FORCE <= NOT_YET


def test_they_are_handed_on_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in (Settings(), Settings(**{EXAMPLES[n][0]: EXAMPLES[n][2] for n in IN_FORCE})):
        environment = chosen.environment()
        assert set(environment) == {f"FIRNLINE_{name}" for name in IN_FORCE}
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert Settings() == chosen


@pytest.mark.parametrize("name", sorted(IN_FORCE))
def test_it_is_read_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, written, value = EXAMPLES[name]
    assert getattr(Settings(), field) != value, "the example is no example"
    monkeypatch.setenv(f"FIRNLINE_{name}", written)
    assert getattr(Settings(), field) == value
    assert type(getattr(Settings(), field)).__name__ in (type(value).__name__, "ByteSize")


def test_defaults() -> None:
    settings = Settings()
    assert settings.allowed_sources == ITS_LIVE
    assert settings.catalog_urls == (CATALOG_URL,)
    assert settings.mosaic_roots == (MOSAIC_ROOT,)
    assert settings.memory_limit == 2_000_000_000
    assert settings.database == f"sqlite:///{settings.data_dir}/firnline.db"
    assert settings.cache_dir == settings.data_dir / "cache"
    assert settings.api_keys_required is True


def test_what_follows_from_others(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.database == f"sqlite:///{tmp_path}/firnline.db"
    assert settings.cache_dir == tmp_path / "cache"
    other = Settings(data_dir=tmp_path, database_url="sqlite:///x.db", cache_url="/mnt/cache")
    assert (other.database, other.cache_dir) == ("sqlite:///x.db", Path("/mnt/cache"))


def test_a_cache_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path, cache_url="s3://bucket/a/b")
    assert settings.cache_dir == tmp_path / "cache", "where work is done"
    assert settings.cache_place == "s3://bucket/a/b"
    assert Settings(data_dir=tmp_path).cache_place == str(tmp_path / "cache")
    for url in (
        "s3://",
        "s3:///a",
        "https://bucket/a",
        "gs://bucket/a",
        "s3://bucket/a?b",
        "s3://b c",
    ):
        with pytest.raises(ValidationError, match="accepted: a directory, or s3://bucket/prefix"):
            Settings(cache_url=url)


def test_a_dotenv_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "FIRNLINE_MEMORY_LIMIT=1GB\nFIRNLINE_CATALOG_URLS=a.json,b.json\n"
        "FIRNLINE_CONCURRENCY=5\nOTHERS_VARIABLE=1\nFIRNLINE_OF_THE_FUTURE=1\n"
    )
    monkeypatch.setenv("FIRNLINE_CONCURRENCY", "7")
    settings = Settings()
    assert settings.memory_limit == 1_000_000_000
    assert settings.catalog_urls == ("a.json", "b.json")
    assert settings.concurrency == 7


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().concurrency = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEMORY_LIMIT", "plenty"),
        ("MEMORY_LIMIT", ""),
        ("MEMORY_LIMIT", "-1GB"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "257"),
        ("CONCURRENCY", "many"),
        ("MAX_AOI_KM2", "0"),
        ("MAX_AOI_KM2", "nan"),
        ("MAX_JOB_BYTES", "50 light years"),
        ("LEASE_SECONDS", "-1"),
        ("LEASE_SECONDS", "nan"),
        ("API_KEYS_REQUIRED", "perhaps"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "CHATTY"),
    ],
)
def test_a_bad_value_is_bad_input_and_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"FIRNLINE_{name}", value)
    monkeypatch.setattr(sys, "argv", ["firnline", "status", "--settings"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: setting FIRNLINE_{name}: ")


def test_a_bad_database_url_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIRNLINE_DATABASE_URL", "postgresql://user:hunter2@host:port/name")
    monkeypatch.setattr("firnline.logs.configure", lambda settings: None)
    for arguments in (["migrate"], ["status"]):
        monkeypatch.setattr(sys, "argv", ["firnline", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert "hunter2" not in out + err
        assert caught.value.code == 2
        (line,) = err.splitlines()
        assert "FIRNLINE_DATABASE_URL" in line
