"""What is asked for: validated once at the door, with one canonical key for equal requests."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import shapely
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pyproj import CRS
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from firnline.cache.composite import Estimator
from firnline.cache.periods import canonical
from firnline.cache.strain import FlowLaw, Gaps, Method
from firnline.crs import LONLAT, crs_code, parse_crs, transformer
from firnline.errors import (
    BBoxError,
    DatetimeError,
    GeometryError,
    InputError,
    TooLargeError,
)
from firnline.items import MOSAICS
from firnline.pairs import PairFilter
from firnline.settings import Settings

# Part of every key: raised when the same request would be answered with different data.
_PRODUCT_VERSION = 1

# Not part of the key without composites: requests had the same answer before these inputs came.
_OF_COMPOSITES = ("composite_method", "max_displacement")
# Not part of it where they have their defaults.
_LATER = ("resampling", "recompute_speed", "max_error", "min_valid")

_OF_PAIRS = (
    "satellites", "dt_days", "max_error", "min_valid", "composite_method", "max_displacement"
)  # fmt: skip

Variable = Literal[
    "v", "vx", "vy", "v_error", "va", "vr", "M11", "M12", "interp_mask",
    "chip_size_height", "chip_size_width",
]  # fmt: skip
_LARGEST_POLYGON = 10_000
_EARTH_RADIUS_KM = 6371.0072  # of the sphere with the area of WGS 84


class Strain(BaseModel):
    """How strain rates are computed from the composite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field(
        "plane",
        description="Least-squares plane over a window, nominal (centred differences between "
        "stakes) or logarithmic (stakes that move with the ice; Alley et al. 2018).",
    )
    length_scale: float = Field(
        500.0, gt=0, le=100_000, description="Half length of the window, in metres."
    )
    gaps: Gaps = Field(
        "fit",
        description="Where pixels are missing: fit to those that are there, or strict, no result.",
    )
    ice_temperature: float | None = Field(
        None,
        description="In kelvin: adds von Mises stresses by Glen's flow law at this temperature.",
    )

    @field_validator("ice_temperature")
    @classmethod
    def _temperature_of_ice(cls, value: float | None) -> float | None:
        if value is not None:
            FlowLaw.at(value)
        return value

    @property
    def flow_law(self) -> FlowLaw | None:
        """What gives stresses, if they are asked for."""
        return None if self.ice_temperature is None else FlowLaw.at(self.ice_temperature)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what was added after the first release is left out where it is not asked for, so that
        # the keys of older requests, and the subsets that answer them, stay theirs
        inputs: dict[str, Any] = dump(self)
        for name in ("gaps", "ice_temperature"):
            if inputs[name] == type(self).model_fields[name].default:
                del inputs[name]
        return inputs


