// Polygons of a GeoPackage (OGC 12-128r19), which is an SQLite database; loaded when one is chosen.
import WKB from "ol/format/WKB.js";
import GeoJSON from "ol/format/GeoJSON.js";
import proj4 from "proj4";
import startSql from "sql.js";
import { definition } from "./projections.js";

const ENVELOPES = [0, 32, 48, 48, 64]; // bytes of each kind of envelope in a geometry's header
const quoted = (name) => `"${name.replaceAll('"', '""')}"`;

/** The geometries of all layers of features, as GeoJSON in degrees. */
export async function readGeoPackage(bytes) {
  const sql = await startSql({ locateFile: (name) => new URL(name, import.meta.url).href });
  const database = new sql.Database(bytes);
  try {
    return layers(database).flatMap((layer) => geometries(database, layer));
  } finally {
    database.close();
  }
}

function layers(database) {
  const [found] = database.exec(
    `SELECT g.table_name, g.column_name, s.organization || ':' || s.organization_coordsys_id, s.definition
     FROM gpkg_geometry_columns g JOIN gpkg_spatial_ref_sys s ON s.srs_id = g.srs_id`,
  );
  return (found?.values ?? []).map(([table, column, code, wkt]) => ({ table, column, crs: crsOf(code.toUpperCase(), wkt) }));
}

/** x comes before y in a GeoPackage, whatever the CRS says. */
function crsOf(code, wkt) {
  return proj4(proj4.defs(code) ? code : definition(wkt), "EPSG:4326");
}

function geometries(database, { table, column, crs }) {
  const [found] = database.exec(`SELECT ${quoted(column)} FROM ${quoted(table)} WHERE ${quoted(column)} IS NOT NULL`);
  return (found?.values ?? []).map(([blob]) => {
    const geometry = new WKB().readGeometry(wellKnownBinary(blob));
    geometry.applyTransform((flat, output, stride) => {
      for (let n = 0; n < flat.length; n += stride) {
        [flat[n], flat[n + 1]] = crs.forward([flat[n], flat[n + 1]]);
      }
      return flat;
    });
    return new GeoJSON().writeGeometryObject(geometry);
  });
}

/** What follows the header of a geometry: "GP", version, flags, srs_id, envelope. */
function wellKnownBinary(blob) {
  if (blob[0] !== 0x47 || blob[1] !== 0x50) throw new Error("no GeoPackage geometry");
  const envelope = ENVELOPES[(blob[3] >> 1) & 7];
  if (envelope === undefined) throw new Error("a geometry's envelope is of no known kind");
  return blob.slice(8 + envelope);
}
