// Where there are cubes: the footprints of what the service's own search finds in the view.
import GeoJSON from "ol/format/GeoJSON.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorSource from "ol/source/Vector.js";
import { Fill, Stroke, Style } from "ol/style.js";
import { $, debounced, isDark, number } from "./dom.js";
import { moved } from "./projections.js";
import { ServiceError, get } from "./service.js";

const PAGE = 1000;
const MOST = 5000;
const FIELDS = "id,geometry,properties.itslive:granule_count,-assets,-links";

export function createFootprints(atlas) {
  const source = new VectorSource();
  const layer = new VectorLayer({
    source,
    style: () => {
      const tone = isDark() ? "120,190,215" : "11,92,122";
      return new Style({
        fill: new Fill({ color: `rgba(${tone},0.05)` }),
        stroke: new Stroke({ color: `rgba(${tone},0.45)`, width: 1 }),
      });
    },
  });
  let asked;

  async function load() {
    if (!atlas.view) return;
    asked?.abort();
    asked = new AbortController();
    const { code, extent } = atlas.view;
    const seen = atlas.map.getView().calculateExtent();
    const box = seen.map((each, n) => (n < 2 ? Math.max(each, extent[n]) : Math.min(each, extent[n])));
    const query = { collections: "itslive-cubes", limit: PAGE, fields: FIELDS };
    const degrees = () => [...moved(box.slice(0, 2), code, "EPSG:4326"), ...moved(box.slice(2), code, "EPSG:4326")];
    const where =
      code === "EPSG:3857" ? { bbox: degrees() } : { bbox: box.map(Math.round), "bbox-crs": code };
    try {
      let token; // of the next page
      let shown = 0;
      do {
        const found = await get("search", { ...query, ...where, token }, { signal: asked.signal });
        const features = new GeoJSON().readFeatures(found, { featureProjection: code });
        if (!token) source.clear();
        source.addFeatures(features);
        shown += features.length;
        const next = found.links.find(({ rel }) => rel === "next");
        token = next && new URL(next.href).searchParams.get("token");
        $("hint").textContent =
          token && shown >= MOST ? `${number(shown)} of ${number(found.numberMatched)} cubes are shown: zoom in for the others` : "";
      } while (token && shown < MOST);
    } catch (error) {
      if (error.name === "AbortError") return;
      $("hint").textContent = error instanceof ServiceError ? error.message : "The footprints can't be shown.";
      if (!(error instanceof ServiceError)) throw error;
    }
  }

  const later = debounced(load, 250);
  atlas.map.on("moveend", later);
  return {
    layers: [layer],
    show: () => {
      source.clear();
      later();
    },
  };
}
