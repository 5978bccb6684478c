// Speeds at a point over time: image pairs and composites, with their errors.
import Feature from "ol/Feature.js";
import Point from "ol/geom/Point.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorSource from "ol/source/Vector.js";
import { Circle, Fill, Stroke, Style } from "ol/style.js";
import uPlot from "uplot";
import { $, element, isDark, number, onColourScheme } from "./dom.js";
import { moved } from "./projections.js";
import { ServiceError, get, url } from "./service.js";

const HEIGHT = 190;
const SECONDS = 1000;

export function createSeries(atlas) {
  const source = new VectorSource();
  const layer = new VectorLayer({
    source,
    zIndex: 6,
    style: new Style({
      image: new Circle({ radius: 6, fill: new Fill({ color: "#e0852b" }), stroke: new Stroke({ color: "#fff", width: 2 }) }),
    }),
  });
  let place = null; // lon, lat
  let plot = null;
  let asked;
  let data = null;

  function mark(view) {
    source.clear();
    if (place) source.addFeature(new Feature(new Point(moved(place, "EPSG:4326", view.code))));
  }

  async function open(item, lonlat) {
    asked?.abort();
    asked = new AbortController();
    place = lonlat;
    mark(atlas.view);
    const [lon, lat] = lonlat.map((each) => each.toFixed(5));
    $("series").hidden = false;
    $("series").querySelector("h2").textContent = `${Math.abs(lat)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon)}° ${lon < 0 ? "W" : "E"}`;
    $("series-note").textContent = "Reading…";
    const path = `collections/subsets/items/${encodeURIComponent(item.id)}/series`;
    const rows = async (dataset, variables) => {
      if (!item.assets[dataset === "pairs" ? "zarr" : dataset]) return [];
      const query = { lon, lat, dataset, variables };
      return (await get(path, query, { signal: asked.signal })).series;
    };
    try {
      const [composite, pairs] = await Promise.all([rows("composite", "v,v_error"), rows("pairs", "vx,vy,v_error")]);
      data = { composite: composite.filter(has), pairs: pairs.filter(has) };
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ServiceError)) throw error;
      data = null;
      $("series-note").textContent = error.message;
    }
    const dataset = item.assets.zarr ? "pairs" : "composite";
    $("series-csv").href = url(`${path}?lon=${lon}&lat=${lat}&dataset=${dataset}&f=csv`);
    draw();
  }

  function draw() {
    plot?.destroy();
    plot = null;
    $("plot").replaceChildren();
    $("series").querySelector("tbody").replaceChildren();
    if (!data || $("series").hidden) return;
    const { composite, pairs } = data;
    $("series-note").textContent = composite.length + pairs.length
      ? `${number(pairs.length)} image pairs and ${composite.length} composites have a value here; bars are one standard error.`
      : "There is no value here.";
    $("series").querySelector("tbody").replaceChildren(
      ...composite.map((row) => element("tr", {}, ...[period(row), row.v, row.v_error].map((text) => element("td", {}, String(text))))),
    );
    if (!(composite.length + pairs.length)) return;
    plot = new uPlot(options(), uPlot.join([columns(pairs), columns(composite)]), $("plot"));
    $("plot").plot = plot; // for who looks from outside
  }

  function close() {
    $("series").hidden = true;
    place = data = null;
    asked?.abort();
    draw();
    mark(atlas.view);
  }

  $("series-close").addEventListener("click", () => {
    close();
    $("map").focus();
  });
  addEventListener("resize", () => plot?.setSize({ width: $("plot").clientWidth, height: HEIGHT }));
  addEventListener("keydown", (event) => event.key === "Escape" && !$("series").hidden && close());
  onColourScheme(draw);
  return { layers: [layer], show: mark, open, close: () => $("series").hidden || close() };
}

const has = (row) => row.v !== null && row.v !== undefined;

const seconds = (text) => Date.parse(text) / SECONDS;

const columns = (rows) => [rows.map((row) => seconds(row.mid_date)), rows.map((row) => row.v), rows.map((row) => row.v_error)];

function period({ start, end }) {
  const last = new Date(Date.parse(end) - 1).toISOString();
  return `${start.slice(0, 10)} to ${last.slice(0, 10)}`;
}

function options() {
  const dark = isDark();
  const ink = dark ? "#c8d4da" : "#34464f";
  const grid = { stroke: dark ? "rgba(255,255,255,0.08)" : "rgba(0,0,0,0.07)", width: 1 };
  const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
  const faint = dark ? "rgba(125,190,215,0.55)" : "rgba(11,92,122,0.45)";
  const strong = "#e0852b";
  const points = (size, fill) => ({ show: true, size, fill, stroke: fill, width: 0 });
  return {
    width: $("plot").clientWidth,
    height: HEIGHT,
    cursor: { drag: { x: true, y: false }, points: { show: false } },
    legend: { show: false },
    scales: { y: { range: (_, least, most) => [Math.max(0, least - 0.15 * (most - least + 1)), most + 0.15 * (most - least + 1)] } },
    axes: [axis, { ...axis, size: 62, label: "speed, m/yr", labelSize: 18, labelFont: axis.font }],
    series: [
      {},
      { label: "image pairs", paths: () => null, points: points(4, faint) },
      { label: "their error", show: false },
      { label: "composites", paths: () => null, points: points(9, strong) },
      { label: "their error", show: false },
    ],
    hooks: { draw: [(u) => (bars(u, 1, faint, 1), bars(u, 3, strong, 2))] },
  };
}

/** Bars of one standard error about the values of a series; the errors are the next series. */
function bars(u, at, colour, width) {
  const [times, values, errors] = [u.data[0], u.data[at], u.data[at + 1]];
  const { ctx } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
  ctx.clip();
  ctx.strokeStyle = colour;
  ctx.lineWidth = width * devicePixelRatio;
  ctx.beginPath();
  times.forEach((time, n) => {
    if (values[n] == null || errors[n] == null) return;
    const x = u.valToPos(time, "x", true);
    ctx.moveTo(x, u.valToPos(values[n] - errors[n], "y", true));
    ctx.lineTo(x, u.valToPos(values[n] + errors[n], "y", true));
  });
  ctx.stroke();
  ctx.restore();
}