class Request(BaseModel):
    """A request to materialise an area of interest; immutable and in canonical form.

    Make one with :meth:`parse`, which turns what callers write into this form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bbox: tuple[float, float, float, float] | None = Field(
        None,
        title="Bounding box",
        description="West, south, east, north in the units of `crs`. In degrees, a west greater "
        "than east crosses the antimeridian. One of bbox and geometry is needed.",
    )
    geometry: dict[str, Any] | None = Field(
        None,
        title="Area",
        description="GeoJSON Polygon or MultiPolygon in `crs`; its bounding window is stored.",
    )
    crs: str = Field(
        "OGC:CRS84", description="CRS of bbox or geometry, as EPSG:3413 (default OGC:CRS84)."
    )
    datetime: str = Field(
        "../..",
        description="RFC 3339 instant or interval, open with '..': the image pairs whose "
        "mid-date lies in it are kept.",
    )
    collection: Literal["itslive-cubes", "velocity-mosaics"] = Field(
        "itslive-cubes",
        description="What is read: the image-pair cubes, or the mosaics. Of these the annual ones "
        "with composite P1Y, with the trend of the speed where there are three or more, or the "
        "static one with composite all; inputs about image pairs are not for them.",
    )
    variables: tuple[Variable, ...] = Field(
        ("v_error", "vx", "vy"), min_length=1, description="Variables (mid_date, y, x) to store."
    )
    satellites: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9]{1,4}$")], ...] = Field(
        (),
        description="Keep only pairs whose both images are of these satellites, by mission and "
        "number as in the cubes, as L8, S1A, S2; S2 stands for S2A and S2B. Empty: all.",
    )
    dt_days: tuple[float, float] | None = Field(
        None, description="Keep only pairs whose images are so many days apart [least, most]."
    )
    max_error: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Keep only pairs whose vx_error and vy_error, one number each for the whole "
        "pair, are at most this in m/year, as the cube has them.",
    )
    min_valid: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Keep only pairs with data on at least so many per cent of the ground "
        "(roi_valid_percentage, to 0.01), as the cube has them.",
    )
    composite: str | None = Field(
        "P1Y",
        description="Calendar period of the composites: year, month, season, any ISO 8601 "
        "duration as P1Y, P3M, P1W or P16D, 'all' for one over everything, or null for none.",
    )
    composite_method: Estimator = Field(
        "median",
        description="Weighted median of the image pairs, or their weighted mean. Weights are the "
        "part of a pair's time that lies in the period, over its stated error squared.",
    )
    max_displacement: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Leave out of the composites, pixel by pixel, the pairs between whose images "
        "the ice moves farther than this, in metres: long pairs miss fast and seasonal ice.",
    )
    strain: Strain | Literal[False] = Field(
        default_factory=lambda: Strain(), description="Strain rates of the composites, or false."
    )
    out_crs: str | None = Field(
        None,
        description="CRS of the result; null: that of the cubes which cover most of the area.",
    )
    resampling: Literal["nearest", "bilinear"] = Field(
        "nearest",
        description="How cubes that are not on the result's lattice are brought to it, where no "
        "other covers the ground: their vectors are turned. Flags are always nearest.",
    )
    recompute_speed: bool = Field(
        False,
        description="Store v as int32, computed from vx and vy where the cubes' int16 is full "
        "(32767).",
    )
    format: Literal["v3", "v2"] = Field("v3", description="Zarr version of the store.")
    pairs: bool = Field(
        True, description="Store the image pairs; false: composites and strain only."
    )

    @classmethod
    def parse(cls, inputs: Mapping[str, Any], settings: Settings) -> Request:
        """Validate what a caller wrote.

        Raises
        ------
        InputError
            Or one of its subclasses; names the input and says what is accepted.
        """
        try:
            request = cls.model_validate(dict(inputs))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = first.get("ctx", {}).get("error")
            if isinstance(reason, InputError):  # raised by a validator below: say it as it is
                raise reason from None
            where = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                raise InputError(
                    f"{where} is not an input; accepted: {', '.join(cls.model_fields)}"
                ) from None
            raise InputError(f"{where}: {first['msg']}") from None
        request.check_area(settings)
        return request

    @field_validator("crs", "out_crs")
    @classmethod
    def _known_crs(cls, value: str | None) -> str | None:
        return None if value is None else crs_code(parse_crs(value))

    @field_validator("variables", "satellites")
    @classmethod
    def _sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @field_validator("datetime")
    @classmethod
    def _canonical_datetime(cls, value: str) -> str:
        start, end = parse_interval(value)
        return "/".join(
            ".." if t is None else t.isoformat().replace("+00:00", "Z") for t in (start, end)
        )

    @field_validator("dt_days")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1] < math.inf:
            raise InputError("dt_days takes [least, most] in days, 0 <= least <= most")
        return value

    @field_validator("strain", mode="before")
    @classmethod
    def _true_is_the_default(cls, value: object) -> object:
        return {} if value is True else value

    @field_validator("composite", mode="before")
    @classmethod
    def _known_period(cls, value: object) -> object:
        return None if value in (None, "none") else canonical(str(value))

    @model_validator(mode="before")
    @classmethod
    def _of_mosaics(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        """Mosaics hold no pairs, and all their variables are taken: the same whatever is said."""
        if inputs.get("collection") != MOSAICS:
            return inputs
        for name in _OF_PAIRS:
            given = inputs.get(name)
            if given and given != cls.model_fields[name].default:
                raise InputError(f"{name} is for image pairs, of which {MOSAICS} has none")
        return inputs | {"pairs": False, "variables": cls.model_fields["variables"].default}

    @model_validator(mode="after")
    def _one_area(self) -> Request:
        if (self.bbox is None) == (self.geometry is None):
            raise InputError("one of bbox and geometry is needed, and not both")
        if self.out_crs is not None and not _in_metres(parse_crs(self.out_crs)):
            raise InputError(
                f"out_crs {self.out_crs} is not projected in metres; the cubes' CRSs are"
            )
        if self.recompute_speed and "v" not in self.variables:
            raise InputError("recompute_speed is for v: ask for this variable as well")
        if self.collection == MOSAICS and self.composite not in ("P1Y", "all"):
            raise InputError(
                f"composite {self.composite} of {MOSAICS}: accepted are P1Y, the annual mosaics, "
                "and all, the static one"
            )
        if not self.pairs and self.composite is None:
            raise InputError("pairs false and composite null leave nothing to store")
        if self.max_displacement is not None and self.composite is None:
            raise InputError("max_displacement is for composites: give a composite as well")
        if self.strain and self.composite is None:
            raise InputError("strain needs a composite: give one, or set strain to false")
        if self.composite is not None and not {"vx", "vy"} <= set(self.variables):
            raise InputError("composite needs the variables vx and vy")
        _ = self.area
        return self

    @cached_property
    def area(self) -> BaseGeometry:
        """The area in the units of :attr:`crs`; in degrees it may run past 180 east."""
        geographic = parse_crs(self.crs).is_geographic
        if self.bbox is not None:
            return _bbox_area(self.bbox, geographic)
        return _geometry_area(self.geometry or {}, geographic)

    @cached_property
    def pair_filter(self) -> PairFilter:
        """What the index of pairs is asked for; it does not have their errors (`max_error`)."""
        return PairFilter(*self.interval, self.satellites, self.dt_days, self.min_valid)

    @cached_property
    def interval(self) -> tuple[dt.datetime | None, dt.datetime | None]:
        """Start and end, both inclusive; None where open."""
        return parse_interval(self.datetime)

    def area_in(self, crs: CRS) -> BaseGeometry:
        """The area in another CRS, its edges densified so that they stay true."""
        return moved(self.area, parse_crs(self.crs), crs)

    def check_area(self, settings: Settings) -> None:
        """Refuse what is beyond the limits of this installation.

        Raises
        ------
        TooLargeError
        """
        crs = parse_crs(self.crs)
        if crs.is_geographic:
            # Lambert's cylinder: equal areas, and no trouble with poles or the antimeridian
            dense = shapely.segmentize(self.area, 0.5)
            flat = shapely.transform(
                dense,
                lambda lonlat: np.radians(lonlat) * (1, 0) + np.sin(np.radians(lonlat)) * (0, 1),
            )
            area = flat.area * _EARTH_RADIUS_KM**2
        else:
            area = self.area.area / 1e6
            corners = transformer(crs, LONLAT).transform(*shapely.get_coordinates(self.area).T)
            if not np.isfinite(corners).all():
                raise BBoxError(f"the area lies outside the domain of {self.crs}")
        if area > settings.max_aoi_km2:
            raise TooLargeError(
                f"the area is {area:,.0f} km2; this installation accepts "
                f"{settings.max_aoi_km2:,.0f} km2 (FIRNLINE_MAX_AOI_KM2)"
            )

    def to_inputs(self) -> dict[str, Any]:
        """The request as JSON-ready inputs; :meth:`parse` of it gives the same request."""
        return self.model_dump(mode="json")

    @cached_property
    def key(self) -> str:
        """64 hex characters, equal for equal requests."""
        inputs = self.to_inputs()
        if self.composite is None:
            for name in _OF_COMPOSITES:
                del inputs[name]
        for name in _LATER:
            if inputs[name] == type(self).model_fields[name].default:
                del inputs[name]
        text = json.dumps([_PRODUCT_VERSION, inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def subset_id(self) -> str:
        """Id of the item that answers this request."""
        return f"subset-{self.key[:16]}"

    @classmethod
    def input_schemas(cls) -> dict[str, dict[str, Any]]:
        """Each input's title, description, occurrence and JSON Schema (OGC API - Processes)."""
        schema = cls.model_json_schema()
        definitions = schema.get("$defs", {})
        described = {}
        for name, sub in schema["properties"].items():
            sub = _inlined(sub, definitions)
            described[name] = {
                "title": sub.pop("title", name),
                "description": sub.pop("description", ""),
                "minOccurs": 0,
                "schema": sub,
            }
        return described


