// Opens the page in Chromium and does with it what a person does: `node drive.mjs PLAN.json`.
//
// The plan is {browser, url, output, steps, camera, width, height, dark}; each step is
// [what, ...arguments] of those below. What is found is printed as JSON: {answers, console,
// requests, paint}. Files go into the folder `output`.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";
import { chromium } from "playwright-core";

const plan = JSON.parse(readFileSync(process.argv[2], "utf8"));
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const args = ["--no-sandbox"]; // of a container's root
if (plan.camera) {
  args.push("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream");
}
const browser = await chromium.launch({ executablePath: plan.browser, args });
const context = await browser.newContext({
  viewport: { width: plan.width ?? 1280, height: plan.height ?? 900 },
  colorScheme: plan.dark ? "dark" : "light",
  acceptDownloads: true,
});
const page = await context.newPage();
page.setDefaultTimeout(60000);
const told = { answers: [], console: [], requests: [], paint: null };
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) {
    told.console.push(`${message.type()}: ${message.text()}`);
  }
});
page.on("pageerror", (error) => told.console.push(`pageerror: ${error.message}`));
context.on("request", (request) => told.requests.push(`${request.method()} ${request.url()}`));

// A status that begins so; a fault is told at once.
const status = async (start) => {
  await page.waitForFunction(
    (start) => {
      const status = document.getElementById("status");
      return status.textContent.startsWith(start) || status.className === "fault";
    },
    start,
    { polling: 50 },
  );
  return page.locator("#status").textContent();
};
const download = async (selector, file) => {
  const [got] = await Promise.all([page.waitForEvent("download"), page.click(selector)]);
  await got.saveAs(join(plan.output, file));
  return got.suggestedFilename();
};

const steps = {
  status,
  text: (selector) => page.locator(selector).innerText(),
  texts: (selector) => page.locator(selector).allInnerTexts(),
  click: (selector) => page.click(selector),
  // The mouse to a place of the picture, in shares of its width and height.
  point: async (x, y) => {
    await page.locator("#stage").scrollIntoViewIfNeeded();
    const box = await page.locator("#photo").boundingBox();
    await page.mouse.move(box.x + x * box.width, box.y + y * box.height);
  },
  press: (...keys) => keys.reduce((last, key) => last.then(() => page.keyboard.press(key)), Promise.resolve()),
  select: (selector, label) => page.selectOption(selector, { label }),
  evaluate: (code) => page.evaluate(code),
  // Asked from here: the page's policy lets it evaluate nothing.
  wait: async (code) => {
    for (let turn = 0; !(await page.evaluate(code)); turn++) {
      if (turn === 600) throw new Error(`never true: ${code}`);
      await new Promise((then) => setTimeout(then, 100));
    }
  },
  choose: (path) => page.setInputFiles("#file", path),
  download,
  requests: () => told.requests.length,
  worker: (code) => page.workers()[0].evaluate(code), // the page's own; threads come after it
  // What the canvas shows, to a file.
  frame: async (file) => {
    const url = await page.evaluate(() => document.getElementById("photo").toDataURL());
    writeFileSync(join(plan.output, file), Buffer.from(url.split(",")[1], "base64"));
  },
  dark: (dark) => page.emulateMedia({ colorScheme: dark ? "dark" : "light" }),
  resize: (width, height) => page.setViewportSize({ width, height }),
  screenshot: (file) => page.screenshot({ path: join(plan.output, file), fullPage: true }).then(() => null),
  // A file from a folder, let go over the picture.
  drop: async (path, type) => {
    const data = await page.evaluateHandle(
      async ([text, name, type]) => {
        const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type }));
        return transfer;
      },
      [readFileSync(path).toString("base64"), basename(path), type ?? "image/png"],
    );
    await page.dispatchEvent("#stage", "drop", { dataTransfer: data });
  },
  // What axe-core finds wrong: contrast, labels, roles.
  axe: async () => {
    // Past the page's policy, which lets in no script of another's.
    await page.evaluate(readFileSync(axe, "utf8"));
    const found = await page.evaluate(() => window.axe.run());
    return found.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html).join(" | ")}`);
  },
};

try {
  await page.goto(plan.url);
  for (const [what, ...rest] of plan.steps) told.answers.push((await steps[what](...rest)) ?? null);
  told.paint = await page.evaluate(
    () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
  );
  told.isolated = await page.evaluate(() => self.crossOriginIsolated);
  told.threads = await page.locator("#threads").innerText();
} catch (error) {
  told.failed = String(error);
  told.status = await page.locator("#status").textContent().catch(() => null);
} finally {
  await browser.close();
}
console.log(JSON.stringify(told));
