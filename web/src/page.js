// The page: what the person gives goes to the worker, what it answers is shown.

import { encodeIds } from "./png.js";

// Some browsers read back nothing of canvases beyond this; larger photos are shrunk to it.
const MOST_PIXELS = 4096 * 4096;
const SMALL = 400; // pixels; smaller pictures are enlarged with sharp corners

const $ = (id) => document.getElementById(id);
const stage = $("stage");
const photo = $("photo");
const overlay = $("overlay");
// Opaque: what is transparent lies on black, and colours are read back as they were.
const photoContext = photo.getContext("2d", { alpha: false, willReadFrequently: true });
const overlayContext = overlay.getContext("2d");
const here = new URL(".", document.baseURI).href;

let worker = null;
let models = [];
let model = null; // the chosen one of `models`
let ready = false; // whether the worker has it
let result = null; // the worker's last answer, of the picture that is shown
let name = "picture"; // of the picture, for what is downloaded
let hiddenClasses = new Set();
let point = null; // {x, y} in pixels of the picture
let camera = null; // the stream, while it is on
let asked = 0; // number of the question that the worker is at
let waiting = null; // what to do with its answer
let loading = 0; // how many models are being loaded; the last is the chosen one
let opened = 0; // how many pictures have been asked for

// What the worker says --------------------------------------------------------------------------

function startWorker() {
  // From a blob it has this page's policy on hosts, too, that send none with their files.
  const script = new Blob([`importScripts(${JSON.stringify(`${here}worker.js`)})`], {
    type: "text/javascript",
  });
  worker = new Worker(URL.createObjectURL(script));
  worker.onmessage = hear;
  worker.onerror = (event) => {
    event.preventDefault();
    fail(`The worker stopped: ${event.message || "its script could not be loaded"}`);
  };
}

function hear({ data }) {
  if (data.kind === "progress") {
    // The bar moves; the words stay, for they are read out.
    const known = data.done < data.total;
    if (data.what === "runtime") say("Loading the runtime.");
    else if (known) say(`Loading the model, ${(data.total / 1e6).toFixed(1)} MB.`);
    else say("Getting the model ready.");
    $("progress").hidden = false;
    if (known) $("progress").value = data.done / data.total;
    else $("progress").removeAttribute("value");
  } else if (data.kind === "ready") {
    loading--;
    if (loading > 0) return; // another has been chosen meanwhile
    $("progress").hidden = true;
    ready = true;
    $("model-size").textContent = model.image_sizes.map(sizeText).join(", ");
    $("threads").textContent = self.crossOriginIsolated
      ? String(data.threads)
      : "1 (the host sends no COOP and COEP)";
    say("Ready.");
    if (!photo.hidden && camera === null) predict();
  } else if (data.kind === "error") {
    const which = data.id === undefined ? "The model could not be loaded" : "The model failed";
    if (data.id === undefined) loading = Math.max(0, loading - 1);
    fail(`${which}: ${data.message}`);
    if (data.id === asked) waiting?.(null);
  } else if (data.id === asked) {
    waiting?.(data);
  }
}

// Asks for the classes of a picture; a promise of the answer, null where there is none.
function ask({ data, width, height }) {
  asked++;
  waiting?.(null); // of a picture that is no longer there
  return new Promise((resolve) => {
    waiting = (answer) => {
      waiting = null;
      resolve(answer);
    };
    worker.postMessage({ kind: "run", id: asked, width, height, rgba: data.buffer }, [data.buffer]);
  });
}

async function predict() {
  forget();
  if (!ready) return; // "ready" comes back to it
  say(`Looking at ${name}.`);
  const found = await ask(photoContext.getImageData(0, 0, photo.width, photo.height));
  if (found === null) return;
  show(found);
  say(`${name}: ${describe()}. ${milliseconds(found.times.model)}.`);
}

function choose(index) {
  model = models[index];
  ready = false;
  loading++;
  asked++; // what another model answers is not asked any more
  waiting?.(null);
  hiddenClasses = new Set(model.clear);
  forget();
  const urls = { runtime: `${here}wasm/`, model: `${here}models/${model.file}` };
  worker.postMessage({ kind: "load", ...urls, sizes: model.image_sizes });
}

// What is shown ---------------------------------------------------------------------------------

function say(text) {
  $("status").className = "";
  if ($("status").textContent !== text) $("status").textContent = text;
}

function fail(text) {
  $("progress").hidden = true;
  $("status").className = "fault";
  $("status").textContent = text;
}

const milliseconds = (time) => `${Math.round(time)} ms`;
const className = (id) => model.classes[id]?.name ?? `class ${id}`;
const classColor = (id) => model.classes[id]?.color ?? [128, 128, 128];
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const sizeText = ([height, width]) => `${width} x ${height}`;
const rgb = (color) => `rgb(${color.join(" ")})`;

function forget() {
  result = null;
  overlay.hidden = true;
  $("legend").replaceChildren();
  $("nothing").hidden = false;
  $("save-mask").disabled = $("save-picture").disabled = true;
  for (const id of ["time-model", "time-all"]) $(id).textContent = "-";
  tell();
}

