// One map of a subset as coloured tiles, with its legend.
import TileLayer from "ol/layer/Tile.js";
import XYZ from "ol/source/XYZ.js";
import TileGrid from "ol/tilegrid/TileGrid.js";
import { $, element, number } from "./dom.js";
import { bounds, outline } from "./projections.js";
import { get, url } from "./service.js";

const UNITS = { "meter/year": "m/yr", "year-1": "per year", 1: "" };

export const unitOf = (asset) => UNITS[asset.bands[0].unit] ?? asset.bands[0].unit ?? "";

/** `style` is `{item, key, band, low, high, colormap, log}`. */
export function createRaster() {
  const layer = new TileLayer({ opacity: 0.9 });
  let shown = null;
  let view = null;

  function paint() {
    if (!shown || !view) return layer.setSource(null);
    const { item, key, band, low, high, colormap, log } = shown;
    const resolutions = Array.from({ length: view.zooms + 1 }, (_, z) => (view.extent[2] - view.extent[0]) / 256 / 2 ** z);
    const query = new URLSearchParams({ bidx: band, rescale: `${low},${high}`, colormap_name: colormap });
    if (log) query.set("stretch", "log");
    const path = `collections/subsets/items/${encodeURIComponent(item.id)}/assets/${key}/tiles/${view.tiles}`;
    const { "proj:bbox": box, "proj:code": crs } = item.properties;
    layer.setExtent(bounds(outline(box, crs, view.code)[0]));
    return layer.setSource(
      new XYZ({
        projection: view.code,
        tileGrid: new TileGrid({ extent: view.extent, resolutions, tileSize: 256 }),
        url: `${url(path)}/{z}/{x}/{y}.png?${query}`,
        interpolate: false,
        transition: 0,
        wrapX: false,
      }),
    );
  }

  return {
    layers: [layer],
    layer,
    show(next) {
      view = next;
      paint();
    },
    set(style) {
      shown = style;
      paint();
      legend(style);
    },
    clear() {
      shown = null;
      paint();
      $("legend").hidden = true;
    },
  };
}

async function legend({ item, key, low, high, colormap, log }) {
  const asset = item.assets[key];
  const unit = unitOf(asset);
  const title = item.properties.renders?.[key]?.title ?? asset.title;
  $("legend").querySelector("figcaption").textContent = unit ? `${short(title)}, ${unit}` : short(title);
  const shares = [0, 0.25, 0.5, 0.75, 1];
  const value = (share) => (log ? low * (high / low) ** share : low + (high - low) * share);
  $("legend")
    .querySelector(".ticks")
    .replaceChildren(...shares.map((share) => element("span", {}, number(Number(value(share).toPrecision(3))))));
  $("legend").hidden = false;
  const colours = await get(`colormaps/${colormap}`);
  const context = $("legend").querySelector("canvas").getContext("2d");
  const pixels = context.createImageData(256, 1);
  pixels.data.set(colours.flat());
  context.putImageData(pixels, 0, 0);
}

const short = (title) => title.split(",")[0];
