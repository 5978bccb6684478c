"""OGC API - Processes 1.0: what can be run here, running it, and the jobs.

Two processes: ``materialise`` puts a job into the queue, and waits for one that is small if its
caller does; ``echo`` gives back what it got (test suites ask for one). There is no ``callback``
class, since a server that calls addresses named by its callers can be turned against its own
network.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from firnline.api.errors import problem
from firnline.api.execution import Execution, Output, Preference, header_link, results
from firnline.api.instants import parse_datetime
from firnline.api.links import (
    GEOJSON,
    JSON,
    REL_EXECUTE,
    REL_MONITOR,
    REL_RESULTS,
    Base,
    JSONBytes,
    Link,
)
from firnline.cache import jobs
from firnline.cache.estimate import estimate
from firnline.cache.jobs import Job
from firnline.cache.opening import ask
from firnline.cache.request import Request
from firnline.database import get_item, reading
from firnline.errors import InputError, NoCoverageError, NotFoundError
from firnline.items import MOSAICS
from firnline.settings import Settings

CONFORMANCE = [
    f"http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf/{name}"
    for name in ("core", "ogc-process-description", "json", "oas30", "job-list", "dismiss")
]
_EXCEPTION = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0/"
_SUBSETS = "subsets"
_MOST_JOBS = 1000
_MOST_WAITING = 16  # callers at a time; others get their job at once
_UNCLAIMED = 2.0  # seconds after which no worker is free, or there is none
_MODES = ("materialise", "estimate")

Status = Literal["accepted", "running", "successful", "failed", "dismissed"]
_SUMMARIES: dict[str, dict[str, Any]] = {
    "materialise": {
        "id": "materialise",
        "title": "Materialise an area of interest",
        "description": "Stitches the glacier-velocity cubes of an area into one Zarr store, with "
        "composites and strain rates, and publishes it as an item of the collection `subsets`. "
        "The same request again gives the same item at once. What is small is done while the "
        "caller waits, unless it prefers `respond-async`; what is not, or not done by then, is a "
        "job (201). A job's results are both outputs, `subset` by reference and `item` by value.",
        "keywords": ["glacier velocity", "ITS_LIVE", "strain rate", "Zarr"],
        "version": "1.0.0",
        "jobControlOptions": ["sync-execute", "async-execute", "dismiss"],
        "outputTransmission": ["value", "reference"],
    },
    "echo": {
        "id": "echo",
        "title": "Echo",
        "description": "Gives back its input, for trying a client out.",
        "version": "1.0.0",
        "jobControlOptions": ["sync-execute"],
        "outputTransmission": ["value"],
    },
}
_ANYTHING: dict[str, Any] = {
    "oneOf": [{"type": kind} for kind in ("string", "number", "boolean", "object")]
}
_MODE: dict[str, Any] = {
    "title": "Mode",
    "description": "estimate: only tell the image pairs, chunks, bytes and seconds that it would "
    "take, from the catalog alone.",
    "minOccurs": 0,
    "schema": {"type": "string", "enum": list(_MODES), "default": _MODES[0]},
}


class JobFilter(BaseModel):
    """Query of GET /jobs (OGC API - Processes, requirements class Job list)."""

    model_config = ConfigDict(extra="forbid")

    type: list[str] | None = Field(None, description="Only `process` exists.")
    processID: list[str] | None = Field(None, description="Jobs of these processes.")
    status: list[Status] | None = Field(None, description="Jobs in these states.")
    datetime: str | None = Field(None, description="Jobs created within, as in /search.")
    minDuration: int | None = Field(None, ge=0, description="Seconds that it ran, at least.")
    maxDuration: int | None = Field(None, ge=0, description="Seconds that it ran, at most.")
    limit: int = Field(100, ge=1, description=f"At most {_MOST_JOBS:,}.")

    def chosen(self, found: Sequence[Job]) -> list[Job]:
        """The jobs that pass, in their order, up to the limit."""
        start, end = (None, None) if self.datetime is None else parse_datetime(self.datetime)
        if self.type is not None and "process" not in self.type:
            return []
        if self.processID is not None and "materialise" not in self.processID:
            return []
        passed = [
            job
            for job in found
            if (self.status is None or job.status in self.status)
            and (start is None or job.created >= start)
            and (end is None or job.created <= end)
            and (self.minDuration is None or _seconds(job) >= self.minDuration)
            and (self.maxDuration is None or _seconds(job) <= self.maxDuration)
        ]
        return passed[: self.limit]


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The routes of OGC API - Processes."""
    router = APIRouter(tags=["Processes"])
    waiting = 0  # callers, for the end of their jobs

    def base_of(request: HTTPRequest) -> Base:
        return Base.of(request, settings.public_url)

    @router.get("/processes")
    def list_processes(request: HTTPRequest) -> Response:
        """The processes on offer (OGC API - Processes, 7.9)."""
        base = base_of(request)
        processes = [
            {**summary, "links": [base.link("self", f"/processes/{id}", title="Description")]}
            for id, summary in _SUMMARIES.items()
        ]
        return _json({"processes": processes, "links": [base.link("self", "/processes")]})

    @router.get("/processes/{process_id}")
    def describe_process(process_id: str, request: HTTPRequest) -> Response:
        """Inputs and outputs of a process (7.10)."""
        if process_id not in _SUMMARIES:
            return _no_such_process(process_id, request)
        base = base_of(request)
        here = f"/processes/{process_id}"
        links = [base.link("self", here), base.link(REL_EXECUTE, f"{here}/execution")]
        return _json({**_SUMMARIES[process_id], **_ports(process_id), "links": links})

    @router.post(
        "/processes/{process_id}/execution",
        responses={
            200: {"description": "The results", "content": {"*/*": {}}},
            201: {"description": "The job of `materialise` that will have them"},
            204: {"description": "Raw results by reference, as links in the header"},
        },
    )
    async def execute(process_id: str, execution: Execution, request: HTTPRequest) -> Response:
        """Run a process (7.11): its results, or 201 and the job that will have them."""
        preference = Preference.of(request.headers.getlist("prefer"))
        begun = await run_sync(begin, process_id, execution, preference, request)
        if isinstance(begun, Response):
            return begun
        job, wait = begun
        job = await ended(job, wait, request)
        return await run_sync(answer, job, execution, preference, base_of(request))

    def begin(
        process_id: str, execution: Execution, preference: Preference, request: HTTPRequest
    ) -> Response | tuple[Job, float]:
        """The answer, where there is no job; or the job, and how long to wait for it."""
        if process_id not in _SUMMARIES:
            return _no_such_process(process_id, request)
        inputs = {name: _inline(name, value) for name, value in execution.inputs.items()}
        if process_id == "echo":
            return results({"message": Output(_echoed(inputs))}, execution)
        mode = inputs.pop("mode", _MODES[0])
        if mode not in _MODES:
            raise InputError(f"mode {str(mode)[:40]!r} is not one of {', '.join(_MODES)}")
        asked = Request.parse(inputs, settings)
        if mode == "estimate":
            told = orjson.dumps(estimate(engine, asked).summary())
            return results({"estimate": Output(told)}, execution)
        _check_outputs(execution)
        small = preference.patience > 0 and _is_small(engine, settings, asked)
        job = ask(engine, settings, asked, key=request.state.api_key)
        return job, preference.patience if small else 0.0

    async def ended(job: Job, seconds: float, request: HTTPRequest) -> Job:
        """The job when it has ended, or when it isn't worth to wait any longer."""
        nonlocal waiting
        if waiting >= _MOST_WAITING:
            return job
        waiting += 1
        try:
            began, pause = time.monotonic(), 0.05
            while job.living and (since := time.monotonic() - began) < seconds:
                unclaimed = job.status == "accepted" and since > _UNCLAIMED
                if unclaimed or await request.is_disconnected():
                    break
                await asyncio.sleep(pause)
                pause = min(1.3 * pause, 0.5)
                job = await run_sync(jobs.get, engine, job.id)
        finally:
            waiting -= 1
        return job

    def answer(job: Job, execution: Execution, preference: Preference, base: Base) -> Response:
        here = f"{base.url}/jobs/{job.id}"
        if job.living or not preference.patience:
            reply = _json(_status_info(job, base), status=201)
            reply.headers["Location"] = here
            reply.headers["Preference-Applied"] = "respond-async"
            return reply
        if job.status != "successful" or job.subset is None:
            return _without_results(job, f"/jobs/{job.id}")
        reply = results(_outputs(job.subset, base), execution)
        reply.headers.append("Link", header_link(here, REL_MONITOR))
        if preference.synchronous:
            reply.headers["Preference-Applied"] = "respond-sync"
        return reply

    @router.get("/jobs")
    def list_jobs(request: HTTPRequest, chosen: Annotated[JobFilter, Query()]) -> Response:
        """The newest jobs, newest first."""
        base = base_of(request)
        found = chosen.chosen(jobs.recent(engine, _MOST_JOBS))
        infos = [_status_info(job, base) for job in found]
        return _json({"jobs": infos, "links": [base.link("self", "/jobs")]})

    @router.get("/jobs/{job_id}")
    def get_job(job_id: str, request: HTTPRequest) -> Response:
        """How far a job is (7.12)."""
        try:
            job = jobs.get(engine, _text(job_id))
        except NotFoundError:
            return _no_such_job(job_id, request)
        return _json(_status_info(job, base_of(request)))

    @router.delete("/jobs/{job_id}")
    def dismiss_job(job_id: str, request: HTTPRequest) -> Response:
        """Stop a job (requirements class Dismiss); 409 when it has ended already."""
        try:
            job = jobs.dismiss(engine, _text(job_id), key=request.state.api_key)
        except NotFoundError:
            return _no_such_job(job_id, request)
        return _json(_status_info(job, base_of(request)))

    @router.get("/jobs/{job_id}/results")
    def get_results(job_id: str, request: HTTPRequest) -> Response:
        """The results of a job (7.13): the item of the subset, by reference and by value."""
        try:
            job = jobs.get(engine, _text(job_id))
        except NotFoundError:
            return _no_such_job(job_id, request)
        if job.status == "successful" and job.subset is not None:
            return results(_outputs(job.subset, base_of(request)))
        return _without_results(job, request.url.path)

    def _outputs(subset: str, base: Base) -> dict[str, Output]:
        with reading(engine) as connection:
            content = get_item(connection, _SUBSETS, subset)
        if content is None:
            raise NotFoundError(f"subset {subset} is no longer stored; ask for it again")
        link = {"rel": "item", "type": GEOJSON, "href": base.item(_SUBSETS, subset)}
        item = base.resolve(base.with_item_links(content, _SUBSETS, subset))
        return {
            "subset": Output(orjson.dumps(link["href"]), JSON, link, "reference"),
            "item": Output(item, GEOJSON, link),
        }

    return router


