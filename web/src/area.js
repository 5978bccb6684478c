// The area that is asked for: drawn, taken from the view, typed in, or read from a file.
import Feature from "ol/Feature.js";
import { MultiPolygon, Polygon } from "ol/geom.js";
import Draw, { createBox } from "ol/interaction/Draw.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorSource from "ol/source/Vector.js";
import { Circle, Fill, Stroke, Style } from "ol/style.js";
import { $, number } from "./dom.js";
import { bounds, dense, moved, outline } from "./projections.js";
import { readArea } from "./upload.js";

const ORANGE = "#e0852b";

/** Calls `changed` with `{crs, bbox}` or `{crs, bbox, geometry}`; bbox is the geometry's bounds. */
export function createArea(atlas, changed) {
  const source = new VectorSource();
  const style = new Style({
    stroke: new Stroke({ color: ORANGE, width: 2.5 }), // no fill: it would tint the maps below
    image: new Circle({ radius: 5, fill: new Fill({ color: ORANGE }) }),
  });
  const layer = new VectorLayer({ source, style, zIndex: 5 });
  let current = null;
  let drawing = null;

  function show(view) {
    stop();
    source.clear();
    if (!current) return;
    const { crs, bbox, geometry } = current;
    const polygons = geometry ? polygonsOf(geometry) : null;
    const shape = polygons
      ? new MultiPolygon(polygons.map((rings) => rings.map((ring) => dense(ring, 8).map((p) => moved(p, crs, view.code)))))
      : new Polygon(outline(bbox, crs, view.code));
    source.addFeature(new Feature(shape));
  }

  function set(area, { fit = false } = {}) {
    current = area;
    const { crs, bbox } = area;
    const [width, height] = [bbox[2] - bbox[0], bbox[3] - bbox[1]];
    const size = crs === "OGC:CRS84"
      ? `${number(width)}° × ${number(height)}°`
      : `${number(Math.round(width / 100) / 10)} × ${number(Math.round(height / 100) / 10)} km`;
    $("area-text").textContent = `${area.name ?? (area.geometry ? "Polygon" : "Box")}, ${size}, ${crs === "OGC:CRS84" ? "longitude and latitude" : crs}`;
    $("crs").value = crs;
    ["west", "south", "east", "north"].forEach((id, n) => ($(id).value = bbox[n]));
    if (fit && !atlas.fit(bbox, crs)) {
      const middle = moved([(bbox[0] + bbox[2]) / 2, (bbox[1] + bbox[3]) / 2], crs, "EPSG:4326");
      const name = middle[1] > 50 ? "arctic" : middle[1] < -55 ? "antarctic" : "world";
      atlas.open(name, { box: bbox, crs });
    }
    show(atlas.view);
    changed(area);
  }

  function stop() {
    if (drawing) atlas.map.removeInteraction(drawing);
    drawing = null;
    for (const id of ["draw-box", "draw-polygon"]) $(id).setAttribute("aria-pressed", "false");
  }

  function draw(button, options) {
    const again = $(button).getAttribute("aria-pressed") === "true";
    stop();
    if (again) return;
    $(button).setAttribute("aria-pressed", "true");
    $("area-text").textContent =
      button === "draw-box" ? "Click two corners on the map; Escape ends." : "Click the corners, the last one twice; Escape ends.";
    drawing = new Draw({ type: "Circle", geometryFunction: createBox(), ...options, style });
    drawing.on("drawend", ({ feature }) => {
      const rings = feature.getGeometry().getCoordinates();
      const area = button === "draw-box" ? { bbox: bounds(rings[0]) } : { geometry: { type: "Polygon", coordinates: rings } };
      // not at once: the click that ends the drawing would go on to the map
      setTimeout(() => set(inView(area)), 0);
    });
    atlas.map.addInteraction(drawing);
  }

  /** An area in the view's CRS, or in degrees on the world map, whose metres are none. */
  function inView({ bbox, geometry }) {
    const { code } = atlas.view;
    const world = code === "EPSG:3857";
    const crs = world ? "OGC:CRS84" : code;
    const round = (value) => (world ? Math.round(value * 1e5) / 1e5 : Math.round(value));
    const place = (point) => (world ? moved(point, code, crs) : point).map(round);
    if (!geometry) return { crs, bbox: [...place(bbox.slice(0, 2)), ...place(bbox.slice(2))] };
    const coordinates = geometry.coordinates.map((ring) => ring.map(place));
    return { crs, geometry: { type: "Polygon", coordinates }, bbox: bounds(coordinates[0]) };
  }

  $("draw-box").addEventListener("click", () => draw("draw-box", {}));
  $("draw-polygon").addEventListener("click", () => draw("draw-polygon", { type: "Polygon", geometryFunction: undefined }));
  $("use-view").addEventListener("click", () => {
    stop();
    const [west, south, east, north] = atlas.map.getView().calculateExtent();
    set(inView({ bbox: [west, south, east, north] }));
  });
  $("use-coordinates").addEventListener("click", () => {
    const bbox = ["west", "south", "east", "north"].map((id) => Number($(id).value.trim() || NaN));
    if (bbox.some((each) => !Number.isFinite(each)) || bbox[1] >= bbox[3] || bbox[0] >= bbox[2]) {
      $("area-text").textContent = "Four numbers are needed, west less than east and south less than north.";
      return;
    }
    $("by-coordinates").open = false;
    set({ crs: $("crs").value, bbox }, { fit: true });
  });
  $("upload").addEventListener("change", async () => {
    const [file] = $("upload").files;
    $("upload").value = "";
    if (!file) return;
    try {
      const geometry = await readArea(file);
      set({ crs: "OGC:CRS84", geometry, bbox: bounds(polygonsOf(geometry).flat(2)), name: file.name }, { fit: true });
    } catch (error) {
      $("area-text").textContent = error.message;
    }
  });
  addEventListener("keydown", (event) => event.key === "Escape" && stop());

  return { layers: [layer], show, set, stop, drawing: () => Boolean(drawing) };
}

const polygonsOf = ({ type, coordinates }) => (type === "Polygon" ? [coordinates] : coordinates);
