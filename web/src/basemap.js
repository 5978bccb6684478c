// Coast and graticule: the page needs no one else's tiles.
import Feature from "ol/Feature.js";
import TopoJSON from "ol/format/TopoJSON.js";
import { MultiLineString, Polygon } from "ol/geom.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorImageLayer from "ol/layer/VectorImage.js";
import VectorSource from "ol/source/Vector.js";
import { Fill, Stroke, Style } from "ol/style.js";
import { isDark } from "./dom.js";
import { moved } from "./projections.js";
import { url } from "./service.js";

const colours = () =>
  isDark()
    ? { land: "#26323b", coast: "#5b6d78", lines: "rgba(160,190,205,0.14)" }
    : { land: "#fbfaf7", coast: "#93a6ae", lines: "rgba(40,80,100,0.13)" };

export function createBasemap() {
  const land = new VectorImageLayer({
    source: new VectorSource(),
    imageRatio: 1.5,
    style: () => {
      const { land, coast } = colours();
      return new Style({ fill: new Fill({ color: land }), stroke: new Stroke({ color: coast, width: 0.8 }) });
    },
  });
  const graticule = new VectorLayer({
    source: new VectorSource({ wrapX: false }),
    style: () => new Style({ stroke: new Stroke({ color: colours().lines, width: 1 }) }),
  });
  const rings = coast();

  async function show(view) {
    graticule.getSource().clear();
    graticule.getSource().addFeature(new Feature(lines(view)));
    const features = (await rings)
      .filter((ring) => ring.some(([, lat]) => view.shows(lat)))
      .flatMap((ring) => (view.code === "EPSG:3857" ? unrolled(ring) : [ring]))
      .map((ring) => ring.map((point) => moved(point, "EPSG:4326", view.code)))
      .map((ring) => new Feature(new Polygon([ring])));
    land.getSource().clear();
    land.getSource().addFeatures(features);
  }
  return { layers: [land, graticule], show };
}

/** Outer rings in degrees. Lakes are not worth their bytes here. */
async function coast() {
  const reply = await fetch(url("map/land.json"));
  const [feature] = new TopoJSON().readFeatures(await reply.json());
  return feature.getGeometry().getCoordinates().map(([ring]) => ring);
}

/**
 * A ring for a map that ends at 180 degrees. In the data rings go on across the antimeridian, and
 * that of Antarctica around the pole: they are unrolled, closed along the map's lower edge, and
 * drawn once more at the other side.
 */
function unrolled(ring) {
  let turn = 0;
  const flat = ring.map(([lon, lat], n) => {
    if (n && lon - ring[n - 1][0] > 180) turn -= 360;
    if (n && lon - ring[n - 1][0] < -180) turn += 360;
    return [lon + turn, Math.max(lat, -85.05)];
  });
  const around = flat.at(-1)[0] - flat[0][0];
  if (Math.abs(around) > 180) flat.push([flat.at(-1)[0], -85.05], [flat[0][0], -85.05], flat[0]);
  const copies = [flat];
  for (const shift of [-360, 360]) {
    if (flat.some(([lon]) => Math.abs(lon + shift) < 180 && Math.abs(lon) > 180)) {
      copies.push(flat.map(([lon, lat]) => [lon + shift, lat]));
    }
  }
  return copies;
}

function lines(view) {
  const lats = [];
  for (let lat = -80; lat <= 80; lat += 10) if (view.shows(lat)) lats.push(lat);
  const [south, north] =
    view.code === "EPSG:3857" ? [-85, 85] : lats[0] > 0 ? [lats[0], 89.5] : [-89.5, lats.at(-1)];
  const made = lats.map((lat) => range(-180, 180, 3).map((lon) => [lon, lat]));
  for (let lon = -180; lon < 180; lon += 30) made.push(range(south, north, 5).map((lat) => [lon, lat]));
  return new MultiLineString(made.map((line) => line.map((point) => moved(point, "EPSG:4326", view.code))));
}

function range(from, to, step) {
  const values = [];
  for (let value = from; value < to; value += step) values.push(value);
  return [...values, to];
}
