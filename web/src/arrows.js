// Directions of flow: arrows at even steps on the screen, from the COGs of vx and vy themselves.
import Feature from "ol/Feature.js";
import { MultiLineString } from "ol/geom.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorSource from "ol/source/Vector.js";
import { Stroke, Style } from "ol/style.js";
import { fromUrl } from "geotiff";
import { knows, moved } from "./projections.js";
import { local } from "./service.js";

const STEP = 38; // pixels between arrows
const LARGEST = 600; // pixels of a side that are read: from an overview where there are more
const SLOWEST = 1; // m/yr, below which a direction is noise

export function createArrows(atlas) {
  const source = new VectorSource();
  const layer = new VectorLayer({
    source,
    zIndex: 3,
    style: [
      new Style({ stroke: new Stroke({ color: "rgba(255,255,255,0.75)", width: 3.2 }) }),
      new Style({ stroke: new Stroke({ color: "#10222c", width: 1.3 }) }),
    ],
  });
  const fields = new Map(); // by href and band
  let shown = null;

  async function field(href, band, shape) {
    const key = `${href} ${band}`;
    if (!fields.has(key)) {
      fields.set(key, read(href, band, shape));
      if (fields.size > 8) fields.delete(fields.keys().next().value);
    }
    return fields.get(key);
  }

  async function draw() {
    const wanted = shown;
    source.clear();
    if (!wanted || !atlas.view) return;
    const { item, band } = wanted;
    const { "proj:bbox": box, "proj:code": crs, "proj:shape": shape } = item.properties;
    if (!knows(crs)) return;
    const [vx, vy] = await Promise.all(
      ["cog_vx", "cog_vy"].map((key) => field(local(item.assets[key].href), band, shape)),
    );
    if (shown !== wanted) return;
    source.clear();
    const resolution = atlas.map.getView().getResolution();
    const step = STEP * resolution;
    const [left, bottom, right, top] = atlas.map.getView().calculateExtent();
    const arrows = [];
    // on a lattice that stays where it is when the map is moved
    for (let x = Math.ceil(left / step) * step; x < right; x += step) {
      for (let y = Math.ceil(bottom / step) * step; y < top; y += step) {
        const [gx, gy] = moved([x, y], atlas.view.code, crs);
        const column = Math.floor(((gx - box[0]) / (box[2] - box[0])) * vx.width);
        const row = Math.floor(((box[3] - gy) / (box[3] - box[1])) * vx.height);
        if (!(column >= 0 && row >= 0 && column < vx.width && row < vx.height)) continue;
        const at = row * vx.width + column;
        const speed = Math.hypot(vx[at], vy[at]);
        if (!(speed >= SLOWEST)) continue;
        // where the ice of this pixel goes, as this view has it
        const ahead = moved([gx + (vx[at] / speed) * 100, gy + (vy[at] / speed) * 100], crs, atlas.view.code);
        arrows.push(...arrow([x, y], Math.atan2(ahead[1] - y, ahead[0] - x), 0.62 * step));
      }
    }
    if (arrows.length) source.addFeature(new Feature(new MultiLineString(arrows)));
  }

  atlas.map.on("moveend", draw);
  return {
    layers: [layer],
    show: draw,
    set(style) {
      shown = style;
      return draw();
    },
  };
}

async function read(href, band, [rows, columns]) {
  const share = Math.min(1, LARGEST / Math.max(rows, columns));
  const size = { width: Math.ceil(columns * share), height: Math.ceil(rows * share) };
  const tiff = await fromUrl(href);
  const [values] = await tiff.readRasters({ samples: [band - 1], ...size });
  return Object.assign(values, size);
}

/** Shaft and head as lines, the middle of the shaft at the point. */
function arrow([x, y], angle, length) {
  const point = (along, turn = 0, size = 1) => [
    x + Math.cos(angle) * along + Math.cos(angle + turn) * (turn ? size : 0),
    y + Math.sin(angle) * along + Math.sin(angle + turn) * (turn ? size : 0),
  ];
  const [tail, tip] = [point(-length / 2), point(length / 2)];
  const head = [-2.6, 2.6].map((turn) => point(length / 2, turn, length * 0.3));
  return [[tail, tip], [head[0], tip, head[1]]];
}
