// Small helpers for the document.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; texts are texts, never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Calls at most once in so many milliseconds, the last call wins. */
export function debounced(call, wait) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), wait);
  };
}

export const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

export function onColourScheme(call) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", call);
}

/** 1234567 as 1,234,567; four digits at most after the point. */
export const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 6 });

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${number(Number(value.toPrecision(3)))} ${units[at]}`;
}
