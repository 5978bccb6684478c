"""Strain rates of a plan's composites, a block at a time.

A block is computed with as much around it as its windows reach: it is what the whole map would
give, and memory knows nothing of the area's size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firnline.cache import store
from firnline.cache.new_store import create_fields
from firnline.cache.periods import Period, as_arrays
from firnline.cache.strain import FIELDS, STRESS_FIELDS, describe, radius_for, strain_rates
from firnline.cache.target import Target


def write_strain(plan: Target, work: Path, spans: tuple[Period, ...]) -> None:
    """Make the subset's store of strain rates from that of its composites."""
    how = plan.request.strain
    assert how
    radius, length = radius_for(how.length_scale, plan.geobox.affine.a)
    about = {**FIELDS, **(STRESS_FIELDS if how.flow_law else {})}
    path = work / store.STRAIN
    create_fields(
        path,
        {name: ("f4", dict(attributes)) for name, attributes in about.items()},
        attributes={
            "title": "Strain rates of the velocity composites, by firnline",
            "source": plan.attribution,
            "window_radius_pixels": radius,
            "half_length_m": length,
            "half_length_asked_m": how.length_scale,
            **describe(how.method, how.gaps, how.flow_law),
        },
        format=plan.request.format,
        geobox=plan.geobox,
        axes=(plan.x, plan.y),
        periods=as_arrays(spans),
    )
    velocity = [
        store.opened(work / store.COMPOSITE, name) for name in ("vx", "vy", "vx_error", "vy_error")
    ]
    reach = 2 * radius if how.method == "logarithmic" else radius
    for block in store.field_blocks((len(spans), *plan.shape[1:])):
        times, area = block[0], block[1:]
        around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in area)
        inside = tuple(
            slice(side.start - wide.start, side.stop - wide.start)
            for side, wide in zip(area, around, strict=True)
        )
        shape = tuple(part.stop - part.start for part in block)
        found = {name: np.empty(shape, np.float32) for name in about}
        for n, time in enumerate(range(times.start, times.stop)):
            vx, vy, vx_error, vy_error = (
                np.asarray(of[time, around[0], around[1]]) for of in velocity
            )
            rates = strain_rates(
                vx,
                vy,
                dx=plan.geobox.affine.a,
                dy=plan.geobox.affine.e,
                radius=radius,
                method=how.method,
                gaps=how.gaps,
                vx_error=vx_error,
                vy_error=vy_error,
                flow_law=how.flow_law,
            )
            for name, values in found.items():
                values[n] = rates[name][inside]
        for name, values in found.items():
            store.write_field(path, name, values, block)