def _ports(process_id: str) -> dict[str, Any]:
    if process_id == "echo":
        return {
            "inputs": {"message": {"title": "Anything", "schema": _ANYTHING}},
            "outputs": {"message": {"title": "The same", "schema": _ANYTHING}},
        }
    return {
        "inputs": {
            name: {**each, "schema": _openapi_schema(each["schema"])}
            for name, each in Request.input_schemas().items()
        }
        | {"mode": _MODE},
        "outputs": {
            "subset": {
                "title": "Link to the STAC item of the result",
                "schema": {"type": "string", "format": "uri"},
            },
            "item": {
                "title": "The STAC item of the result",
                "schema": {"type": "object", "contentMediaType": GEOJSON},
            },
            "estimate": {
                "title": "What it would take",
                "description": "With `mode: estimate` the only output, as of GET /estimate.",
                "schema": {"type": "object"},
            },
        },
    }


def _openapi_schema(schema: Any) -> Any:
    """A JSON Schema of today in the words of OpenAPI 3.0, which ``schema.yaml`` is made of."""
    if isinstance(schema, list):
        return [_openapi_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "const":
            out["enum"] = [value]
        elif key in ("exclusiveMinimum", "exclusiveMaximum") and not isinstance(value, bool):
            out[key.removeprefix("exclusive").lower()] = value
            out[key] = True
        elif key == "prefixItems":
            kinds = [_openapi_schema(each) for each in value]
            out["items"] = kinds[0] if all(kind == kinds[0] for kind in kinds) else {}
        elif key == "properties":
            out[key] = {name: _openapi_schema(each) for name, each in value.items()}
        elif key in ("enum", "default", "examples"):
            if key != "examples":
                out[key] = value
        else:
            out[key] = _openapi_schema(value)
    choices = out.get("anyOf", [])
    kept = [choice for choice in choices if choice != {"type": "null"}]
    if len(kept) < len(choices):
        out["nullable"] = True
        if len(kept) == 1:
            del out["anyOf"]
            out = {**kept[0], **out}
        else:
            out["anyOf"] = kept
    return out


def _inline(name: str, value: Any) -> Any:
    """The value of an input given inline, as it is or qualified (``inlineOrRefData.yaml``)."""
    if not isinstance(value, dict):
        return value
    if "href" in value and "type" not in value.get("coordinates", {}):
        raise InputError(f"{name}: inputs are given by value; no address is opened")
    if "value" in value and value.keys() <= {"value", "mediaType", "encoding", "schema"}:
        return value["value"]
    return value


def _echoed(inputs: dict[str, Any]) -> bytes:
    if inputs.keys() != {"message"}:
        raise InputError("inputs: echo takes one, `message`")
    try:
        return orjson.dumps(inputs["message"])
    except orjson.JSONEncodeError as error:  # as deep or as long as only some parsers take it
        raise InputError(f"message can't be given back: {error}") from None


def _check_outputs(execution: Execution) -> None:
    """Before a job is made for outputs that it doesn't have."""
    for name in execution.outputs:
        if name not in ("subset", "item"):
            raise InputError(f"outputs: {name[:80]!r} is not one of subset, item")


def _is_small(engine: Engine, settings: Settings, asked: Request) -> bool:
    """Whether it is soon done; what the catalog does not know of is not.

    Raises
    ------
    NoCoverageError
        There is nothing to be done.
    """
    if asked.collection == MOSAICS or not settings.sync_bytes:
        return False
    found = estimate(engine, asked)
    if found.unread:
        return False
    if not found.pairs:
        raise NoCoverageError(
            "none of the image pairs of this area passes the filters (datetime, satellites, "
            "dt_days, min_valid)"
        )
    return found.source_bytes <= settings.sync_bytes


def _status_info(job: Job, base: Base) -> dict[str, Any]:
    """A job as ``statusInfo.yaml``; instants that have not come yet are left out."""
    here = f"/jobs/{job.id}"
    links: list[Link] = [
        base.link("self", here, title="This job"),
        base.link("up", "/jobs", title="Jobs"),
    ]
    if job.status == "successful" and job.subset is not None:
        links.append(base.link(REL_RESULTS, f"{here}/results", title="Results"))
        item = {"rel": "item", "type": GEOJSON, "href": base.item(_SUBSETS, job.subset)}
        links.append({**item, "title": "STAC item of the result"})
    instants = {
        name: value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        for name in ("created", "started", "finished", "updated")
        if (value := getattr(job, name)) is not None
    }
    return {
        "jobID": job.id,
        "processID": "materialise",
        "type": "process",
        "status": job.status,
        "message": job.message,
        "progress": job.progress,
        **instants,
        "links": links,
    }


def _without_results(job: Job, path: str) -> Response:
    if job.status in ("accepted", "running"):
        detail = f"job {job.id} is {job.status}, {job.progress} %: its results are not there yet"
        return problem(
            404, detail, path, type=_EXCEPTION + "result-not-ready", title="Result not ready"
        )
    if job.status == "dismissed":
        return problem(410, f"job {job.id} was dismissed; it has no results", path)
    detail = job.message or "the job failed"
    return problem(500, detail, path, title="The job failed")


def _no_such_process(id: str, request: HTTPRequest) -> Response:
    detail = f"there is no process {id[:80]!r}; there are: {', '.join(_SUMMARIES)}"
    type = _EXCEPTION + "no-such-process"
    return problem(404, detail, request.url.path, type=type, title="No such process")


def _no_such_job(id: str, request: HTTPRequest) -> Response:
    type = _EXCEPTION + "no-such-job"
    detail = f"there is no job {id[:80]!r}"
    return problem(404, detail, request.url.path, type=type, title="No such job")


def _seconds(job: Job) -> float:
    if job.started is None:
        return 0.0
    return ((job.finished or datetime.now(UTC)) - job.started) / timedelta(seconds=1)


def _text(id: str) -> str:
    return re.sub(r"[^0-9A-Za-z-]", "?", id)  # PostgreSQL takes no NUL; ids are UUIDs


def _json(value: object, status: int = 200) -> Response:
    return JSONBytes(orjson.dumps(value), status)
