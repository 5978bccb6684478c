// Areas in files: GeoJSON, GeoPackage, and Shapefiles in a zip with their .prj.
import { iter } from "but-unzip";
import { parseShp } from "shpjs";
import { definition } from "./projections.js";

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

const content = async (file) => new Uint8Array(await file.arrayBuffer());

function reader(name) {
  if (/\.zip$/i.test(name)) return async (file) => shapefile(await content(file));
  if (/\.gpkg$/i.test(name)) {
    return async (file) => (await import("./geopackage.js")).readGeoPackage(await content(file));
  }
  return async (file) => JSON.parse(await file.text());
}

async function geometries(file) {
  let read;
  try {
    read = await reader(file.name)(file);
  } catch {
    throw new Error(`${file.name} can't be read: accepted are GeoJSON, GeoPackage and a zip with a Shapefile.`);
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
