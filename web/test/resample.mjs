// Resizes pictures and ids as the page does: `node resample.mjs FOLDER`, over FOLDER/cases.json,
// [{name, size: [height, width], to: [height, width], kind: "rgb" or "ids"}]; reads NAME.in, writes
// NAME.out; PNGs of ids, "png" and "png16", as NAME.png.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { encodeIds } from "../src/png.js";
import { resizeNearest, resizeRgb } from "../src/resample.js";

const folder = process.argv[2];
for (const { name, kind, size, to } of JSON.parse(readFileSync(join(folder, "cases.json")))) {
  const given = new Uint8Array(readFileSync(join(folder, `${name}.in`)));
  if (kind === "rgb") {
    writeFileSync(join(folder, `${name}.out`), resizeRgb(given, ...size, ...to));
  } else if (kind === "ids") {
    writeFileSync(join(folder, `${name}.out`), resizeNearest(given, ...size, ...to));
  } else {
    const ids = kind === "png16" ? new Int32Array(given.buffer) : given;
    const blob = await encodeIds(ids, size[1], size[0], kind === "png16");
    writeFileSync(join(folder, `${name}.png`), new Uint8Array(await blob.arrayBuffer()));
  }
}