def moved(area: BaseGeometry, source: CRS, target: CRS) -> BaseGeometry:
    """An area in another CRS, its edges densified so that they stay true.

    Raises
    ------
    GeometryError
        It lies outside the other's domain.
    """
    if source == target:
        return area
    west, south, east, north = area.bounds
    dense = shapely.segmentize(area, max(east - west, north - south) / 100)
    to = transformer(source, target)
    there = shapely.transform(dense, lambda xy: np.column_stack(to.transform(*xy.T)))
    if not np.isfinite(there.bounds).all():
        raise GeometryError(f"the area lies outside the domain of {crs_code(target)}")
    return there


def parse_interval(text: str) -> tuple[dt.datetime | None, dt.datetime | None]:
    """An RFC 3339 instant or interval; a date alone stands for the whole day, in UTC.

    Returns
    -------
    start, end
        Both inclusive, None where open.

    Raises
    ------
    DatetimeError
    """
    first, slash, last = text.partition("/")
    start, end = _instant(first, dt.time.min), _instant(last if slash else first, dt.time.max)
    if not slash and start is None:
        raise DatetimeError(f"datetime {text[:60]!r} is not accepted; {_DATETIME_FORM}")
    if start is not None and end is not None and end < start:
        raise DatetimeError(f"datetime {text[:60]!r} ends before it starts")
    return start, end