function show(found) {
  result = found;
  const counts = new Map();
  for (const id of found.ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  result.shares = [...counts]
    .map(([id, count]) => ({ id, share: count / found.ids.length }))
    .sort((a, b) => b.share - a.share || a.id - b.id);
  paint();
  fillLegend();
  $("time-model").textContent = milliseconds(found.times.model);
  $("time-all").textContent = milliseconds(found.times.all);
  $("model-size").textContent = sizeText(found.size); // of several the one that was taken
  $("save-mask").disabled = $("save-picture").disabled = false;
  tell();
}

function describe() {
  const top = result.shares.slice(0, 3);
  return top.map(({ id, share }) => `${className(id)} ${percent(share)}`).join(", ");
}

function paint() {
  const { ids, width, height } = result;
  overlay.width = width;
  overlay.height = height;
  const picture = overlayContext.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const words = new Map(); // of each class what its pixels are
  for (const { id } of result.shares) {
    const bytes = hiddenClasses.has(id) ? [0, 0, 0, 0] : [...classColor(id), 255];
    words.set(id, new Uint32Array(Uint8Array.from(bytes).buffer)[0]);
  }
  for (let i = 0, last = -1, word = 0; i < ids.length; i++) {
    if (ids[i] !== last) word = words.get((last = ids[i]));
    pixels[i] = word;
  }
  overlayContext.putImageData(picture, 0, 0);
  overlay.hidden = false;
}

function fillLegend() {
  const focused = document.activeElement?.dataset?.classId;
  $("nothing").hidden = true;
  $("legend").replaceChildren(
    ...result.shares.map(({ id, share }) => {
      const row = document.createElement("li");
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !hiddenClasses.has(id);
      box.dataset.classId = id;
      box.onchange = () => {
        if (box.checked) hiddenClasses.delete(id);
        else hiddenClasses.add(id);
        if (result !== null) paint();
      };
      const color = document.createElement("i");
      color.style.background = rgb(classColor(id));
      const text = document.createElement("span");
      text.className = "name";
      text.textContent = className(id);
      const part = document.createElement("span");
      part.className = "share";
      part.textContent = percent(share);
      label.append(box, color, text, part);
      row.append(label);
      return row;
    }),
  );
  // The camera's pictures come while somebody is at a box.
  if (focused !== undefined) $("legend").querySelector(`[data-class-id="${focused}"]`)?.focus();
}

// The class at the point, in words, and where it stands in the legend.
function tell() {
  let id = null;
  const known = result !== null && point !== null;
  if (known && point.x < result.width && point.y < result.height) {
    const at = point.y * result.width + point.x;
    id = result.ids[at];
    const sure = percent(Math.floor(1000 * result.scores[at]) / 1000); // 100 % means all
    $("under-text").textContent = `${className(id)}, ${sure} sure, at ${point.x}, ${point.y}`;
    $("under-color").style.background = rgb(classColor(id));
    $("cross").style.left = `${(100 * (point.x + 0.5)) / result.width}%`;
    $("cross").style.top = `${(100 * (point.y + 0.5)) / result.height}%`;
  } else {
    $("under-text").textContent = "";
  }
  $("under-color").hidden = $("cross").hidden = id === null;
  for (const box of $("legend").querySelectorAll("input")) {
    box.parentElement.classList.toggle("at", Number(box.dataset.classId) === id);
  }
}

// Pictures --------------------------------------------------------------------------------------

// Puts a picture (ImageBitmap or video) on the canvas.
function put(picture, width, height) {
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  photo.width = Math.max(1, Math.floor(width * shrink));
  photo.height = Math.max(1, Math.floor(height * shrink));
  photoContext.drawImage(picture, 0, 0, photo.width, photo.height);
  photo.hidden = false;
  $("invitation").hidden = true;
  stage.classList.add("full");
  stage.classList.toggle("small", Math.max(photo.width, photo.height) < SMALL);
  stage.style.setProperty("--aspect", photo.width / photo.height);
  const shrunk = shrink < 1 ? `, shrunk from ${width} x ${height}` : "";
  $("picture-size").textContent = `${photo.width} x ${photo.height}${shrunk}`;
}

async function openPicture(blob, title) {
  stopCamera();
  const turn = ++opened;
  let bitmap;
  try {
    // Upright, but otherwise the values of the file: as isa_tf reads it.
    bitmap = await createImageBitmap(blob, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    return fail(`${title} cannot be read as a picture by this browser.`);
  }
  if (turn === opened) put(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  if (turn !== opened) return; // another came meanwhile
  name = title.replace(/\.[^.]*$/, "") || "picture";
  point = null;
  await predict();
}

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return fail("Browsers give the camera to pages from https or localhost alone.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { facingMode: { ideal: "environment" } },
    });
  } catch (error) {
    const why = { NotAllowedError: "it was not allowed", NotFoundError: "none was found" };
    return fail(`No camera: ${why[error.name] ?? error.message}.`);
  }
  stopCamera();
  opened++;
  camera = stream;
  $("camera").textContent = "Stop the camera";
  $("camera").setAttribute("aria-pressed", "true");
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
  await video.play().catch(() => {}); // stopped before it began
  forget();
  $("under-text").ariaLive = "off"; // it would be read out with every picture
  name = "camera";
  say("The camera is on.");
  const frame = new OffscreenCanvas(1, 1);
  const context = frame.getContext("2d", { alpha: false, willReadFrequently: true });
  let before = null; // when the last picture was shown
  while (camera === stream) {
    await new Promise(requestAnimationFrame); // never while nobody looks
    const { videoWidth: width, videoHeight: height } = video;
    if (width === 0) continue;
    if (!ready) {
      put(video, width, height);
      continue;
    }
    frame.width = width;
    frame.height = height;
    context.drawImage(video, 0, 0);
    const found = await ask(context.getImageData(0, 0, width, height));
    if (found === null) continue;
    // Together, so that the colours lie on the picture that they are of.
    put(frame, width, height);
    show(found);
    const now = performance.now();
    $("rate").textContent = before === null ? "-" : (1000 / (now - before)).toFixed(1);
    before = now;
  }
  $("rate").textContent = "-";
}

