// The playground in a browser, against running servers: UNMASK_URL of the embedded model, UNMASK_KEYED_URL of the same, which
// asks for UNMASK_KEY, and UNMASK_CHAT_URL of a model with a chat template. BROWSER_MODULES is the folder that Playwright is installed in, CHROMIUM the browser. With SCREENSHOTS, a
// folder, the pictures of the README are written there.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import test, { after, afterEach, before, beforeEach } from "node:test";

const require = createRequire(`${process.env.BROWSER_MODULES}/`);
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const SERVER = process.env.UNMASK_URL;
const TEXT = "The old gentleman took out a pair of{{4}} and fitted them on his{{1}}.";
const TIMEOUT = 60_000;

let browser;
let page;
/** What the page asked for, and what went wrong in it. */
let requests;
let faults;

before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"],
  });
});
after(() => browser?.close());

async function open({ url = SERVER, ...options } = {}) {
  await page?.context().close();
  requests = [];
  faults = [];
  const context = await browser.newContext({ viewport: { width: 1100, height: 640 }, ...options });
  page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT);
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => faults.push(`exception: ${error.message}`));
  page.on("console", (message) => {
    // A refused request is an answer that the page shows, not a fault of the page.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) faults.push(message.text());
  });
  await page.addInitScript(() => {
    window.violations = [];
    window.steps = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
    document.addEventListener("DOMContentLoaded", () => {
      const step = document.getElementById("step");
      new MutationObserver(() => window.steps.push(Number(step.textContent))).observe(step, { childList: true });
    });
  });
  await page.goto(url);
}

beforeEach(async () => {
  await open();
  await page.waitForFunction(() => document.querySelectorAll("#preset option").length > 1);
});

/** Every test ends with a page that broke no rule of its policy and spoke to its own server alone. */
afterEach(async () => {
  assert.deepEqual(await page.evaluate(() => window.violations), [], "violations of the content security policy");
  assert.deepEqual(faults, []);
  const origins = new Set(requests.map((url) => new URL(url).origin));
  assert.deepEqual([...origins], [new URL(page.url()).origin]);
});

const idle = () => page.waitForFunction(() => !document.getElementById("run").disabled);
const shown = (selector) => page.textContent(selector);
const slots = (extra = "") => page.locator(`#canvas .slot${extra}`);

async function run({ text, seed = "5", ...fields } = {}) {
  if (text !== undefined) await page.fill("#text", text);
  await page.fill("#seed", seed);
  for (const [id, value] of Object.entries(fields)) await page.fill(`#${id}`, value);
  await page.click("#run");
}

/** A metric of the server without labels; 0 before it has a value. */
async function metric(name) {
  const text = await (await fetch(`${SERVER}/metrics`)).text();
  return Number(text.match(new RegExp(`^${name} (.*)$`, "m"))?.[1] ?? 0);
}

