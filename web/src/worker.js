// Runs the model, away from the page's own thread, which stays free to answer.
//
// Asked {kind: "load", runtime, model, sizes} (URLs, and the (height, width)s that the model takes)
// it answers {kind: "progress", what, done, total} and {kind: "ready", threads}; asked {kind: "run",
// id, width, height, rgba}, {kind: "result", id, width, height, ids, scores, size, times}; any
// failure is {kind: "error", id, message}. One question at a time.

import { Tensor, loadAndCompile, loadLiteRt, supportsFeature } from "@litertjs/core";
import { dropAlpha, resizeNearest, resizeRgb } from "./resample.js";

// What isa_tf.export calls the signature of the first size, and those of others.
const nameOf = ([height, width], index) =>
  index === 0 ? "serving_default" : `serving_size_${height}x${width}`;
let runtime = null; // a promise of the number of threads
let model = null;
let sizes = []; // [{name, size}], a signature for each (height, width) that the model takes

// LiteRT looks for a graphics card, which nothing here uses, and warns of not finding one.
Object.defineProperty(navigator, "gpu", { value: undefined });
const warn = console.warn;
console.warn = (...told) => /default WebGPU device/.test(told[0]) || warn(...told);

async function startRuntime(folder) {
  // Memory that threads share is there on pages that are isolated (COOP and COEP) alone.
  const threads =
    self.crossOriginIsolated &&
    (navigator.hardwareConcurrency ?? 1) > 1 &&
    (await supportsFeature("relaxedSimd")) &&
    (await supportsFeature("threads"));
  // Threads begin with the runtime's own script: by themselves they would take this one.
  self.Module = {
    // What LiteRT tells of its own doings is no error of the page's.
    printErr: (text) => /^(INFO|WARNING|VERBOSE): /.test(text) || console.error(text),
    locateFile: (name) => folder + name,
    mainScriptUrlOrBlob: `${folder}litert_wasm_threaded_internal.js`,
  };
  const litert = await loadLiteRt(folder, { threads });
  return threads ? litert.liteRtWasm.getThreadCount() : 1;
}

async function download(url, what) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is not there (${response.status})`);
  // Of what came compressed the length is not that of what is read.
  const packed = response.headers.has("content-encoding");
  const total = packed ? 0 : Number(response.headers.get("content-length"));
  const parts = [];
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done: end, value } = await reader.read();
    if (end) break;
    parts.push(value);
    done += value.length;
    postMessage({ kind: "progress", what, done, total });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load(question) {
  model?.delete();
  model = null;
  const bytes = download(question.model, "model");
  bytes.catch(() => {}); // told below, where it is awaited
  if (runtime === null) {
    postMessage({ kind: "progress", what: "runtime", done: 0, total: 0 });
    runtime = startRuntime(question.runtime);
    runtime.catch(() => (runtime = null)); // so that another try begins anew
  }
  const threads = await runtime;
  model = await loadAndCompile(await bytes, { accelerator: "wasm" });
  sizes = question.sizes.map((size, index) => ({ name: nameOf(size, index), size }));
  for (const { name, size } of sizes) {
    const input = model.signatures[name]?.getInputDetails()[0];
    const shape = String([1, ...size, 3]);
    if (input?.name !== "image" || input.dtype !== "uint8" || String([...input.shape]) !== shape) {
      throw new Error("this is no model that isa_tf.export wrote");
    }
  }
  // The first run makes ready what all use.
  for (const one of sizes) await infer(new Uint8Array(one.size[0] * one.size[1] * 3), one);
  postMessage({ kind: "ready", threads });
}

// As isa_tf.inference.seen_size: the sides differ from the picture's by the smallest factors.
function nearest(height, width) {
  const factors = ({ size }) => Math.log(height / size[0]) ** 2 + Math.log(width / size[1]) ** 2;
  return sizes.reduce((best, one) => (factors(one) < factors(best) ? one : best));
}

async function infer(rgb, { name, size }) {
  const image = Tensor.fromTypedArray(rgb, [1, ...size, 3]);
  try {
    const found = await model.run(name, { image });
    try {
      // Copies: a tensor's memory is gone with it, and may be shared.
      return [found.class_id.toTypedArray().slice(), found.score.toTypedArray().slice()];
    } finally {
      for (const tensor of Object.values(found)) tensor.delete();
    }
  } finally {
    image.delete();
  }
}

async function run({ id, width, height, rgba }) {
  const start = performance.now();
  const one = nearest(height, width);
  const { size } = one;
  const resized = resizeRgb(dropAlpha(new Uint8Array(rgba)), height, width, ...size);
  const before = performance.now();
  const found = await infer(new Uint8Array(resized.buffer), one);
  const after = performance.now();
  const [ids, scores] = found.map((map) => resizeNearest(map, ...size, height, width));
  const times = { model: after - before, all: performance.now() - start };
  postMessage({ kind: "result", id, width, height, ids, scores, size, times }, [
    ids.buffer,
    scores.buffer,
  ]);
}

let last = Promise.resolve();
onmessage = ({ data }) => {
  last = last
    .then(() => (data.kind === "load" ? load(data) : run(data)))
    .catch((error) => {
      postMessage({ kind: "error", id: data.id, message: String(error?.message ?? error) });
    });
};
