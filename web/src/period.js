// The period: two sliders over the months for which there are image pairs, and their histogram.
import { $ } from "./dom.js";

const DEFAULT_MONTHS = 36;
const FIRST = "1985-01"; // of the record, roughly, where nothing is known
const NAMES = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** Calls `changed` when the period does. */
export function createPeriod(changed) {
  let months = []; // [name as 2018-01, pairs]
  const [from, to] = [$("from"), $("to")];

  /** Show what an estimate counted; the period that is chosen stays where it can. */
  function show(counts) {
    const before = months.length ? interval() : null;
    const known = Object.keys(counts);
    $("months").toggleAttribute("hidden", !known.length);
    const names = known.length ? known : [FIRST, new Date().toISOString().slice(0, 7)];
    months = everyMonth(names).map((name) => [name, counts[name]]);
    const last = months.length - 1;
    const at = (name, other) => {
      const found = months.findIndex(([each]) => each === name);
      return found < 0 ? other : found;
    };
    for (const slider of [from, to]) slider.max = last;
    from.value = at(before?.[0], Math.max(0, last - DEFAULT_MONTHS + 1));
    to.value = at(before?.[1], last);
    draw();
  }

  function draw() {
    const most = Math.max(...months.map(([, count]) => count ?? 0), 1);
    const [first, last] = chosen();
    $("months").setAttribute("viewBox", `0 0 ${months.length} 1`);
    $("months").replaceChildren(
      ...months.map(([, count], n) => {
        const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        const height = (count ?? 0) / most;
        const place = { x: n + 0.1, y: 1 - height, width: 0.8, height, class: n >= first && n <= last ? "in" : "out" };
        for (const [key, value] of Object.entries(place)) bar.setAttribute(key, value);
        return bar;
      }),
    );
    const words = interval().map(inWords);
    $("period-text").textContent = words[0] === words[1] ? words[0] : `${words[0]} – ${words[1]}`;
    [from, to].forEach((slider, n) => slider.setAttribute("aria-valuetext", words[n]));
  }

  const chosen = () => [Number(from.value), Number(to.value)];
  const interval = () => chosen().map((n) => months[n][0]);

  for (const slider of [from, to]) {
    slider.addEventListener("input", () => {
      // the one that is moved pushes the other
      if (Number(from.value) > Number(to.value)) (slider === from ? to : from).value = slider.value;
      draw();
      changed();
    });
  }

  return {
    show,
    /** Image pairs in the period. */
    pairs: () => months.slice(chosen()[0], chosen()[1] + 1).reduce((sum, [, count]) => sum + (count ?? 0), 0),
    /** As an RFC 3339 interval of whole months. */
    datetime() {
      const [first, last] = interval();
      const [year, month] = last.split("-").map(Number);
      return `${first}-01/${last}-${new Date(Date.UTC(year, month, 0)).getUTCDate()}`;
    },
  };
}

function everyMonth(names) {
  const ordinal = (name) => Number(name.slice(0, 4)) * 12 + Number(name.slice(5)) - 1;
  const all = names.map(ordinal);
  const made = [];
  for (let n = Math.min(...all); n <= Math.max(...all); n++) {
    made.push(`${Math.floor(n / 12)}-${String((n % 12) + 1).padStart(2, "0")}`);
  }
  return made;
}

const inWords = (name) => `${NAMES[Number(name.slice(5)) - 1]} ${name.slice(0, 4)}`;