async function until(condition, what) {
  for (let i = 0; i < 300; i++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(what);
}

test("gaps are filled frame by frame, and the text around them stays", async () => {
  await run({ text: TEXT });
  await idle();
  assert.equal(await slots().count(), 5);
  assert.equal(await slots(".masked").count(), 0);
  const canvas = await shown("#canvas");
  assert.ok(canvas.startsWith("The old gentleman took out a pair of") && canvas.includes(" and fitted them on his"), canvas);
  const steps = await page.evaluate(() => window.steps);
  assert.ok(new Set(steps).size > 2, `steps shown: ${steps}`);
  assert.deepEqual(steps, [...steps].sort((a, b) => a - b));
  assert.equal(await shown("#step"), "5");
  assert.match(await shown("#figures"), /Steps5Network evaluations5/);
});

test("a slot's colour is its probability, and it says how it came to be", async () => {
  await run({ text: TEXT });
  await idle();
  const colours = await slots().evaluateAll((elements) =>
    elements.map((element) => [Number(element.style.getPropertyValue("--p")), getComputedStyle(element).backgroundColor]),
  );
  assert.ok(colours.every(([probability]) => probability > 0 && probability <= 1), `${colours}`);
  assert.equal(new Set(colours.map(([, colour]) => colour)).size, colours.length);
  await slots().first().hover();
  assert.match(await shown("#detail"), /^" \w+" \(token \d+\) · step \d · probability [\d.]+ % · else "/);
});

test("the slider goes back through the steps", async () => {
  await run({ text: TEXT });
  await idle();
  const last = await shown("#canvas");
  await page.focus("#scrub");
  await page.keyboard.press("Home");
  assert.ok((await slots(".masked").count()) >= 4);
  const first = Number(await shown("#step"));
  await page.keyboard.press("ArrowRight");
  assert.ok(Number(await shown("#step")) > first);
  await page.keyboard.press("End");
  assert.equal(await shown("#canvas"), last);
});

test("the same seed shows the same text, and it is what the API answers", async () => {
  await run({ text: TEXT });
  await idle();
  const body = { text: TEXT, seed: 5, temperature: 0.7 };
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${SERVER}/v1/infill`, { method: "POST", headers, body: JSON.stringify(body) });
  assert.equal(await shown("#canvas"), (await answer.json()).choices[0].text);
});

test("a completion goes on from its text", async () => {
  await page.check("[value=complete]");
  await run({ text: "Once upon a time there was a little", max_tokens: "12" });
  await idle();
  assert.equal(await slots().count(), 12);
  assert.ok((await shown("#canvas")).startsWith("Once upon a time there was a little"));
  assert.match(await shown("#figures"), /Tokens a second\d+/);
});

test("a preset is described and sent", async () => {
  await page.selectOption("#preset", "fast-dllm");
  assert.match(await shown("#preset-help"), /Fast-dLLM/);
  const sent = page.waitForRequest("**/v1/infill");
  await run({ text: TEXT });
  assert.deepEqual((await sent).postDataJSON().diffusion, { preset: "fast-dllm" });
  await idle();
  assert.equal(await slots(".masked").count(), 0);
});

test("a chat is answered where the model has a template", async () => {
  await open({ url: process.env.UNMASK_CHAT_URL });
  await page.check("[value=chat]");
  await run({ text: "Hello", max_tokens: "8" });
  await idle();
  assert.equal(await page.isVisible("#error"), false, await shown("#error"));
  assert.equal(await slots().count(), 8);
});

test("a chat that the model cannot answer is refused in the server's words", async () => {
  await page.check("[value=chat]");
  await run();
  await idle();
  assert.match(await shown("#error"), /^the model "[^"]+" has no chat template, so that it cannot answer messages/);
  assert.equal(await page.getByRole("alert").isVisible(), true);
});

test("an error is shown in the server's words and goes with the next run", async () => {
  await run({ text: "No gap at all." });
  await idle();
  const body = JSON.stringify({ segments: ["No gap at all."] });
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${SERVER}/v1/infill`, { method: "POST", headers, body });
  assert.equal(answer.status, 400);
  assert.equal(await shown("#error"), (await answer.json()).error.message);
  await run({ text: TEXT });
  await idle();
  assert.equal(await page.isVisible("#error"), false);
});

test("stopping ends the denoising on the server", async () => {
  const before = await metric("unmask_committed_slots_total");
  await run({ text: "Once upon a time{{200}}" });
  await page.waitForFunction(() => window.steps.some((step) => step > 1));
  await page.click("#stop");
  await idle();
  assert.equal(await shown("#detail"), "Stopped.");
  assert.ok((await slots(".masked").count()) > 0);
  await until(async () => (await metric("unmask_running_sequences")) === 0, "the sequence still runs");
  await until(async () => (await metric("unmask_http_requests_in_flight")) <= 1, "the request is still being answered");
  const committed = (await metric("unmask_committed_slots_total")) - before;
  assert.ok(committed < 200, `${committed} slots were committed`);
});

test("a selection becomes a gap, by the button and by the key", async () => {
  await page.fill("#text", "The fox jumps over the dog.");
  const select = (start, end) => page.$eval("#text", (field, [from, to]) => field.setSelectionRange(from, to), [start, end]);
  await select(4, 7);
  await page.click("#gap");
  assert.equal(await page.inputValue("#text"), "The {{1}} jumps over the dog.");
  await page.keyboard.press("End");
  await page.keyboard.press("Alt+g");
  assert.equal(await page.inputValue("#text"), "The {{1}} jumps over the dog.{{4}}");
});

test("everything can be done from the keyboard", async () => {
  await page.evaluate(() => document.activeElement.blur());
  const seen = [];
  for (let i = 0; i < 30 && !seen.includes("javascript"); i++) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => {
      const { id, dataset, value, tagName } = document.activeElement;
      return id || dataset.copy || (tagName === "A" ? "link" : value);
    });
    seen.push(name);
    if (name === "text") {
      await page.keyboard.press("Control+a");
      await page.keyboard.type("It was a");
      await page.keyboard.press("Alt+g");
      await page.keyboard.type(" day.");
    }
  }
  const order = ["infill", "text", "gap", "run", "preset", "steps", "temperature", "seed", "curl", "python", "javascript"];
  assert.deepEqual(seen.filter((name) => order.includes(name)), order);
  await page.focus("#text");
  await page.keyboard.press("Control+Enter");
  await page.waitForFunction(() => window.steps.includes(4));
  await idle();
  await page.focus("#scrub");
  await page.keyboard.press("Shift+Tab");
  assert.match(await shown("#detail"), /probability/);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid");
});

