"""Settings, from the environment (prefix ``FIRNLINE_``) or a ``.env`` file.

Nothing here is read at import time: make a :class:`Settings` and hand it on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import ByteSize, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CATALOG_URL = "https://its-live-data.s3.amazonaws.com/datacubes/catalog_v02.json"
MOSAIC_ROOT = "https://its-live-data.s3.amazonaws.com/velocity_mosaic"
ITS_LIVE = (
    "https://its-live-data.s3.amazonaws.com/",
    "https://its-live-data.s3.us-west-2.amazonaws.com/",
    "s3://its-live-data/",
)

Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """All that an operator may set; each field is the variable ``FIRNLINE_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="FIRNLINE_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(
        default_factory=lambda: user_data_path("firnline"),
        description="Where the embedded database and the cache live; default: the platform's "
        "folder for data, as ~/.local/share/firnline.",
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL (sqlite or postgresql); empty: SQLite in DATA_DIR."
    )
    catalog_urls: Words = Field(
        (CATALOG_URL,), description="Datacube catalogs to harvest, comma-separated paths or URLs."
    )
    mosaic_roots: Words = Field(
        (MOSAIC_ROOT,), description="Roots of the velocity mosaics, comma-separated URLs."
    )
    allowed_sources: Words = Field(
        ITS_LIVE,
        description="URL roots that may be read, comma-separated (https://, s3:// or file:///); "
        "private://HOST lets the name of a host lead to a private address.",
    )
    signed_sources: Words = Field(
        (),
        description="Those of the s3:// roots that are read with the credentials of the AWS_... "
        "variables or of the machine's role, comma-separated; others are read anonymously.",
    )
    cache_url: str = Field(
        "",
        description="Where the materialised subsets are: a directory, or s3://bucket/prefix with "
        "the credentials of the AWS_... variables or of the machine's role. Empty: DATA_DIR/cache.",
    )
    cache_quota: ByteSize = Field(
        ByteSize(0),
        description="Disk space for materialised subsets: beyond it those go that were not used "
        "for longest; 0: no limit.",
    )
    chunk_cache_quota: ByteSize = Field(
        ByteSize(10_000_000_000),
        description="Disk space for source chunks as they were fetched, in DATA_DIR/chunks, so "
        "that overlapping areas are not downloaded twice; 0: none are kept.",
    )
    harvest_schedule: str = Field(
        "",
        description="When `serve` harvests, deep: a cron expression in UTC, as '30 4 * * *' or "
        "@daily; empty: only an empty catalog, at the start.",
    )
    memory_limit: ByteSize = Field(
        ByteSize(2_000_000_000),
        description="Memory of a process that does a job, all of it; 256MB is about the least.",
    )
    concurrency: int = Field(16, ge=1, le=256, description="Requests under way at once in a job.")
    dask_scheduler: str = Field(
        "",
        description="Address of a Dask scheduler, as tcp://host:8786, whose workers do the tiles "
        "of jobs; they see DATA_DIR and the cache under the same paths, if that is not in a "
        "bucket. Empty: threads.",
    )
    max_aoi_km2: float = Field(
        100_000.0, gt=0, description="Largest area of a materialisation, in square kilometres."
    )
    max_job_bytes: ByteSize = Field(
        ByteSize(200_000_000_000), description="Largest output of a job, uncompressed, in bytes."
    )
    sync_bytes: ByteSize = Field(
        ByteSize(200_000_000),
        description="A request of OGC API - Processes that reads no more than this, in bytes of "
        "source chunks as decoded, is done while its caller waits; 0: none.",
    )
    lease_seconds: float = Field(
        60.0, gt=0, description="A job whose worker is silent for so long is given to another."
    )
    retry_seconds: float = Field(
        15.0,
        ge=0,
        description="A job whose sources can't be reached is tried again after so long, then "
        "after four times as long.",
    )
    api_keys_required: bool = Field(
        True,
        description="Ask for an API key as soon as there is one, and refuse to serve on a public "
        "address while there is none; false where a proxy in front decides who may come in.",
    )
    anonymous_scopes: Words = Field(
        (),
        description="What may be done without an API key where keys are asked for, "
        "comma-separated: read, materialise.",
    )
    rate_limit: str = Field(
        "",
        description="Most requests of an API key, or of an address, as '100/second; 2000/minute'; "
        "empty: no limit.",
    )
    cors_origins: Words = Field(
        ("*",), description="Sites whose pages may read the API, comma-separated; *: all."
    )
    public_url: str = Field(
        "", description="Base URL that links carry; empty: taken from each request."
    )
    log_format: Literal["console", "json"] = Field("console", description="How logs are written.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level that is logged."
    )

    @field_validator("cache_url")
    @classmethod
    def _place(cls, value: str) -> str:
        if "://" in value and not re.fullmatch(r"s3://[^/?#\s]+(/[^?#\s]*)?", value):
            raise ValueError("accepted: a directory, or s3://bucket/prefix")
        return value

    @field_validator(
        "catalog_urls",
        "mosaic_roots",
        "allowed_sources",
        "signed_sources",
        "anonymous_scopes",
        "cors_origins",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @property
    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{self.data_dir / 'firnline.db'}"

    @property
    def cache_dir(self) -> Path:
        """The directory of the materialised subsets, or of the work at those in a bucket."""
        local = self.cache_url and not self.cache_in_bucket
        return Path(self.cache_url) if local else self.data_dir / "cache"

    @property
    def cache_in_bucket(self) -> bool:
        """Whether the materialised subsets are in a bucket."""
        return self.cache_url.startswith("s3://")

    @property
    def cache_place(self) -> str:
        """Where the materialised subsets are, for people."""
        return self.cache_url or str(self.cache_dir)

    def environment(self) -> dict[str, str]:
        """The variables that give another process these settings."""
        shown = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            f"{self.model_config['env_prefix']}{name}".upper(): ",".join(value)
            if isinstance(value, tuple)
            else str(int(value) if isinstance(value, int) else value)
            for name, value in shown.items()
        }
