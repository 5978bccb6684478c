"""Strain rates of a gridded horizontal velocity.

Conventions, because published codes differ in each of them:

- arrays are ``[row, col]``; ``x`` changes with the column by ``dx`` and ``y`` with the row by
  ``dy``, both signed (``dy`` is negative in a north-up raster). u, v are the components along +x
  and +y of the grid, in metres of the grid per year; strain rates come out per year.
- ``exx = du/dx``, ``eyy = dv/dy``, ``exy = (du/dy + dv/dx) / 2``: the *tensor* shear, half of the
  engineering one. Divergence is ``exx + eyy``, vorticity ``dv/dx - du/dy``.
- ``e1 >= e2`` are the principal rates, ``e1`` the most extensional; ``theta`` is the direction of
  ``e1``, anticlockwise from +x, in ``(-pi/2, pi/2]``.
- longitudinal, transverse and shear are the tensor in the frame of the flow at the pixel itself.
- ``effective`` includes the vertical rate of an incompressible body, ``ezz = -(exx + eyy)``.
- a length scale is *half* a window: from the centre to the centre of the outermost pixel.

Formulas: Nye (1959), doi:10.3189/S0022143000017093; Cuffey & Paterson (2010), chapter 3; flow
frame: Bindschadler et al. (1996), doi:10.1017/S0022143000003452; nominal and logarithmic rates:
Alley et al. (2018), doi:10.1017/jog.2018.23. Noise makes ``e1`` and ``effective`` too large (with
no strain and 0.005 per year of noise in each component, their means are 0.0044 and 0.0072), and
strain of single image pairs is mostly noise: feed composites.

One duty a module: `fields` (names and attributes), `scale` (length scale to pixels), `windows`
and `planes` (gradients by least squares), `stakes` (logarithmic rates), `invariants` (from a
gradient to the fields and their errors), `stress`, `rates` (a whole grid, in blocks), `dataset`
(xarray).
"""

from firnline.cache.strain.fields import (
    ERROR_FIELDS,
    FIELDS,
    METHODS,
    SCALE_CONVENTION,
    STRESS_FIELDS,
    Gaps,
    Method,
    describe,
    select_fields,
)
from firnline.cache.strain.rates import strain_rates
from firnline.cache.strain.scale import radius_for, radius_grid
from firnline.cache.strain.stress import FlowLaw

__all__ = [
    "ERROR_FIELDS",
    "FIELDS",
    "METHODS",
    "SCALE_CONVENTION",
    "STRESS_FIELDS",
    "FlowLaw",
    "Gaps",
    "Method",
    "describe",
    "radius_for",
    "radius_grid",
    "select_fields",
    "strain_rates",
]
