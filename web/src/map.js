// The map: its views, and what all layers have in common.
import OLMap from "ol/Map.js";
import View from "ol/View.js";
import { defaults as controls } from "ol/control/defaults.js";
import ScaleLine from "ol/control/ScaleLine.js";
import { createBasemap } from "./basemap.js";
import { $, onColourScheme } from "./dom.js";
import { VIEWS, bounds, moved, outline } from "./projections.js";

/**
 * `layers` are objects with `layers` (of OpenLayers, from below) and `show(view)`, which puts what
 * they have into the projection of a view.
 */
export function createMap() {
  const basemap = createBasemap();
  const parts = [basemap];
  const map = new OLMap({
    target: "map",
    layers: basemap.layers,
    controls: controls({ attribution: false, rotate: false }).extend([new ScaleLine()]),
  });
  const atlas = { map, view: null, name: "", add, open, fit, whole };

  function add(part) {
    parts.push(part);
    for (const layer of part.layers) map.addLayer(layer);
    if (atlas.view) part.show(atlas.view);
  }

  /** Another projection; the same place where it has one in it. */
  function open(name, place) {
    const before = atlas.view;
    const centre = before && moved(map.getView().getCenter(), before.code, "EPSG:4326");
    const ground = before && centre && map.getView().getResolution() * shrunk(before, centre);
    atlas.view = VIEWS[name];
    atlas.name = name;
    map.setView(
      new View({
        projection: atlas.view.code,
        extent: atlas.view.extent,
        showFullExtent: true,
        maxResolution: 40000,
        minResolution: 2,
        center: [0, 0],
        resolution: 20000,
        enableRotation: false,
      }),
    );
    for (const button of $("views").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === name));
    }
    for (const part of parts) part.show(atlas.view);
    if (!place && ground && ground < 3000 && atlas.view.shows(centre[1])) {
      map.getView().setCenter(moved(centre, "EPSG:4326", atlas.view.code));
      map.getView().setResolution(ground / shrunk(atlas.view, centre));
    } else if (!place || !fit(place.box, place.crs)) whole();
  }

  /** Show a box of some CRS; false if it has no place in this view. */
  function fit(box, crs) {
    const middle = moved([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], crs, "EPSG:4326");
    if (!atlas.view.shows(middle[1])) return false;
    const [ring] = outline(box, crs, atlas.view.code);
    map.getView().fit(bounds(ring), { padding: [60, 60, 60, 60], minResolution: 15 });
    return true;
  }

  function whole() {
    const inner = atlas.name === "world" ? 1 : 0.78;
    map.getView().fit(atlas.view.extent.map((each) => each * inner));
  }

  for (const button of $("views").querySelectorAll("button")) {
    button.addEventListener("click", () => open(button.dataset.view));
  }
  onColourScheme(() => map.getLayers().forEach((layer) => layer.changed()));
  return atlas;
}

/** Metres on the ground of a metre of the view: Mercator's are short far from the equator. */
const shrunk = ({ code }, [, lat]) => (code === "EPSG:3857" ? Math.cos((lat * Math.PI) / 180) : 1);
