// Areas in files: GeoJSON, and Shapefiles in a zip with their .prj.
import { parseZip } from "shpjs";

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
      ? await parseZip(await file.arrayBuffer())
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
