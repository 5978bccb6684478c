// The form: an estimate as soon as there is an area, then the request.
import { $, bytes, debounced, number } from "./dom.js";
import { createPeriod } from "./period.js";
import { ServiceError, get, post } from "./service.js";

const VARIABLES = 3;
const BYTES = 2; // of a value

/** Calls `started` with the job's status when one was asked for. */
export function createAsk(started) {
  let area = null;
  let found = null;
  let asked;
  const period = createPeriod(tell);

  async function estimate() {
    if (!area) return;
    asked?.abort();
    asked = new AbortController();
    $("asking").hidden = false;
    $("estimate").textContent = "Counting image pairs…";
    const { satellites, dt_days, min_valid } = filters();
    try {
      const query = { bbox: area.bbox, crs: area.crs, satellites: satellites?.join(), dt_days: dt_days?.join(), min_valid };
      found = await get("estimate", query, { signal: asked.signal });
      period.show(found.months);
      tell();
    } catch (error) {
      if (error.name === "AbortError") return;
      found = null;
      $("estimate").textContent = shown(error);
    }
    $("ask").querySelector(".primary").disabled = !found;
  }

  function tell() {
    if (!found) return;
    const pairs = period.pairs();
    const { shape, cubes, unread } = found;
    const size = $("keep-pairs").checked ? shape.x * shape.y * pairs * VARIABLES * BYTES : 0;
    const counted = cubes.length - unread.length;
    const parts = [`${number(shape.x)} × ${number(shape.y)} pixels`];
    const most = filters().max_error ? "at most " : ""; // the job looks at errors, the catalog doesn't have them
    if (counted) parts.unshift(`${most}${number(pairs)} image pairs in ${plural(counted)}`);
    if (unread.length) parts.unshift(`image pairs of ${plural(unread.length)} that are not known before a deep harvest`);
    else if (size) parts.push(`at most ${bytes(size)} before compression`);
    const text = parts.join(", ");
    $("estimate").textContent = `${text[0].toUpperCase()}${text.slice(1)}.`;
  }

  /** Which pairs are kept, as inputs of the process. */
  function filters() {
    const satellites = $("satellites").value.toUpperCase().split(/[\s,;]+/).filter(Boolean);
    const [most, valid, error] = ["max-dt", "min-valid", "max-error"].map((id) => Number($(id).value));
    return {
      ...(satellites.length ? { satellites } : {}),
      ...(most > 0 ? { dt_days: [0, most] } : {}),
      ...(valid > 0 ? { min_valid: valid } : {}),
      ...(error > 0 ? { max_error: error } : {}),
    };
  }

  /** The inputs of the process, as in the snippets. */
  function inputs() {
    const { crs, bbox, geometry } = area;
    return {
      ...(geometry ? { geometry } : { bbox }),
      crs,
      datetime: period.datetime(),
      composite: $("composite").value,
      strain: { length_scale: Number($("length-scale").value) || 500 },
      ...filters(),
      ...($("keep-pairs").checked ? {} : { pairs: false }),
    };
  }

  const again = debounced(estimate, 300);
  for (const id of ["satellites", "max-dt", "min-valid"]) $(id).addEventListener("input", again);
  $("max-error").addEventListener("input", tell);
  $("keep-pairs").addEventListener("change", tell);
  $("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!area || !found) return;
    try {
      started(await post("processes/materialise/execution", { inputs: inputs() }));
    } catch (error) {
      $("estimate").textContent = shown(error);
    }
  });

  return {
    set(chosen) {
      area = chosen;
      estimate();
    },
  };
}

const plural = (cubes) => `${cubes} ${cubes === 1 ? "cube" : "cubes"}`;

function shown(error) {
  if (!(error instanceof ServiceError)) throw error;
  return error.message;
}
