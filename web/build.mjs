// Builds the page into ../isa_tf/web/page, or the folder given: the same sources, the same bytes.
import { build } from "esbuild";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../isa_tf/web/page");
const litert = join(here, "node_modules/@litertjs/core");

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "wasm"), { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: ["src/page.js", "src/worker.js"],
  bundle: true,
  minify: true,
  format: "iife", // a worker's importScripts and a page from a plain file take no modules
  target: "es2022",
  charset: "utf8",
  legalComments: "none", // they are in licences.txt
  outdir: out,
  logLevel: "warning",
});
const { version } = JSON.parse(readFileSync(join(litert, "package.json"), "utf8"));
const html = readFileSync(join(here, "src/index.html"), "utf8");
writeFileSync(join(out, "index.html"), html.replaceAll("$litert", version));
cpSync(join(here, "src/page.css"), join(out, "page.css"));
// With threads, without, and for browsers without relaxed SIMD. Not the one for WebNN.
for (const kind of ["threaded_", "", "compat_"]) {
  for (const end of ["js", "wasm"]) {
    const file = `litert_wasm_${kind}internal.${end}`;
    cpSync(join(litert, "wasm", file), join(out, "wasm", file));
  }
}
const apache = readFileSync(join(here, "../LICENSE"), "utf8");
const notice = `isa_tf, and in worker.js and wasm/ LiteRT.js ${version} (@litertjs/core and
@litertjs/wasm-utils, Copyright Google LLC), unchanged but for bundling: both under the following
licence.

`;
writeFileSync(join(out, "licences.txt"), notice + apache);
