// The page: parts made, and wired to each other.
import "ol/ol.css";
import "uplot/dist/uPlot.min.css";
import "./page.css";
import { createArea } from "./area.js";
import { createAsk } from "./ask.js";
import { $ } from "./dom.js";
import { createFootprints } from "./footprints.js";
import { createJob } from "./job.js";
import { createLook } from "./look.js";
import { createMap } from "./map.js";
import { moved } from "./projections.js";
import { createSeries } from "./series.js";

const atlas = createMap();
const series = createSeries(atlas);
const look = createLook(atlas, () => {
  series.close();
  $("look").scrollIntoView({ block: "start" });
});
const job = createJob((subset) => look.open(subset));
const ask = createAsk((status) => job.follow(status));
const area = createArea(atlas, (chosen) => ask.set(chosen));

for (const part of [createFootprints(atlas), ...look.parts, area, series]) atlas.add(part);

function velocitiesAt(coordinate) {
  if (look.item()) series.open(look.item(), moved(coordinate, atlas.view.code, "EPSG:4326"));
}
atlas.map.on("singleclick", ({ coordinate }) => area.drawing() || velocitiesAt(coordinate));
$("map").addEventListener("keydown", (event) => {
  if (event.key === "Enter") velocitiesAt(atlas.map.getView().getCenter());
});

const linked = /^#(subset-[0-9a-f]+)$/.exec(location.hash)?.[1];
atlas.open("arctic");
if (linked) look.open(linked);
else look.list();