function stopCamera() {
  if (camera === null) return;
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  $("under-text").ariaLive = "polite";
  $("camera").textContent = "Start the camera";
  $("camera").setAttribute("aria-pressed", "false");
  say("The camera is off.");
}

// Downloads -------------------------------------------------------------------------------------

function save(blob, file) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function saveMask() {
  const { ids, width, height } = result;
  save(await encodeIds(ids, width, height, model.classes.length > 256), `${name}_label.png`);
}

function savePicture() {
  const both = document.createElement("canvas");
  both.width = photo.width;
  both.height = photo.height;
  const context = both.getContext("2d", { alpha: false });
  context.drawImage(photo, 0, 0);
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage(overlay, 0, 0);
  const file = `${name}_overlay.png`;
  both.toBlob((blob) => save(blob, file), "image/png");
}

// What the person does --------------------------------------------------------------------------

$("open").onclick = () => $("file").click();
$("file").tabIndex = -1; // the button stands for it
$("file").onchange = () => {
  const [file] = $("file").files;
  if (file) openPicture(file, file.name);
  $("file").value = ""; // the same file can be chosen again
};
$("camera").onclick = () => (camera === null ? startCamera() : stopCamera());
$("model").onchange = () => choose($("model").value);
$("opacity").oninput = () => {
  overlay.style.opacity = $("opacity").value / 100;
  $("opacity-text").textContent = `${$("opacity").value} %`;
};
$("save-mask").onclick = saveMask;
$("save-picture").onclick = savePicture;

// A drop anywhere is for the page; elsewhere the browser would leave it.
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind !== "drop") return;
    const [file] = event.dataTransfer.files;
    if (file) openPicture(file, file.name);
    else fail("That is no file: drop a photo from a folder.");
  });
}
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) openPicture(file, file.name);
});

function pointAt(event) {
  if (photo.hidden) return;
  const box = photo.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * photo.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * photo.height);
  point = { x: clip(x, photo.width), y: clip(y, photo.height) };
  tell();
}
const clip = (value, length) => Math.min(Math.max(value, 0), length - 1);
stage.addEventListener("pointermove", pointAt);
stage.addEventListener("pointerdown", pointAt);
stage.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = way[event.key];
  if (step === undefined || result === null) return;
  event.preventDefault();
  // A step is a thousandth of the picture, one pixel of a small one.
  const unit = Math.ceil(Math.max(photo.width, photo.height) / 1000) * (event.shiftKey ? 10 : 1);
  const from = point ?? { x: photo.width >> 1, y: photo.height >> 1 };
  point = {
    x: clip(from.x + step[0] * unit, photo.width),
    y: clip(from.y + step[1] * unit, photo.height),
  };
  tell();
});

// The beginning ---------------------------------------------------------------------------------

function addExamples(files) {
  $("examples").hidden = files.length === 0;
  for (const file of files) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Example ${file}`);
    const image = document.createElement("img");
    image.src = `examples/${encodeURIComponent(file)}`;
    image.alt = "";
    image.loading = "lazy";
    button.append(image);
    button.onclick = async () => {
      const response = await fetch(image.src);
      if (response.ok) await openPicture(await response.blob(), file);
      else fail(`${file} is not there.`);
    };
    const row = document.createElement("li");
    row.append(button);
    $("examples").append(row);
  }
}

async function begin() {
  if (location.protocol === "file:") {
    throw new Error("browsers let files load nothing; any server of static files will do");
  }
  startWorker();
  const response = await fetch("models/models.json");
  if (!response.ok) throw new Error(`models/models.json is not there (${response.status})`);
  const told = await response.json();
  models = told.models;
  addExamples(told.examples);
  $("model").replaceChildren(...models.map(({ name: title }, index) => new Option(title, index)));
  $("model-field").hidden = models.length < 2;
  choose(0);
}

begin().catch((error) => fail(`The page cannot begin: ${error.message}.`));
