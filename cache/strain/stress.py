"""Von Mises stress of glacier ice from strain rates, by Glen's flow law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firnline.errors import InputError

Floats = NDArray[np.floating[Any]]

_SECONDS_PER_YEAR = 365.25 * 86_400
_GAS_CONSTANT = 8.314  # J mol-1 K-1


@dataclass(frozen=True)
class FlowLaw:
    """Glen's flow law of isotropic ice: effective stress = A^(-1/n) effective rate^(1/n)."""

    rate_factor: float
    """A in Pa^-n s^-1."""
    n: float = 3.0
    """Stress exponent."""

    def __post_init__(self) -> None:
        """Refuse what is no flow law.

        Raises
        ------
        InputError
        """
        for name, value in (("rate factor", self.rate_factor), ("stress exponent", self.n)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value}: accepted is a positive number")

    @classmethod
    def at(cls, temperature: float) -> FlowLaw:
        """The flow law (n = 3) of ice at a temperature in kelvin.

        ``A = 3.5e-25 exp(-Q / R (1 / T - 1 / 263))`` Pa^-3 s^-1 with Q = 60 kJ/mol below 263 K and
        115 kJ/mol from there up (Cuffey & Paterson 2010, eq. 3.35), T near the surface, where
        pressure does not change the melting point.

        Raises
        ------
        InputError
            Outside 150 to 273.16 K: it is no temperature of ice, or in degrees Celsius.
        """
        if not 150 <= temperature <= 273.16:
            raise InputError(
                f"ice temperature {temperature}: accepted are 150 to 273.16, in kelvin"
            )
        activation = 60e3 if temperature < 263 else 115e3
        return cls(3.5e-25 * math.exp(-activation / _GAS_CONSTANT * (1 / temperature - 1 / 263)))

    def von_mises(self, effective: Floats) -> Floats:
        """Von Mises stress in kPa.

        ``sqrt(3) B effective^(1/n)``, ``B = A^(-1/n)``: sqrt(3) times the effective stress.

        Parameters
        ----------
        effective : ndarray
            Effective strain rate per year, of any shape.
        """
        hardness = (self.rate_factor * _SECONDS_PER_YEAR) ** (-1 / self.n) / 1e3  # kPa year^(1/n)
        return _root(effective, self.n) * effective.dtype.type(math.sqrt(3) * hardness)

    def von_mises_tensile(self, e1: Floats, e2: Floats) -> Floats:
        """Von Mises stress in kPa of the extension alone.

        As :meth:`von_mises` with ``sqrt((max(0, e1)^2 + max(0, e2)^2) / 2)`` for the effective
        rate: Morlighem et al. (2016), doi:10.1002/2016GL067695, for calving fronts.

        Parameters
        ----------
        e1, e2 : ndarray
            Principal strain rates per year, of one shape.
        """
        tensile: Floats = np.hypot(np.maximum(e1, 0), np.maximum(e2, 0))
        tensile *= math.sqrt(0.5)
        return self.von_mises(tensile)

    def describe(self) -> dict[str, Any]:
        """Attributes that state the law."""
        return {"flow_law_rate_factor": self.rate_factor, "flow_law_exponent": self.n,
                "flow_law_rate_factor_units": f"Pa-{self.n:g} s-1"}  # fmt: skip


def _root(values: Floats, n: float) -> Floats:
    return np.cbrt(values) if n == 3 else values ** values.dtype.type(1 / n)
