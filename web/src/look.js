// What is stored: which subset, which of its maps, and how it is shown.
import { createArrows } from "./arrows.js";
import { $, bytes, element } from "./dom.js";
import { createRaster, unitOf } from "./raster.js";
import { createSnippets } from "./snippets.js";
import { ServiceError, get, local } from "./service.js";

const ORDER = ["v", "effective", "longitudinal", "shear", "divergence", "e1", "e2", "von_mises", "von_mises_tensile", "v_error", "count", "vx", "vy"];
const LATEST = 50;

/** Calls `changed` with the item that is looked at. */
export function createLook(atlas, changed) {
  const raster = createRaster();
  const arrows = createArrows(atlas);
  const snippets = createSnippets();
  let item = null;

  const maps = () =>
    ORDER.map((name) => `cog_${name}`).filter((key) => item.assets[key] && item.properties.renders?.[key]);

  async function list(chosen) {
    const found = await get("collections/subsets/items", { limit: LATEST, sortby: "-created", fields: "id,properties.title,-assets,-links" });
    $("subset").replaceChildren(
      element("option", { value: "" }, found.features.length ? "choose what is stored…" : "nothing is stored yet"),
      ...found.features.map(({ id, properties }) => element("option", { value: id }, properties.title.replace("ITS_LIVE subset ", ""))),
    );
    $("subset").value = chosen ?? "";
    $("look").hidden = !found.features.length;
  }

  async function open(id, { fit = true } = {}) {
    try {
      item = await get(`collections/subsets/items/${encodeURIComponent(id)}`);
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      $("subset-text").textContent = error.message;
      return;
    }
    await list(id);
    const { properties } = item;
    $("subset-text").textContent = properties.description;
    $("controls").hidden = false;
    const before = $("layer").value;
    $("layer").replaceChildren(
      ...maps().map((key) => element("option", { value: key }, properties.renders[key].title.split(",")[0])),
    );
    if (maps().includes(before)) $("layer").value = before;
    const periods = properties["firnline:periods"] ?? [];
    $("time").max = Math.max(1, periods.length);
    $("time").disabled = periods.length < 2;
    if (maps().length) $("time").value = properties.renders[maps()[0]].bidx[0];
    $("downloads").replaceChildren(...Object.entries(item.assets).map(download));
    snippets.show(item);
    // replaced, not added: the way back leads to where one came from
    history.replaceState(null, "", `#${id}`);
    const { "proj:bbox": box, "proj:code": crs } = properties;
    if (fit && !atlas.fit(box, crs)) {
      const latitude = (item.bbox[1] + item.bbox.at(-1)) / 2;
      atlas.open(latitude > 50 ? "arctic" : latitude < -55 ? "antarctic" : "world", { box, crs });
    }
    choose();
    changed(item);
  }

  /** Another map: with the range that the item says. */
  function choose() {
    const render = item.properties.renders?.[$("layer").value];
    if (!render) {
      raster.clear();
      arrows.set(null);
      return;
    }
    [$("low").value, $("high").value] = render.rescale[0];
    $("log-label").hidden = render.rescale[0][0] < 0;
    $("log").checked = false;
    paint();
  }

  function paint() {
    const key = $("layer").value;
    const band = Number($("time").value);
    const label = (item.properties["firnline:periods"] ?? [])[band - 1] ?? "";
    $("time-text").textContent = label;
    $("time").setAttribute("aria-valuetext", label);
    const log = $("log").checked && !$("log-label").hidden;
    let [low, high] = [Number($("low").value), Number($("high").value)];
    if (log && low <= 0) low = high / 1000;
    const wrong = !(low < high);
    $("high").setAttribute("aria-invalid", String(wrong));
    if (wrong) return;
    const colormap = item.properties.renders[key].colormap_name;
    raster.set({ item, key, band, low, high, colormap, log, unit: unitOf(item.assets[key]) });
    arrows.set($("arrows").checked && item.assets.cog_vx ? { item, band } : null);
  }

  $("subset").addEventListener("change", () => $("subset").value && open($("subset").value));
  $("layer").addEventListener("change", choose);
  for (const id of ["time", "low", "high", "arrows", "log"]) {
    $(id).addEventListener(id === "time" ? "input" : "change", paint);
  }
  $("opacity").addEventListener("input", () => raster.layer.setOpacity(Number($("opacity").value)));

  return { parts: [raster, arrows], list, open, item: () => item };
}

function download([key, asset]) {
  const zarr = asset.type === "application/vnd+zarr";
  const size = asset["file:size"] ? ` (${bytes(asset["file:size"])})` : "";
  const place = zarr
    ? element("code", {}, local(asset.href))
    : element("a", { href: local(asset.href), download: "" }, asset.href.split("/").at(-1));
  return element("li", {}, `${asset.title}${size}: `, place);
}
