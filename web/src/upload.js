// Areas in files: GeoJSON, and Shapefiles in a zip with their .prj.
import { iter } from "but-unzip";
import { parseShp } from "shpjs";

const LARGEST = 20e6;

/** The polygons of a file as one GeoJSON geometry in degrees; errors say what is accepted. */
export async function readArea(file) {
  if (file.size > LARGEST) throw new Error(`${file.name} is larger than 20 MB.`);
  const polygons = [];
  for (const geometry of await geometries(file)) {
    if (geometry?.type === "Polygon") polygons.push(geometry.coordinates);
    if (geometry?.type === "MultiPolygon") polygons.push(...geometry.coordinates);
  }
  if (!polygons.length) throw new Error(`${file.name} holds no polygon.`);
  const flat = polygons.map((rings) => rings.map((ring) => ring.map(([x, y]) => [x, y])));
  if (flat.flat(2).some(([x, y]) => !(Math.abs(x) <= 360 && Math.abs(y) <= 90))) {
    throw new Error(`${file.name} is not in longitude and latitude, as GeoJSON has to be.`);
  }
  return flat.length === 1
    ? { type: "Polygon", coordinates: flat[0] }
    : { type: "MultiPolygon", coordinates: flat };
}

async function geometries(file) {
  let read;
  try {
    read = file.name.toLowerCase().endsWith(".zip")
      ? await shapefile(new Uint8Array(await file.arrayBuffer()))
      : JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} can't be read: accepted are GeoJSON and a zip with a Shapefile.`);
  }
  const found = [];
  const visit = (node) => {
    if (Array.isArray(node)) node.forEach(visit);
    else if (node?.type === "FeatureCollection") node.features?.forEach(visit);
    else if (node?.type === "GeometryCollection") node.geometries?.forEach(visit);
    else if (node?.type === "Feature") visit(node.geometry);
    else if (node) found.push(node);
  };
  visit(read);
  return found;
}

/** The geometries of a Shapefile in a zip, in degrees. */
async function shapefile(zip) {
  const parts = new Map();
  for (const entry of iter(zip)) {
    const name = entry.filename.toLowerCase();
    if (/\.(shp|prj)$/.test(name) && !name.startsWith("__macosx")) parts.set(name, entry);
  }
  const found = [];
  for (const [name, entry] of parts) {
    if (!name.endsWith(".shp")) continue;
    const prj = await parts.get(name.replace(/shp$/, "prj"))?.read();
    found.push(...parseShp(await entry.read(), prj && definition(new TextDecoder().decode(prj))));
  }
  return found;
}

/**
 * What proj4 makes the right thing of. It takes ESRI's polar stereographic WKT, as in the .prj of
 * EPSG:3413 and 3031, for another projection (2.22: off by 20 degrees of latitude).
 */
function definition(wkt) {
  if (!/PROJECTION\["(Stereographic_(North|South)_Pole|Polar_Stereographic)/i.test(wkt)) return wkt;
  const value = (name) => Number(new RegExp(`"${name}",\\s*([-\\d.eE+]+)`, "i").exec(wkt)?.[1] ?? 0);
  const [, axis, flattening] = /SPHEROID\["[^"]*",\s*([\d.]+),\s*([\d.]+)/i.exec(wkt);
  const parallel = value("Standard_Parallel_1") || value("latitude_of_origin");
  return [
    `+proj=stere +lat_0=${parallel < 0 ? -90 : 90} +lat_ts=${parallel} +lon_0=${value("Central_Meridian")}`,
    `+x_0=${value("False_Easting")} +y_0=${value("False_Northing")} +a=${axis} +rf=${flattening} +units=m +no_defs`,
  ].join(" ");
}
