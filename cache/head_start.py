"""The first chunks of a job, asked for while its plan is still being made.

A plan needs metadata and image pairs of each cube. Which chunks will be wanted is known before that
where the index of image pairs has the cubes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from firnline.cache.chunk_cache import open_chunk_cache
from firnline.cache.chunk_requests import ChunkRequests
from firnline.cache.jobs import Job
from firnline.cache.memory import is_short, shares
from firnline.cache.plan import Plan
from firnline.cache.tiles import in_order
from firnline.settings import Settings


class HeadStart(AbstractContextManager["HeadStart"]):
    """Begins to fetch what a job will need; use as a context manager.

    Not where it would fetch what need not be: for a job that has finished tiles, one whose tiles
    are done elsewhere, or a refresh without a chunk cache, which asks for less. Nor where there is
    no memory for it.
    """

    def __init__(self, settings: Settings, job: Job) -> None:
        self.requests: ChunkRequests | None = None
        """What was begun."""
        self._settings = settings
        self._wanted = (
            job.attempt == 1
            and settings.chunk_cache_quota > 0
            and not settings.dask_scheduler
            and not is_short(settings.memory_limit)
        )

    def __exit__(self, *exc: object) -> None:
        if self.requests is not None:
            self.requests.close()

    @property
    def begin(self) -> Callable[[Plan], None] | None:
        """What asks for the first chunks of what the index makes of the plan."""
        return self._begin if self._wanted else None

    def _begin(self, plan: Plan) -> None:
        self.requests = ChunkRequests(
            plan,
            plan.tiles,
            concurrency=self._settings.concurrency,
            memory=shares(self._settings.memory_limit),
            keeper=open_chunk_cache(self._settings),
        )
        self.requests.begin(in_order(plan, plan.tiles))
