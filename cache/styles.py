"""QGIS styles (.qml) for the maps of a subset: the same colours for the same value everywhere."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

STYLES = {
    "speed": ("Speed: 1 to 10,000 m/year, logarithmic", "turbo", np.geomspace(1, 1e4, 25)),
    "strain": ("Strain rate: -0.1 to 0.1 per year", "RdBu_r", np.linspace(-0.1, 0.1, 21)),
}
"""By name: title, matplotlib's colour map, and values of which each has its colour.

Fixed ranges, so that glaciers can be compared; the quicklook's follow the data.
"""


def write_style(path: Path, name: str) -> str:
    """Write the style `name` of :data:`STYLES`; give its title.

    Single-band pseudocolour of band 1 with colours interpolated between the values, which QGIS 3
    loads over any raster (*Layer Properties > Symbology > Style > Load Style*).
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    title, cmap, values = STYLES[name]
    colours = colormaps[cmap](np.linspace(0, 1, values.size))
    low, high = f"{values[0]:g}", f"{values[-1]:g}"
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    renderer = ElementTree.SubElement(
        ElementTree.SubElement(root, "pipe"), "rasterrenderer", type="singlebandpseudocolor",
        band="1", opacity="1", alphaBand="-1", classificationMin=low, classificationMax=high,
    )  # fmt: skip
    ramp = ElementTree.SubElement(
        ElementTree.SubElement(renderer, "rastershader"), "colorrampshader", minimumValue=low,
        maximumValue=high, colorRampType="INTERPOLATED", classificationMode="1", clip="0",
    )  # fmt: skip
    for value, colour in zip(values, colours, strict=True):
        ElementTree.SubElement(
            ramp, "item", value=f"{value:.6g}", label=f"{value:.3g}", color=to_hex(colour),
            alpha="255",
        )  # fmt: skip
    ElementTree.indent(root)
    doctype = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    path.write_bytes(doctype + ElementTree.tostring(root) + b"\n")
    return title
