// How to use a subset elsewhere: code to copy.
import { $, element } from "./dom.js";
import { local, url } from "./service.js";

const MADE = {
  Python: (item) => `import xarray as xr

${["zarr", "composite", "strain"]
  .filter((key) => item.assets[key])
  .map((key) => `${key === "zarr" ? "pairs" : key} = xr.open_zarr("${local(item.assets[key].href)}")`)
  .join("\n")}`,
  firnline: (item) => `import firnline

ds = firnline.open(
${Object.entries(asked(item))
  .map(([key, value]) => `    ${key}=${python(value)},`)
  .join("\n")}
)`,
  QGIS: (item) => `Layer > Add Layer > Add Layer from STAC Catalog
    ${url("")}

or Layer > Add Layer > Add Raster Layer, protocol HTTP(S):
    /vsicurl/${local((item.assets.cog_v ?? item.assets.zarr).href)}`,
  curl: (item) => `curl -X POST ${url("processes/materialise/execution")} \\
  -H 'Content-Type: application/json' -H 'Prefer: respond-async' \\
  -d '${JSON.stringify({ inputs: asked(item) }).replaceAll("'", "'\\''")}'`,
};

/** What was asked for, without what is as it is by default. */
function asked(item) {
  const { format, collection, variables, ...inputs } = item.properties["firnline:request"];
  const kept = Object.entries(inputs).filter(
    ([key, value]) => value !== null && !(Array.isArray(value) && !value.length) && !(key === "pairs" && value),
  );
  return Object.fromEntries(kept);
}

function python(value) {
  return JSON.stringify(value)
    .replaceAll(/\bnull\b/g, "None")
    .replaceAll(/\btrue\b/g, "True")
    .replaceAll(/\bfalse\b/g, "False");
}

export function createSnippets() {
  let item = null;
  let which = "Python";
  const tabs = Object.keys(MADE).map((name) => {
    const tab = element("button", { type: "button" }, name);
    tab.addEventListener("click", () => show(item, name));
    return tab;
  });
  $("snippet-tabs").replaceChildren(...tabs);

  function show(next, name = which) {
    [item, which] = [next, name];
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.textContent === name));
    $("snippet").textContent = MADE[name](item);
    $("copied").textContent = "";
  }

  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("snippet").textContent);
      $("copied").textContent = "Copied.";
    } catch {
      // browsers keep the clipboard for https and loopback
      getSelection().selectAllChildren($("snippet"));
      $("copied").textContent = "It's selected: copy it with the keyboard.";
    }
  });
  return { show };
}
