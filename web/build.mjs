// Builds the page into api/static: one script, one style sheet, the coastline, and the notices of
// the libraries in it, as their licences ask.
import { build } from "esbuild";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "api", "static");
const modules = join(here, "node_modules");

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/page.js" },
  outdir: out,
  bundle: true,
  splitting: true, // what reads GeoPackages is loaded when there is one
  chunkNames: "[name]-[hash]",
  format: "esm",
  target: ["es2022"],
  minify: true,
  legalComments: "none",
  metafile: true,
});
await cp(join(here, "src", "index.html"), join(out, "index.html"));
await cp(join(here, "src", "icon.svg"), join(out, "icon.svg"));
await cp(join(modules, "sql.js", "dist", "sql-wasm-browser.wasm"), join(out, "sql-wasm-browser.wasm"));
// Natural Earth, in the public domain, as TopoJSON.
await cp(join(modules, "world-atlas", "land-50m.json"), join(out, "land.json"));

const bundled = new Set(["world-atlas"]);
for (const input of Object.keys(metafile.inputs)) {
  const [, name] = input.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/) ?? [];
  if (name) bundled.add(name);
}
const notices = [];
for (const name of [...bundled].sort()) {
  const about = JSON.parse(await readFile(join(modules, name, "package.json"), "utf8"));
  const file = (await readdir(join(modules, name))).find((each) => /^licen[cs]e/i.test(each));
  const text = file ? (await readFile(join(modules, name, file), "utf8")).trim() : "";
  notices.push(`${name} ${about.version} (${about.license})\n\n${text}`.trim());
}
await writeFile(join(out, "licences.txt"), notices.join(`\n\n${"-".repeat(80)}\n\n`) + "\n");
const sizes = Object.entries(metafile.outputs).map(
  ([file, { bytes }]) => `${relative(join(here, ".."), join(here, file))} ${Math.round(bytes / 1000)} kB`,
);
console.log(`${sizes.join(", ")}; ${bundled.size} libraries`);
