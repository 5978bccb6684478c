"""The fields of strain: their names, units and formulas, and how a result describes itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from firnline.cache.strain.stress import FlowLaw
from firnline.errors import InputError

Method: TypeAlias = Literal["plane", "nominal", "logarithmic"]
Gaps: TypeAlias = Literal["fit", "strict"]

METHODS: Mapping[Method, str] = MappingProxyType(
    {
        "plane": "least-squares plane over a square window",
        "nominal": "centred differences between four stakes (Nye 1959)",
        "logarithmic": "logarithmic strain of five stakes that move with the ice for a tenth of "
        "the half length (Alley et al. 2018, doi:10.1017/jog.2018.23)",
    }
)
"""The methods and what each is, in words for a result's attributes."""

SCALE_CONVENTION = (
    "velocity in grid metres per year along the grid axes, distances in grid metres; "
    "no map scale factor applied (it cancels to first order in a gradient)"
)
"""What is done about the scale of the map projection: recorded with every result."""

_RATE = "year-1"  # never "a-1": udunits reads "a" as are
_NOISE = "from the velocity errors, pixels independent; correlated noise makes it about 1.8x larger"


def _field(long_name: str, comment: str, units: str = _RATE) -> Mapping[str, str]:
    return MappingProxyType({"long_name": long_name, "units": units, "comment": comment})


FIELDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "exx": _field("strain rate along x", "du/dx"),
        "eyy": _field("strain rate along y", "dv/dy"),
        "exy": _field("shear strain rate, tensor component", "(du/dy + dv/dx) / 2"),
        "e1": _field(
            "most extensional principal strain rate",
            "(exx + eyy) / 2 + sqrt((exx - eyy)^2 / 4 + exy^2); biased upwards by noise",
        ),
        "e2": _field(
            "most compressive principal strain rate",
            "(exx + eyy) / 2 - sqrt((exx - eyy)^2 / 4 + exy^2); biased downwards by noise",
        ),
        "theta": _field(
            "direction of the most extensional principal strain rate",
            "atan2(2 exy, exx - eyy) / 2, anticlockwise from +x of the grid",
            "radian",
        ),
        "effective": _field(
            "effective strain rate",
            "sqrt(exx^2 + eyy^2 + exx eyy + exy^2), with ezz = -(exx + eyy); biased by noise",
        ),
        "longitudinal": _field(
            "strain rate along the flow", "exx c^2 + 2 exy c s + eyy s^2, (c, s) = (u, v) / |v|"
        ),
        "transverse": _field(
            "strain rate across the flow", "exx s^2 - 2 exy c s + eyy c^2, (c, s) = (u, v) / |v|"
        ),
        "shear": _field(
            "shear strain rate in the frame of the flow, tensor component",
            "(eyy - exx) c s + exy (c^2 - s^2), (c, s) = (u, v) / |v|",
        ),
        "divergence": _field("horizontal divergence", "exx + eyy, minus the vertical strain rate"),
        "vorticity": _field("vertical vorticity", "dv/dx - du/dy"),
        "exx_error": _field("standard error of the strain rate along x", _NOISE),
        "eyy_error": _field("standard error of the strain rate along y", _NOISE),
        "exy_error": _field("standard error of the shear strain rate", _NOISE),
        "e1_error": _field("standard error of the most extensional principal rate", _NOISE),
        "e2_error": _field("standard error of the most compressive principal rate", _NOISE),
    }
)
"""Attributes (``long_name``, ``units``, ``comment``: the formula) of every field, in order."""

ERROR_FIELDS: tuple[str, ...] = tuple(name for name in FIELDS if name.endswith("_error"))
"""The fields that need the errors of the velocity."""

STRESS_FIELDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "von_mises": _field(
            "von Mises stress", "sqrt(3) A^(-1/n) effective^(1/n), Glen's flow law", "kPa"
        ),
        "von_mises_tensile": _field(
            "tensile von Mises stress",
            "sqrt(3) A^(-1/n) ((max(0, e1)^2 + max(0, e2)^2) / 2)^(1/(2n)); Morlighem et al. "
            "(2016), doi:10.1002/2016GL067695",
            "kPa",
        ),
    }
)
"""Attributes of the fields that need a flow law."""


def select_fields(
    fields: Collection[str] | None, *, with_errors: bool, with_stress: bool = False
) -> list[str]:
    """Choose fields, in their order; by default all that can be had.

    Raises
    ------
    InputError
        Unknown ones, or ones that lack what they are made of.
    """
    if fields is None:
        chosen = {name for name in FIELDS if with_errors or name not in ERROR_FIELDS}
        chosen |= set(STRESS_FIELDS) if with_stress else set()
    else:
        chosen = {fields} if isinstance(fields, str) else set(fields)
    every = {**FIELDS, **STRESS_FIELDS}
    if unknown := sorted(chosen - set(every)):
        raise InputError(f"unknown fields {', '.join(unknown)}: accepted are {', '.join(every)}")
    if not with_errors and (missing := sorted(chosen & set(ERROR_FIELDS))):
        raise InputError(f"{', '.join(missing)} asked for without vx_error and vy_error")
    if not with_stress and (missing := sorted(chosen & set(STRESS_FIELDS))):
        raise InputError(f"{', '.join(missing)} asked for without a flow law")
    return [name for name in every if name in chosen]


def check_choices(method: str, gaps: str) -> None:
    """Refuse what is no method or no way to deal with gaps.

    Raises
    ------
    InputError
    """
    if method not in METHODS:
        raise InputError(f"method {method!r}: accepted are {', '.join(METHODS)}")
    if gaps not in get_args(Gaps):
        raise InputError(f"gaps {gaps!r}: accepted are {', '.join(get_args(Gaps))}")


def describe(method: Method, gaps: Gaps, flow_law: FlowLaw | None = None) -> dict[str, Any]:
    """Attributes that say how a result was made; who made it adds the length scale."""
    return {
        "method": METHODS[method],
        "gaps": gaps,
        "scale_convention": SCALE_CONVENTION,
        **({} if flow_law is None else flow_law.describe()),
    }