_DATETIME_FORM = "write 2018-01-01/2020-12-31, 2018-01-01T00:00:00Z/.. or a single date"


def _instant(text: str, of_day: dt.time) -> dt.datetime | None:
    if text in ("", ".."):
        return None
    try:
        if len(text) == 10:
            return dt.datetime.combine(dt.date.fromisoformat(text), of_day, dt.UTC)
        moment = dt.datetime.fromisoformat(text)
        if "T" not in text.upper() or moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise DatetimeError(f"datetime {text[:60]!r} is not accepted; {_DATETIME_FORM}") from None


def _in_metres(crs: CRS) -> bool:
    return crs.is_projected and all(a.unit_conversion_factor == 1 for a in crs.axis_info[:2])


def _bbox_area(bbox: tuple[float, ...], geographic: bool) -> BaseGeometry:
    west, south, east, north = bbox
    accepted = "accepted: west, south, east, north with west < east and south < north"
    if not all(map(math.isfinite, bbox)):
        raise BBoxError(f"bbox {list(bbox)} is not finite; {accepted}")
    if geographic:
        if not (-180 <= west <= 180 and -180 <= east <= 180 and south >= -90 and north <= 90):
            raise BBoxError(
                f"bbox {list(bbox)} is not in degrees of longitude and latitude; "
                "give crs as well when it is in metres, as EPSG:3413"
            )
        if west > east:  # RFC 7946, 5.2: crosses the antimeridian
            east += 360
    if west >= east or south >= north:
        raise BBoxError(f"bbox {list(bbox)} is empty or inverted; {accepted}")
    return shapely.box(west, south, east, north)


def _geometry_area(geometry: Mapping[str, Any], geographic: bool) -> BaseGeometry:
    if geometry.get("type") not in ("Polygon", "MultiPolygon"):
        raise GeometryError("geometry: accepted are GeoJSON Polygon and MultiPolygon")
    try:
        area = shape(dict(geometry))
        if shapely.get_num_coordinates(area) > _LARGEST_POLYGON:
            raise TooLargeError(f"geometry has more than {_LARGEST_POLYGON:,} vertices")
        coordinates = shapely.get_coordinates(area)
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, shapely.GEOSException):
        raise GeometryError(
            "geometry: its coordinates are not those of a GeoJSON polygon"
        ) from None
    if area.is_empty or not np.isfinite(coordinates).all():
        raise GeometryError("geometry is empty or not finite")
    if not area.is_valid:
        raise GeometryError(f"geometry is not valid: {shapely.is_valid_reason(area)}")
    if geographic and (np.abs(coordinates) > (360, 90)).any():
        raise GeometryError("geometry is not in degrees; give crs as well when it is in metres")
    return area


def _inlined(schema: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its `$ref`s replaced, since an input's schema stands alone."""
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rsplit("/", 1)[-1]], **schema}
        del schema["$ref"]
    return {
        key: _inlined(value, definitions)
        if isinstance(value, dict)
        else [_inlined(v, definitions) if isinstance(v, dict) else v for v in value]
        if isinstance(value, list)
        else value
        for key, value in schema.items()
    }
