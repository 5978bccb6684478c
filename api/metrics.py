"""/metrics: what Prometheus asks for.

Requests are counted in this process; what jobs, workers and harvests did comes from the database,
so that it's the same whichever process answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select
from starlette.responses import Response

from firnline.database import overview, reading
from firnline.tables import counters, harvests, jobs

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Requests:
    """Requests of this process: how many of each kind, and how long they took."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("method", "route", "status")
        self._count = Counter(
            "firnline_http_requests", "Requests that were answered.", names, registry=self.registry
        )
        self._seconds = Histogram(
            "firnline_http_request_seconds",
            "Time until a request was answered in full.",
            names[:2],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one."""
        self._count.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)


class _Database(Collector):
    """What the database knows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Nothing in advance: that would ask the database when the application is made."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of it, as of now."""
        now = datetime.now(UTC)
        known = overview(self._engine)
        with reading(self._engine) as connection:
            waiting = connection.scalar(
                select(func.min(jobs.c.created)).where(jobs.c.status == "accepted")
            )
            harvested = connection.scalar(
                select(func.max(harvests.c.finished)).where(harvests.c.error.is_(None))
            )
            done = connection.execute(select(counters.c.name, counters.c.value)).all()
        for name, help, label in (
            ("items", "Items of the catalog.", "collection"),
            ("jobs", "Jobs.", "status"),
        ):
            family = GaugeMetricFamily(f"firnline_{name}", help, labels=[label])
            for value, count in known[name].items():
                family.add_metric([value], count)
            yield family
        yield _gauge("subsets", "Subsets that are stored.", known["subsets"]["count"])
        yield _gauge("subset_bytes", "Their size on disk.", known["subsets"]["bytes"])
        oldest = 0.0 if waiting is None else (now - waiting).total_seconds()
        yield _gauge("queue_seconds", "How long the oldest job has been waiting.", oldest)
        if harvested is not None:
            age = (now - harvested).total_seconds()
            yield _gauge("harvest_age_seconds", "Since the last harvest that went well.", age)
        for name, value in done:
            yield CounterMetricFamily(
                f"firnline_work_{name}", f"Of all workers together: {name}.", value
            )


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"firnline_{name}", help, value)


def create_router(engine: Engine, requests: Requests) -> APIRouter:
    """The route that Prometheus scrapes."""
    router = APIRouter(tags=["Health"])
    known = CollectorRegistry()
    known.register(_Database(engine))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        """Requests, jobs, what was fetched, the harvest's age, as Prometheus reads them."""
        body = generate_latest(requests.registry) + generate_latest(known)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    return router
