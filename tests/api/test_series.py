"""GET .../series and .../flowlines of a subset, against the stores that they read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pyproj import Transformer
from starlette.testclient import TestClient

from firnline.api.app import create_app
from firnline.cache import jobs, worker
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect


@dataclass(frozen=True)
class Subset:
    http: TestClient
    folder: Path
    path: str

    def get(self, what: str, **query: Any) -> Any:
        answer = self.http.get(f"{self.path}/{what}", params=query)
        assert answer.status_code == 200, answer.text
        return answer

    def problem(self, what: str, **query: Any) -> dict[str, Any]:
        answer = self.http.get(f"{self.path}/{what}", params=query)
        assert answer.headers["content-type"] == "application/problem+json"
        return dict(answer.json())


@pytest.fixture(scope="module")
def subset(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subset]:
    settings = sample.settings(tmp_path_factory.mktemp("series") / "data")
    engine = connect(settings.database)
    asked = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "strain": False}
    job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(asked, settings)))
    assert job.subset is not None, job.message
    http = TestClient(create_app(settings, engine), raise_server_exceptions=False)
    folder = subset_place(engine, settings, job.subset)
    yield Subset(http, folder, f"/collections/subsets/items/{job.subset}")
    engine.dispose()


def test_a_series_of_image_pairs(subset: Subset) -> None:
    ds = xr.open_zarr(subset.folder / "pairs.zarr").load()
    at = ds.isel(x=20, y=30)
    lon, lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(at.x, at.y)
    answer = subset.get("series", lon=lon, lat=lat).json()
    there = np.isfinite(at.vx.values)
    assert 0 < there.sum() < there.size
    assert answer["numberReturned"] == len(answer["series"]) == there.sum()
    rows = pd.DataFrame(answer["series"])
    assert rows["granule"].tolist() == at.granule.values[there].tolist()
    np.testing.assert_array_equal(rows["vx"], at.vx.values[there])
    np.testing.assert_allclose(rows["v"], np.hypot(at.vx, at.vy).values[there], rtol=1e-6)
    np.testing.assert_allclose(rows["vy_error"], at.vy_error.values[there], rtol=1e-6)
    for name, want in (("mid_date", at.mid_date), ("start", at.acquisition_date_img1)):
        told = np.array([text.removesuffix("Z") for text in rows[name]], "M8[ms]")
        assert abs(told - want.values[there]).max() < np.timedelta64(1, "m")
    assert answer["units"]["v"] == "meter/year"
    links = {link["rel"]: link["href"] for link in answer["links"]}
    assert links["item"].endswith(subset.path)
    assert subset.http.get(links["self"]).json()["series"] == answer["series"]


def test_a_series_as_files_of_an_interval(subset: Subset) -> None:
    ds = xr.open_zarr(subset.folder / "pairs.zarr").load().isel(x=20, y=30)
    query = {"x": float(ds.x), "y": float(ds.y), "datetime": "2018-01-01T00:00:00Z/.."}
    rows = subset.get("series", **query).json()["series"]
    wanted = np.isfinite(ds.vx.values) & (ds.mid_date.values >= np.datetime64("2018-01-01"))
    assert [row["granule"] for row in rows] == ds.granule.values[wanted].tolist()
    csv = subset.get("series", **query, f="csv")
    assert csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert csv.headers["content-disposition"].endswith('-pairs.csv"')
    assert pd.read_csv(io.BytesIO(csv.content))["granule"].tolist() == [r["granule"] for r in rows]
    parquet = subset.get("series", **query, f="parquet")
    assert parquet.headers["content-type"] == "application/vnd.apache.parquet"
    table = pd.read_parquet(io.BytesIO(parquet.content))
    assert table["vx"].tolist() == [r["vx"] for r in rows]
    none = subset.get("series", **{**query, "datetime": "1990-01-01T00:00:00Z"}).json()
    assert (none["series"], none["numberReturned"]) == ([], 0)


def test_a_series_of_composites_at_two_points(subset: Subset) -> None:
    ds = xr.open_zarr(subset.folder / "composite.zarr").load()
    two = ds.isel(x=xr.DataArray([10, 40]), y=xr.DataArray([12, 50]))
    query = {name: ",".join(map(str, two[name].values)) for name in ("x", "y")}
    rows = subset.get("series", **query, dataset="composite", variables="vx,vy").json()["series"]
    there = np.isfinite(two.vx.values)
    assert len(rows) == there.sum()
    for row in rows:
        year = int(row["start"][:4])
        values = two.isel(dim_0=row["point"]).sel(time=str(year)).isel(time=0)
        assert row["vx"] == pytest.approx(float(values.vx), rel=1e-6)
        assert row["end"].startswith(f"{year + 1}-01-01")
        assert "count" not in row


def test_a_flowline_is_geojson(subset: Subset) -> None:
    ds = xr.open_zarr(subset.folder / "composite.zarr").load()
    x, y = float(ds.x.mean()), float(ds.y.mean())
    query = {"x": x, "y": y, "time": "2019", "step": 30, "max_length": 1500}
    answer = subset.get("flowlines", **query)
    assert answer.headers["content-type"] == "application/geo+json"
    (feature,) = answer.json()["features"]
    line = feature["properties"]
    to_metres = Transformer.from_crs(4326, 3413, always_xy=True)
    px, py = to_metres.transform(*np.array(feature["geometry"]["coordinates"]).T)
    np.testing.assert_allclose(
        np.hypot(np.diff(px), np.diff(py)), np.diff(line["distance"]), atol=0.05
    )
    # each step goes where the composite of 2019 flows to, and takes its time
    layer = ds.sel(time="2019").isel(time=0)
    middle = {"x": xr.DataArray((px[1:] + px[:-1]) / 2), "y": xr.DataArray((py[1:] + py[:-1]) / 2)}
    vx, vy = (layer[name].interp(middle).values for name in ("vx", "vy"))
    cosine = (vx * np.diff(px) + vy * np.diff(py)) / np.hypot(vx, vy) / np.diff(line["distance"])
    assert cosine.min() > 0.999
    np.testing.assert_allclose(
        np.diff(line["time"]), np.diff(line["distance"]) / np.hypot(vx, vy), rtol=0.02
    )
    down = subset.get("flowlines", **query, direction="downstream").json()["features"][0]
    assert down["properties"]["seed_distance"] == 0


def test_flowlines_all_over_a_box(subset: Subset) -> None:
    ds = xr.open_zarr(subset.folder / "composite.zarr").load()
    x, y = float(ds.x.mean()), float(ds.y.mean())
    box = f"{x - 1500},{y - 1500},{x + 1500},{y + 1500}"
    query = {"bbox": box, "crs": "EPSG:3413", "spacing": 1000, "time": "2019"}
    features = subset.get("flowlines", **query).json()["features"]
    assert len(features) == 9
    assert json.dumps(features[0])  # finite numbers alone


@pytest.mark.parametrize(
    ("what", "query", "status", "says"),
    [
        ("series", {}, 400, "by lon and lat"),
        ("series", {"lon": "x", "lat": "69"}, 400, "lon 'x'"),
        ("series", {"lon": "0", "lat": "0"}, 400, "outside of the grid"),
        ("series", {"lon": "1,2", "lat": "69"}, 400, "pairs"),
        ("series", {"lon": ",".join(["1"] * 101), "lat": "69"}, 400, "100 values"),
        ("series", {"lon": "0", "lat": "0", "f": "xml"}, 400, "csv, json, parquet"),
        ("series", {"lon": "0", "lat": "0", "method": "cubic"}, 400, "nearest, bilinear"),
        ("series", {"lon": "0", "lat": "0", "dataset": "strain"}, 404, "without its strain"),
        ("series", {"lon": "0", "lat": "0", "dataset": "../x"}, 404, "not one of pairs"),
        ("series", {"lon": "0", "lat": "0", "datetime": "now"}, 400, "now"),
        ("series", {"lon": "0", "latitude": "0"}, 400, "not a parameter"),
        ("flowlines", {"x": "-170000", "y": "-2280000"}, 400, "say which by time"),
        ("flowlines", {"bbox": "1,2,3", "time": "2019"}, 400, "west,south,east,north"),
        ("flowlines", {"bbox": "0,0,1,1", "time": "2019"}, 400, "no seed"),
        ("flowlines", {"x": "0", "y": "0", "direction": "up", "time": "2019"}, 400, "upstream"),
        ("flowlines", {"x": "0", "y": "0", "step": "-1"}, 400, "step"),
    ],
)
def test_refusals(subset: Subset, what: str, query: dict[str, str], status: int, says: str) -> None:
    problem = subset.problem(what, **query)
    assert problem["status"] == status
    assert says in problem["detail"]


def test_of_a_subset_that_is_not_there(subset: Subset) -> None:
    for what in ("series", "flowlines"):
        answer = subset.http.get(
            f"/collections/subsets/items/none/{what}", params={"lon": 0, "lat": 0}
        )
        assert answer.status_code == 404
        assert "no subset 'none'" in answer.json()["detail"]
