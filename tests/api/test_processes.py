"""OGC API - Processes: answers, and their validity by the standard's own schemas."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4
from sqlalchemy import Engine, insert, update

from firnline.cache import jobs
from firnline.database import writing
from firnline.settings import Settings
from firnline.tables import jobs as jobs_table
from firnline.tables import subsets
from tests.api.conftest import SHARED, Client, box, make_item, put

EXCEPTION = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0/"
SCHEMAS = SHARED / "schemas/ogcapi-processes-1.0/core/openapi/schemas"
INPUTS = {"bbox": [465000, -2300000, 496000, -2258000], "crs": "EPSG:3413"}


class Schemas:
    """The YAML schemas of the standard (OpenAPI 3.0 dialect, close to JSON Schema draft 4)."""

    def __init__(self, folder: Path) -> None:
        yaml = pytest.importorskip("yaml")
        self.contents = {
            path.relative_to(folder).as_posix(): _plain(yaml.safe_load(path.read_text()))
            for path in folder.rglob("*.yaml")
        }
        resources = [
            (name, Resource.from_contents(content, default_specification=DRAFT4))
            for name, content in self.contents.items()
        ]
        self.registry: Registry[Any] = Registry().with_resources(resources)

    def check(self, name: str, document: Any) -> None:
        validator = Draft4Validator({"$ref": f"{name}.yaml"}, registry=self.registry)
        problems = [f"{list(e.path)}: {e.message[:300]}" for e in validator.iter_errors(document)]
        assert not problems, problems


def _plain(schema: Any) -> Any:
    """Without examples, whose `$ref`s are text, and with `anyOf` for `oneOf`.

    The standard's own `oneOf`s exclude what they mean to allow: every string is also a
    binaryInputValue, and every integer a number, so that neither is one of exactly one kind.
    """
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if isinstance(schema, dict):
        return {
            "anyOf" if key == "oneOf" and isinstance(value, list) else key: _plain(value)
            for key, value in schema.items()
            if key != "example"
        }
    return schema


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    if not SCHEMAS.is_dir():
        pytest.skip("the standard's schemas are not here")
    return Schemas(SCHEMAS)


@pytest.fixture(autouse=True)
def cube(engine: Engine) -> None:
    """A cube that covers what the tests ask for: without one they would be refused."""
    properties = {
        "datetime": None,
        "start_datetime": "2018-01-01T00:00:00Z",
        "end_datetime": "2019-01-01T00:00:00Z",
        "proj:code": "EPSG:3413",
        "proj:bbox": [-1e6, -3e6, 1e6, -1e6],
    }
    assets = {"zarr": {"href": "https://its-live-data.s3.amazonaws.com/x.zarr"}}
    area = box(-60, 60, -30, 80)
    put(engine, [make_item("cube", area, properties=properties, assets=assets)])


def submit(client: Client, **inputs: Any) -> dict[str, Any]:
    answer = execute(client, {"inputs": {**INPUTS, **inputs}}, "respond-async")
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def execute(client: Client, body: Any, prefer: str = "") -> Any:
    headers = {"Prefer": prefer} if prefer else {}
    return client.http.post("/processes/materialise/execution", json=body, headers=headers)


def finish(engine: Engine, id: str, subset: str) -> None:
    """What a worker does when it publishes."""
    now = datetime.now(UTC)
    put(engine, [make_item(subset, box(-50, 68, -49, 69), collection="subsets")])
    with writing(engine) as connection:
        connection.execute(
            update(jobs_table)
            .where(jobs_table.c.id == id)
            .values(status="successful", progress=100, subset=subset, started=now, finished=now)
        )
        connection.execute(
            insert(subsets).values(
                id=subset,
                request_key=connection.scalar(
                    jobs_table.select()
                    .where(jobs_table.c.id == id)
                    .with_only_columns(jobs_table.c.request_key)
                ),
                request="{}",
                generation="g1",
                sources="[]",
                size=1,
                stale=False,
                created=now,
                last_used=now,
            )
        )


def rels(document: dict[str, Any]) -> dict[str, str]:
    return {link["rel"]: link["href"] for link in document["links"]}


class TestDescriptions:
    def test_list(self, client: Client, schemas: Schemas) -> None:
        answer = client.get("/processes")
        schemas.check("processList", answer)
        assert [each["id"] for each in answer["processes"]] == ["materialise", "echo"]
        options = ["sync-execute", "async-execute", "dismiss"]
        assert answer["processes"][0]["jobControlOptions"] == options

    @pytest.mark.parametrize("id", ["materialise", "echo"])
    def test_description(self, client: Client, schemas: Schemas, id: str) -> None:
        answer = client.get(f"/processes/{id}")
        schemas.check("process", answer)
        assert answer["id"] == id
        links = rels(answer)
        execute = "http://www.opengis.net/def/rel/ogc/1.0/execute"
        assert links[execute] == f"http://testserver/processes/{id}/execution"

    def test_inputs_are_those_of_a_request(self, client: Client) -> None:
        inputs = client.get("/processes/materialise")["inputs"]
        assert {"bbox", "geometry", "crs", "datetime", "composite", "strain"} <= set(inputs)
        assert inputs["mode"]["schema"]["enum"] == ["materialise", "estimate"]
        assert inputs["bbox"]["minOccurs"] == 0
        assert inputs["bbox"]["schema"]["minItems"] == 4
        assert inputs["bbox"]["schema"]["nullable"] is True
        assert inputs["format"]["schema"]["enum"] == ["v3", "v2"]

    def test_conformance_and_landing(self, client: Client, schemas: Schemas) -> None:
        schemas.check("confClasses", client.get("/conformance"))
        schemas.check("landingPage", client.get("/"))

    def test_no_such_process(self, client: Client, schemas: Schemas) -> None:
        for method, path in [("GET", "/processes/x"), ("POST", "/processes/x/execution")]:
            options = {"json": {"inputs": {}}} if method == "POST" else {}
            problem = client.problem(method, path, 404, **options)
            assert problem["type"] == EXCEPTION + "no-such-process"
            schemas.check("exception", problem)


class TestEcho:
    @pytest.mark.parametrize("message", ["hello", 3.5, True, [1, 2], {"a": {"b": 1}}])
    def test_gives_back(self, client: Client, schemas: Schemas, message: Any) -> None:
        given = {"value": message} if isinstance(message, dict) else message
        answer = client.post("/processes/echo/execution", {"inputs": {"message": given}})
        schemas.check("results", answer)
        assert answer == {"message": given}

    @pytest.mark.parametrize(
        "message", ["[" * 900 + "]" * 900, "9" * 400, '"\\ud800"', '{"a": "\\udfff"}']
    )
    def test_what_can_t_be_given_back(self, client: Client, message: str) -> None:
        raw = '{"inputs": {"message": ' + message + "}}"
        options = {"content": raw.encode(), "headers": {"Content-Type": "application/json"}}
        problem = client.problem("POST", "/processes/echo/execution", 400, **options)
        assert "given back" in problem["detail"]

    def test_half_of_a_surrogate_pair_in_a_name(self, client: Client) -> None:
        raw = b'{"inputs": {"\\ud800": {"href": "x"}}}'
        options = {"content": raw, "headers": {"Content-Type": "application/json"}}
        problem = client.problem("POST", "/processes/materialise/execution", 400, **options)
        assert problem["detail"].startswith("\\ud800: inputs are given by value")

    def test_raw(self, client: Client) -> None:
        body = {"inputs": {"message": "hello"}, "response": "raw"}
        answer = client.http.post("/processes/echo/execution", json=body)
        assert answer.json() == "hello"

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"inputs": {}},
            {"inputs": {"message": 1, "more": 2}},
            {"inputs": []},
            {"inputs": {"message": {"href": "http://169.254.169.254/latest"}}},
            {"inputs": {"message": 1}, "response": "carrier pigeon"},
            None,
        ],
    )
    def test_refused(self, client: Client, body: Any) -> None:
        client.problem("POST", "/processes/echo/execution", 400, json=body)


class TestMaterialise:
    def test_execution_makes_a_job(self, client: Client, schemas: Schemas) -> None:
        answer = client.http.post(
            "/processes/materialise/execution",
            json={"inputs": INPUTS},
            headers={"Prefer": "respond-async"},
        )
        assert answer.status_code == 201
        assert answer.headers["preference-applied"] == "respond-async"
        info = answer.json()
        schemas.check("statusInfo", info)
        assert answer.headers["location"] == f"http://testserver/jobs/{info['jobID']}"
        assert (info["status"], info["progress"], info["type"]) == ("accepted", 0, "process")
        assert info["processID"] == "materialise"
        assert {"created", "updated"} <= set(info)
        assert "started" not in info
        assert client.http.get(answer.headers["location"]).json() == info
        assert rels(info)["self"] == answer.headers["location"]

    def test_the_same_request_is_the_same_job(self, client: Client) -> None:
        first = submit(client)
        assert submit(client)["jobID"] == first["jobID"]
        qualified = {"bbox": {"value": INPUTS["bbox"]}, "crs": "epsg:3413"}
        again = client.post("/processes/materialise/execution", {"inputs": qualified}, status=201)
        assert again["jobID"] == first["jobID"]
        assert submit(client, format="v2")["jobID"] != first["jobID"]

    @pytest.mark.parametrize(
        ("inputs", "name"),
        [
            ({}, "bbox"),
            ({"bbox": [0, 0, 1]}, "bbox"),
            ({"bbox": [1, 0, 0, 0]}, "bbox"),
            ({**INPUTS, "crs": "EPSG:0"}, "crs"),
            ({**INPUTS, "datetime": "yesterday"}, "datetime"),
            ({**INPUTS, "colour": "blue"}, "colour"),
            ({**INPUTS, "variables": ["vz"]}, "variables"),
            ({"geometry": {"href": "file:///etc/passwd"}}, "geometry"),
            ({"geometry": {"value": {"type": "Point", "coordinates": [0, 0]}}}, "geometry"),
            ({"bbox": [-60, 60, -20, 83]}, "area"),
        ],
    )
    def test_refused(self, client: Client, schemas: Schemas, inputs: Any, name: str) -> None:
        path = "/processes/materialise/execution"
        problem = client.problem("POST", path, 400, json={"inputs": inputs})
        schemas.check("exception", problem)
        assert name in problem["detail"]
        assert client.get("/jobs")["jobs"] == []

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ({"inputs": {**INPUTS, "mode": "guess"}}, "mode"),
            ({"inputs": INPUTS, "outputs": {"picture": {}}}, "'picture' is not one of"),
            ({"inputs": INPUTS, "outputs": {"item": {"transmissionMode": "post"}}}, "outputs"),
            (
                {
                    "inputs": {**INPUTS, "mode": "estimate"},
                    "outputs": {"estimate": {"transmissionMode": "reference"}},
                },
                "by value only",
            ),
        ],
    )
    def test_refused_forms(self, client: Client, body: Any, told: str) -> None:
        path = "/processes/materialise/execution"
        assert told in client.problem("POST", path, 400, json=body)["detail"]
        assert client.get("/jobs")["jobs"] == []

    def test_what_the_catalog_has_not_read_is_a_job(self, client: Client) -> None:
        """How small it is, is not known: whoever waits gets a job at once."""
        for prefer in ("", "respond-sync", "wait=30"):
            answer = execute(client, {"inputs": INPUTS}, prefer)
            assert answer.status_code == 201
            assert answer.headers["preference-applied"] == "respond-async"

    def test_nan_is_refused(self, client: Client) -> None:
        raw = b'{"inputs":{"bbox":[NaN,0,1,1]}}'
        options = {"content": raw, "headers": {"Content-Type": "application/json"}}
        problem = client.problem("POST", "/processes/materialise/execution", 400, **options)
        assert "bbox" in problem["detail"]


class TestJobs:
    def test_list_and_its_filters(self, client: Client, engine: Engine, schemas: Schemas) -> None:
        ids = [submit(client, dt_days=[0, n])["jobID"] for n in range(1, 6)]
        client.http.delete(f"/jobs/{ids[0]}")
        answer = client.get("/jobs")
        schemas.check("jobList", answer)
        assert {job["jobID"] for job in answer["jobs"]} == set(ids)

        def chosen(**query: Any) -> set[str]:
            return {job["jobID"] for job in client.get("/jobs", **query)["jobs"]}

        assert chosen(status="dismissed") == {ids[0]}
        assert chosen(status=["dismissed", "accepted"]) == set(ids)
        assert chosen(type="process", processID="materialise") == set(ids)
        assert chosen(processID="echo") == chosen(type="other") == set()
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00Z")
        assert chosen(datetime=f"../{tomorrow}") == set(ids)
        assert chosen(datetime=f"{tomorrow}/..") == chosen(minDuration=10) == set()
        assert chosen(maxDuration=10) == set(ids)
        assert len(chosen(limit=2)) == 2

    @pytest.mark.parametrize("query", ["limit=0", "status=lost", "datetime=x", "colour=blue"])
    def test_bad_filters(self, client: Client, query: str) -> None:
        problem = client.problem("GET", f"/jobs?{query}", 400)
        assert query.split("=")[0] in problem["detail"]

    def test_results_not_ready(self, client: Client, schemas: Schemas) -> None:
        id = submit(client)["jobID"]
        problem = client.problem("GET", f"/jobs/{id}/results", 404)
        schemas.check("exception", problem)
        assert problem["type"] == EXCEPTION + "result-not-ready"

    def test_results(
        self, client: Client, engine: Engine, settings: Settings, schemas: Schemas
    ) -> None:
        id = submit(client)["jobID"]
        finish(engine, id, "subset-1")
        info = client.get(f"/jobs/{id}")
        schemas.check("statusInfo", info)
        assert (info["status"], info["progress"]) == ("successful", 100)
        assert {"created", "started", "finished", "updated"} <= set(info)
        item = client.get("/collections/subsets/items/subset-1")
        href = "http://testserver/collections/subsets/items/subset-1"
        assert rels(info)["item"] == href
        results = rels(info)["http://www.opengis.net/def/rel/ogc/1.0/results"]
        answer = client.http.get(results).json()
        schemas.check("results", answer)
        assert answer["subset"]["href"] == href
        assert answer["item"] == {"mediaType": "application/geo+json", "value": item}
        # asked again, it is there at once
        (settings.cache_dir / "subsets" / "subset-1" / "g1").mkdir(parents=True)
        again = submit(client)
        assert (again["status"], rels(again)["item"]) == ("successful", href)

    def test_forms_of_results(
        self, client: Client, engine: Engine, settings: Settings, schemas: Schemas
    ) -> None:
        """What is stored already is answered at once, in each way the standard has."""
        id = submit(client)["jobID"]
        finish(engine, id, "subset-1")
        (settings.cache_dir / "subsets" / "subset-1" / "g1").mkdir(parents=True)
        item = client.get("/collections/subsets/items/subset-1")
        href = "http://testserver/collections/subsets/items/subset-1"
        link = {"rel": "item", "type": "application/geo+json", "href": href}
        value = {"mediaType": "application/geo+json", "value": item}

        def asked(response: str = "document", **modes: str) -> Any:
            outputs = {name: {"transmissionMode": mode} for name, mode in modes.items()}
            body = {"inputs": INPUTS, "outputs": outputs, "response": response}
            return execute(client, body, "respond-sync")

        answer = asked()
        assert answer.status_code == 200
        assert answer.json() == {"subset": link, "item": value}
        assert answer.headers["preference-applied"] == "respond-sync"
        monitor = answer.headers["link"]
        assert monitor.startswith("<http://testserver/jobs/")
        assert 'rel="monitor"' in monitor
        for modes, document in [
            ({"item": "value"}, {"item": value}),
            ({"item": "reference"}, {"item": link}),
            ({"subset": "value"}, {"subset": href}),
            ({"subset": "value", "item": "reference"}, {"subset": href, "item": link}),
        ]:
            answer = asked(**modes)
            schemas.check("results", answer.json())
            assert answer.json() == document
        bare = asked("raw", item="value")
        assert bare.json() == item
        assert bare.headers["content-type"] == "application/geo+json"
        assert asked("raw", subset="value").json() == href
        linked = asked("raw", item="reference")
        assert (linked.status_code, linked.content) == (204, b"")
        assert f'<{href}>; rel="item"' in linked.headers["link"]
        parts = asked("raw", subset="reference", item="value")
        kind = parts.headers["content-type"]
        assert kind.startswith("multipart/related")
        message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + parts.content)
        subset, whole = message.get_payload()
        assert (subset["Content-ID"], subset["Content-Location"]) == ("<subset>", href)
        assert (whole["Content-ID"], json.loads(whole.get_payload())) == ("<item>", item)

    def test_dismiss(self, client: Client, schemas: Schemas) -> None:
        id = submit(client)["jobID"]
        answer = client.http.delete(f"/jobs/{id}")
        assert answer.status_code == 200
        schemas.check("statusInfo", answer.json())
        assert answer.json()["status"] == "dismissed"
        client.problem("DELETE", f"/jobs/{id}", 409)
        client.problem("GET", f"/jobs/{id}/results", 410)

    def test_failed(self, client: Client, engine: Engine) -> None:
        id = submit(client)["jobID"]
        job = jobs.claim(engine, "worker", 60)
        assert job is not None
        jobs.fail(engine, job, "the source did not answer")
        assert client.get(f"/jobs/{id}")["status"] == "failed"
        problem = client.problem("GET", f"/jobs/{id}/results", 500)
        assert problem["detail"] == "the source did not answer"

    @pytest.mark.parametrize("id", ["none", "%00", "..", "x" * 3000])
    @pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("GET", "/results"), ("DELETE", "")])
    def test_no_such_job(
        self, client: Client, schemas: Schemas, id: str, method: str, tail: str
    ) -> None:
        if id == "..":
            id = "%2e%2e"
        problem = client.problem(method, f"/jobs/{id}{tail}", 404)
        if id != "%2e%2e":
            assert problem["type"] == EXCEPTION + "no-such-job"
        schemas.check("exception", problem)


def test_the_checker_takes_what_is_right_and_refuses_what_is_not(schemas: Schemas) -> None:
    right = {"jobID": "x", "type": "process", "status": "running", "progress": 5}
    schemas.check("statusInfo", right)
    for wrong in ({"status": "lost"}, {"progress": 101}, {"jobID": 1}, {"links": [{}]}):
        with pytest.raises(AssertionError):
            schemas.check("statusInfo", {**right, **wrong})
