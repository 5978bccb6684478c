"""Which cubes of the catalog a request finds."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.cache.request import Request
from firnline.cache.sources import find_cubes
from firnline.database import retire_items, writing
from firnline.errors import NoCoverageError
from firnline.settings import Settings


def test_retired_cubes_are_not_materialised(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    inputs = {"bbox": list(sample.mirror.aoi), "crs": "EPSG:3413"}
    request = Request.parse(inputs, settings)
    found = [cube.id for cube in find_cubes(engine, request)]
    assert sorted(found) == sorted(cube.name for cube in sample.mirror.cubes)
    with writing(engine) as connection:
        retire_items(connection, "itslive-cubes", found[:2])
    assert [cube.id for cube in find_cubes(engine, request)] == found[2:]
    with writing(engine) as connection:
        retire_items(connection, "itslive-cubes", found)
    with pytest.raises(NoCoverageError):
        find_cubes(engine, request)
