// Runs the model, away from the page's own thread, which stays free to answer.
//
// Asked {kind: "load", runtime, model} (URLs) it answers {kind: "progress", what, done, total}
// and {kind: "ready", size, threads}; asked {kind: "run", id, width, height, rgba}, {kind:
// "result", id, width, height, ids, scores, seconds, model}; any failure is {kind: "error", id,
// message}. One question at a time.

import { Tensor, loadAndCompile, loadLiteRt, supportsFeature } from "@litertjs/core";
import { dropAlpha, resizeNearest, resizeRgb } from "./resample.js";

const SIGNATURE = "serving_default"; // what isa_tf.export calls it
let runtime = null; // a promise of the number of threads
let model = null;
let size = null; // (height, width) that the model takes

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
  const signature = model.signatures[SIGNATURE];
  const input = signature?.getInputDetails()[0];
  if (input?.name !== "image" || input.dtype !== "uint8" || input.shape.length !== 4) {
    throw new Error("this is no model that isa_tf.export wrote");
  }
  size = [input.shape[1], input.shape[2]];
  // The first run makes ready what all use.
  await infer(new Uint8Array(size[0] * size[1] * 3));
  postMessage({ kind: "ready", size, threads });
}

async function infer(rgb) {
  const image = Tensor.fromTypedArray(rgb, [1, ...size, 3]);
  try {
    const found = await model.run(SIGNATURE, { image });
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
  const resized = resizeRgb(dropAlpha(new Uint8Array(rgba)), height, width, ...size);
  const before = performance.now();
  const found = await infer(new Uint8Array(resized.buffer));
  const after = performance.now();
  const [ids, scores] = found.map((map) => resizeNearest(map, ...size, height, width));
  const times = { model: after - before, all: performance.now() - start };
  postMessage({ kind: "result", id, width, height, ids, scores, times }, [
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
