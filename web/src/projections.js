// The three views, and getting coordinates from one CRS into another.
import proj4 from "proj4";
import { register } from "ol/proj/proj4.js";
import { get, transform } from "ol/proj.js";

const HALF = 4194304; // of the polar tile grids (EPSG3413, EPSG3031), in metres
const polar = [-HALF, -HALF, HALF, HALF];
const mercator = 20037508.342789244;

proj4.defs(
  "EPSG:3413",
  "+proj=stere +lat_0=90 +lat_ts=70 +lon_0=-45 +x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs",
);
proj4.defs(
  "EPSG:3031",
  "+proj=stere +lat_0=-90 +lat_ts=-71 +lon_0=0 +x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs",
);
for (let zone = 1; zone <= 60; zone++) {
  const two = String(zone).padStart(2, "0");
  proj4.defs(`EPSG:326${two}`, `+proj=utm +zone=${zone} +datum=WGS84 +units=m +no_defs`);
  proj4.defs(`EPSG:327${two}`, `+proj=utm +zone=${zone} +south +datum=WGS84 +units=m +no_defs`);
}
register(proj4);

/** `shows`: whether a latitude has a sensible place in it; `tiles`: its tile matrix set. */
export const VIEWS = {
  arctic: { code: "EPSG:3413", tiles: "EPSG3413", extent: polar, shows: (lat) => lat > 40, zooms: 14 },
  antarctic: { code: "EPSG:3031", tiles: "EPSG3031", extent: polar, shows: (lat) => lat < -50, zooms: 14 },
  world: {
    code: "EPSG:3857",
    tiles: "WebMercatorQuad",
    extent: [-mercator, -mercator, mercator, mercator],
    shows: (lat) => Math.abs(lat) < 85,
    zooms: 24,
  },
};
for (const { code, extent } of Object.values(VIEWS)) get(code).setExtent(extent);

const named = (code) => (code === "OGC:CRS84" ? "EPSG:4326" : code);

export const knows = (code) => Boolean(get(named(code)));

export const moved = (point, from, to) => transform(point, named(from), named(to));

/** The outline of a box, with points along its edges, so that it stays true in another CRS. */
export function outline([west, south, east, north], from, to, steps = 24) {
  const corners = [[west, south], [east, south], [east, north], [west, north], [west, south]];
  return [dense(corners, steps).map((point) => moved(point, from, to))];
}

export function dense(line, steps) {
  const points = [];
  for (let n = 1; n < line.length; n++) {
    const [a, b] = [line[n - 1], line[n]];
    for (let s = 0; s < steps; s++) {
      points.push([a[0] + ((b[0] - a[0]) * s) / steps, a[1] + ((b[1] - a[1]) * s) / steps]);
    }
  }
  return [...points, line.at(-1)];
}

/** West, south, east, north around points. */
export function bounds(points) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of points) {
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x);
    box[3] = Math.max(box[3], y);
  }
  return box;
}

/**
 * What proj4 makes the right thing of. It takes ESRI's polar stereographic WKT, as in the .prj of
 * EPSG:3413 and 3031, for another projection (2.22: off by 20 degrees of latitude).
 */
export function definition(wkt) {
  if (!/PROJECTION\["(Stereographic_(North|South)_Pole|Polar_Stereographic)/i.test(wkt)) return wkt;
  const value = (name) => Number(new RegExp(`"${name}",\\s*([-\\d.eE+]+)`, "i").exec(wkt)?.[1] ?? 0);
  const [, axis, flattening] = /SPHEROID\["[^"]*",\s*([\d.]+),\s*([\d.]+)/i.exec(wkt);
  const parallel = value("Standard_Parallel_1") || value("latitude_of_origin");
  return [
    `+proj=stere +lat_0=${parallel < 0 ? -90 : 90} +lat_ts=${parallel} +lon_0=${value("Central_Meridian")}`,
    `+x_0=${value("False_Easting")} +y_0=${value("False_Northing")} +a=${axis} +rf=${flattening} +units=m +no_defs`,
  ].join(" ");
}