test("a request is copied as curl, Python and JavaScript", async () => {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.fill("#text", "It's{{2}}.");
  for (const [kind, begin] of [["curl", `curl -s ${SERVER}/v1/infill`], ["python", "import json"], ["javascript", "const response"]]) {
    await page.click(`[data-copy=${kind}]`);
    await page.waitForFunction(() => document.getElementById("detail").textContent === "Copied.");
    const snippet = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(snippet.startsWith(begin), snippet);
    assert.ok(snippet.includes('"tokens": 2') && !snippet.includes('"stream"'), snippet);
  }
});

test("nothing lies outside a narrow screen", async () => {
  await open({ viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true });
  await run({ text: `${"W".repeat(120)}{{3}} and so on.` });
  await idle();
  assert.equal(await slots().count(), 3);
  const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(content <= screen, `${content} > ${screen}`);
  await slots().first().tap();
  assert.match(await shown("#detail"), /probability/);
});

for (const colorScheme of ["light", "dark"]) {
  test(`the page is ${colorScheme} where that is asked for, and can be read`, async () => {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const brightness = Math.max(...ground.match(/\d+/g).map(Number));
    assert.equal(brightness > 127, colorScheme === "light", ground);
    await run({ text: TEXT });
    await idle();
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }));
    const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
    assert.deepEqual(found, []);
  });
}

test("a key that the server asks for is asked of the person", async () => {
  await open({ url: process.env.UNMASK_KEYED_URL });
  await page.waitForSelector("#error:not([hidden])");
  assert.match(await shown("#error"), /key/i);
  await page.fill("#key", process.env.UNMASK_KEY);
  await page.press("#key", "Tab");
  await page.waitForFunction(() => document.getElementById("model").textContent.includes("parameters"));
  await run({ text: TEXT });
  await idle();
  assert.equal(await slots(".masked").count(), 0);
  assert.equal(await page.isVisible("#error"), false);
});

test("the README's picture", { skip: !process.env.SCREENSHOTS }, async () => {
  await page.emulateMedia({ reducedMotion: "reduce" });
  await run({ text: TEXT });
  await idle();
  await page.$eval("#scrub", (slider) => {
    slider.value = 2;
    slider.dispatchEvent(new Event("input"));
  });
  await slots(":not(.masked)").first().hover();
  await page.screenshot({ path: `${process.env.SCREENSHOTS}/playground.png` });
});
