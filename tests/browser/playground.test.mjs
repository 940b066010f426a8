// The playground in a browser, against running servers: UNMASK_URL of the embedded model, UNMASK_KEYED_URL of the same, which
// asks for UNMASK_KEY, and UNMASK_CHAT_URL of a model with a chat template. BROWSER_MODULES is the folder that Playwright is
// installed in, CHROMIUM the browser. With SCREENSHOTS, a folder, the pictures of the README are written there. The requests
// that the page copies are run by bash with curl, python3 and this node.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer, request as forward } from "node:http";
import { createRequire } from "node:module";
import test, { after, afterEach, before, beforeEach } from "node:test";
import { promisify } from "node:util";

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
  const place = () => page.$eval("#scrub", (slider) => [slider.value, slider.getAttribute("aria-valuetext"), document.getElementById("step").textContent]);
  assert.deepEqual(await place(), ["5", "step 5 of 5", "5"]);
  await slots().first().hover();
  assert.notEqual(await shown("#detail"), "");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await shown("#detail"), "", "what a token of another step was");
  assert.deepEqual(await place(), ["4", "step 4 of 5", "4"]);
  await page.keyboard.press("Home");
  assert.deepEqual(await place(), ["0", "step 0 of 5", "0"]);
  assert.equal(await slots(".masked").count(), 5);
  assert.equal(await shown("#canvas"), TEXT.replace("{{4}}", "▒▒▒▒").replace("{{1}}", "▒"));
  await page.keyboard.press("ArrowRight");
  assert.deepEqual(await place(), ["1", "step 1 of 5", "1"]);
  assert.equal(await slots(".masked").count(), 4);
  await page.keyboard.press("End");
  assert.equal(await shown("#canvas"), last);
});

test("the same seed shows the same text, and it is what the API answers", async () => {
  await run({ text: TEXT });
  await idle();
  const body = { text: TEXT, seed: 5 };
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

test("a chat that the model cannot answer is refused in the server's words, and the page says what to choose", async () => {
  await page.check("[value=chat]");
  await run();
  await idle();
  assert.match(await shown("#error"), /^the model "[^"]+" has no chat template, so that it cannot answer messages.*choose Complete or Infill\.$/);
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

test("braces that are no gap are refused in the server's words, and shown", async () => {
  for (const text of ["a {{x}}", "é🦊 {{0}} {{1}}", "{{8} }", "{{{-1}}}", "{{1}} \\{{2}} {{"]) {
    await run({ text });
    await idle();
    const headers = { "content-type": "application/json" };
    const answer = await fetch(`${SERVER}/v1/infill`, { method: "POST", headers, body: JSON.stringify({ text }) });
    assert.equal(answer.status, 400, text);
    assert.equal(await shown("#error"), (await answer.json()).error.message, text);
    assert.equal(await page.evaluate(() => getSelection().toString()), "{{", text);
  }
});

test("a gap of more tokens than can be counted is refused in the server's words", async () => {
  const text = "The {{99999999999999999999999}}";
  await run({ text });
  await idle();
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${SERVER}/v1/infill`, { method: "POST", headers, body: JSON.stringify({ text }) });
  assert.equal(answer.status, 400);
  assert.equal(await shown("#error"), (await answer.json()).error.message);
});

test("escaped braces are text, and a gap may stand in braces", async () => {
  const text = "\\{{8}} of {{{2}}} and\\{{{{{1}}.";
  await run({ text });
  await idle();
  const body = { text, seed: 5 };
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${SERVER}/v1/infill`, { method: "POST", headers, body: JSON.stringify(body) });
  assert.equal(await shown("#canvas"), (await answer.json()).choices[0].text);
  assert.match(await shown("#canvas"), /^\{\{8\}\} of \{.+\} and\{\{\{.+\.$/s);
  assert.equal(await slots().count(), 3);
});

test("no answer is shown beside the error of a later request", async () => {
  for (const text of ["No gap at all.", "{{x}}"]) {
    await run({ text: TEXT });
    await idle();
    assert.equal(await slots().count(), 5);
    await run({ text });
    await idle();
    assert.equal(await page.isVisible("#error"), true);
    assert.deepEqual(await Promise.all(["#canvas", "#figures", "#detail"].map(shown)), ["", "", ""]);
    assert.equal(await page.isDisabled("#scrub"), true);
    assert.equal(await page.getAttribute("#scrub", "aria-valuetext"), "step 0 of 0");
  }
});

test("an error goes with the next attempt, even one that the browser stops", async () => {
  for (const attempt of [() => page.click("#run"), () => page.press("#text", "Control+Enter")]) {
    await run({ text: "No gap at all.", steps: "" });
    await page.waitForSelector("#error:not([hidden])");
    await idle();
    await page.fill("#steps", "0");
    const sent = requests.length;
    await attempt();
    assert.equal(await page.isVisible("#error"), false);
    assert.equal(requests.length, sent);
  }
});

/** A server in front of the server: `cut` ends what is streamed after its first piece, `close` both. */
async function front() {
  const state = { cut: false };
  const server = createServer((incoming, outgoing) => {
    const { method, url, headers } = incoming;
    const asked = forward(`${SERVER}${url}`, { method, headers: { ...headers, host: new URL(SERVER).host } }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      if (!state.cut) return answer.pipe(outgoing);
      answer.once("data", (piece) => outgoing.write(piece, () => setTimeout(() => outgoing.destroy(), 100)));
      outgoing.on("close", () => asked.destroy());
    });
    asked.on("error", () => outgoing.destroy());
    incoming.pipe(asked);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  state.url = `http://127.0.0.1:${server.address().port}`;
  state.close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return state;
}

test("a server that does not answer is named, before the answer and in its midst", async () => {
  const server = await front();
  await open({ url: server.url });
  await page.waitForFunction(() => document.querySelectorAll("#preset option").length > 1);
  const said = `The server does not answer at ${server.url}: is it still running?`;
  server.cut = true;
  await run({ text: "Once upon a time{{100}}" });
  await idle();
  assert.equal(await shown("#error"), said);
  await server.close();
  await run({ text: TEXT });
  await idle();
  assert.equal(await shown("#error"), said);
  assert.equal(await shown("#canvas"), "");
});

const select = (start, end) => page.$eval("#text", (field, [from, to]) => field.setSelectionRange(from, to), [start, end]);

test("a selection becomes a gap, by the button and by the key", async () => {
  await page.fill("#text", "The fox jumps over the dog.");
  await select(4, 7);
  await page.click("#gap");
  assert.equal(await page.inputValue("#text"), "The{{1}} jumps over the dog.");
  await page.keyboard.press("End");
  await page.keyboard.press("Alt+g");
  assert.equal(await page.inputValue("#text"), "The{{1}} jumps over the dog.{{4}}");
});

test("a gap takes in the space before it, and gaps whole", async () => {
  // The selection stands in brackets; | is a caret.
  for (const [before, after] of [
    ["The [old] man", "The{{1}} man"],
    ["The [old ]man", "The{{1}} man"],
    ["The[ old] man", "The{{1}} man"],
    ["The  [old]", "The {{1}}"],
    ["[The] old man", "{{1}} old man"],
    ["The\n[old] man", "The\n{{1}} man"],
    ["g[rea]t", "g{{1}}t"],
    ["The |", "The{{4}}"],
    ["The | man", "The{{4}} man"],
    ["The |man", "The{{4}} man"],
    ["The |.", "The{{4}}."],
    ["The |{{2}}", "The{{4}}{{2}}"],
    ["|The", "{{4}}The"],
    ["Th|e", "Th{{4}}e"],
    ["a[b {{4]}} cd", "a{{5}} cd"],
    ["ab {{[4}} c]d", "ab{{5}}d"],
    ["ab {[{1}} {{2}]} cd", "ab{{4}} cd"],
    ["ab [{{4}}] cd", "ab{{4}} cd"],
    ["ab {{|4}} cd", "ab {{4}}{{4}} cd"],
    ["a \\{[{8}}]", "a{{2}}"],
  ]) {
    const [start, end] = [before.search(/[[|]/), before.includes("|") ? before.indexOf("|") : before.indexOf("]") - 1];
    await page.fill("#text", before.replace(/[[|\]]/g, ""));
    await select(start, end);
    await page.press("#text", "Alt+g");
    assert.equal(await page.inputValue("#text"), after, before);
  }
});

test("no gap is made where a backslash would make it text", async () => {
  await page.fill("#text", "a \\frac b");
  await select(3, 7);
  await page.press("#text", "Alt+g");
  assert.equal(await page.inputValue("#text"), "a \\frac b");
  assert.match(await shown("#detail"), /backslash/);
  await select(2, 7);
  await page.press("#text", "Alt+g");
  assert.equal(await page.inputValue("#text"), "a{{1}} b");
});

test("Ctrl+Z takes a gap back, made by the button or by the key", async () => {
  await page.click("#text");
  await page.keyboard.press("Control+a");
  await page.keyboard.type("The old man");
  for (const make of [() => page.click("#gap"), () => page.press("#text", "Alt+g")]) {
    await select(4, 7);
    await make();
    assert.equal(await page.inputValue("#text"), "The{{1}} man");
    await page.keyboard.press("Control+z");
    assert.equal(await page.inputValue("#text"), "The old man");
  }
  await page.keyboard.press("Control+Shift+z");
  assert.equal(await page.inputValue("#text"), "The{{1}} man");
});

test("what is said of gaps is said where there are gaps", async () => {
  const hint = page.getByText("Alt+G");
  assert.equal(await hint.isVisible(), true);
  for (const mode of ["complete", "chat"]) {
    await page.check(`[value=${mode}]`);
    assert.equal(await hint.isVisible(), false, mode);
    assert.equal(await page.getByText("Ctrl+Enter").isVisible(), true, mode);
  }
  await page.check("[value=infill]");
  assert.equal(await hint.isVisible(), true);
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

const SNIPPETS = {
  curl: ["bash", "-c"],
  python: ["python3", "-c"],
  javascript: [process.execPath, "--input-type=module", "--eval"],
};

/** What the page copies, by kind. */
async function snippet(kind) {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.evaluate(() => navigator.clipboard.writeText(""));
  await page.$eval("#detail", (detail) => (detail.textContent = ""));
  await page.click(`[data-copy=${kind}]`);
  await page.waitForFunction(() => document.getElementById("detail").textContent === "Copied.");
  return page.evaluate(() => navigator.clipboard.readText());
}

/** Runs a copied request as a person would; what it prints. */
async function execute(kind, code, variables = {}) {
  const [program, ...options] = SNIPPETS[kind];
  const env = { ...process.env, NO_PROXY: "*", no_proxy: "*", PYTHONIOENCODING: "utf-8", ...variables };
  const { stdout } = await promisify(execFile)(program, [...options, code], { env });
  return stdout;
}

const NASTY = `It's "q" \`id\` ''' """ \\n \\ \\' $(id) $HOME \${x} %s {0} !x true null <b> é 🦊 ” \t|\nline{{2}} two\\{{3}}.`;

test("a copied request runs, and its answer is the canvas that the page shows", async () => {
  await run({ text: NASTY, seed: "" });
  await idle();
  const canvas = await shown("#canvas");
  // The snippets print the answer as their language writes it: have them write its text as JSON.
  const answered = {
    curl: async (code) => JSON.parse(await execute("curl", code)).choices[0].text,
    python: async (code) => JSON.parse(await execute("python", code.replace(/print\((.*)\)$/, 'print(json.dumps($1["choices"][0]["text"]))'))),
    javascript: async (code) => JSON.parse(await execute("javascript", code.replace(/console\.log\((.*)\);$/, "console.log(JSON.stringify(($1).choices[0].text));"))),
  };
  for (const kind of Object.keys(SNIPPETS)) {
    const code = await snippet(kind);
    assert.ok(!code.includes("stream"), code);
    assert.equal(await answered[kind](code), canvas, kind);
  }
});

test("a copied request has the seed of the canvas, as long as it is of the same request", async () => {
  await run({ text: "It was a{{2}} day.", seed: "" });
  await idle();
  const seed = (await shown("#figures")).match(/Seed(\d+)/)[1];
  assert.ok((await snippet("curl")).includes(`"seed": ${seed}`));
  assert.ok(!(await snippet("curl")).includes("temperature"), "a field that is left empty is the plan's");
  await page.fill("#temperature", "0.9");
  assert.ok((await snippet("curl")).includes('"temperature": 0.9'));
  assert.ok(!(await snippet("curl")).includes("seed"));
  await page.fill("#temperature", "");
  assert.ok((await snippet("curl")).includes(`"seed": ${seed}`));
  await page.check("[value=complete]");
  assert.ok(!(await snippet("curl")).includes("seed"));
  await run({ text: "Once upon a time", max_tokens: "6", seed: "" });
  await idle();
  const canvas = await shown("#canvas");
  const answer = JSON.parse(await execute("curl", await snippet("curl")));
  assert.equal(`Once upon a time${answer.choices[0].text}`, canvas);
});

test("a copied request takes the key from the environment, and does not hold it", async () => {
  await open({ url: process.env.UNMASK_KEYED_URL });
  await page.fill("#key", process.env.UNMASK_KEY);
  await run({ text: "It's{{2}}." });
  await idle();
  for (const kind of Object.keys(SNIPPETS)) {
    const code = await snippet(kind);
    assert.ok(code.includes("UNMASK_API_KEY") && !code.includes(process.env.UNMASK_KEY), code);
    assert.match(await execute(kind, code, { UNMASK_API_KEY: process.env.UNMASK_KEY }), /It's/);
  }
});

test("braces that are no gap are not copied", async () => {
  await page.fill("#text", "a {{x}}");
  await page.click("[data-copy=curl]");
  assert.match(await shown("#error"), /^text: at byte 2: /);
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

test("on a narrow screen a run brings its canvas or its error into view", async () => {
  await open({ viewport: { width: 375, height: 740 }, isMobile: true, hasTouch: true });
  const inView = (selector) =>
    page.$eval(selector, (element) => {
      const { top, bottom } = element.getBoundingClientRect();
      return top >= 0 && bottom <= innerHeight;
    });
  assert.equal(await inView("#canvas"), false);
  await run({ text: TEXT });
  await idle();
  assert.ok((await inView("#canvas")) && (await inView("#scrub")));
  for (const text of ["No gap at all.", "{{x}}"]) {
    await run({ text });
    await idle();
    assert.ok(await inView("#error"), text);
  }
});

test("what is touched is 44 pixels high on a narrow screen, and every name of a preset fits at every width", async () => {
  for (const width of [320, 375, 800, 1100]) {
    await page.setViewportSize({ width, height: 740 });
    const found = await page.evaluate(() => {
      const low = [...document.querySelectorAll("button, input:not([type=radio]), select, .modes label, nav a")].filter(
        (element) => element.checkVisibility() && element.getBoundingClientRect().height < 44,
      );
      const select = document.getElementById("preset");
      const style = getComputedStyle(select);
      const pen = document.createElement("canvas").getContext("2d");
      pen.font = style.font;
      // The arrow takes about as much as the text is high.
      const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - parseFloat(style.fontSize);
      const cut = [...select.options].filter((option) => pen.measureText(option.text).width > room);
      return { low: low.map((element) => element.outerHTML), cut: cut.map((option) => option.text) };
    });
    assert.deepEqual(found.cut, [], `at ${width}`);
    if (width <= 800) assert.deepEqual(found.low, [], `at ${width}`);
  }
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
    slider.value = 3;
    slider.dispatchEvent(new Event("input"));
  });
  const described = slots(":not(.masked)").first();
  await described.hover();
  await described.focus();
  await page.screenshot({ path: `${process.env.SCREENSHOTS}/playground.png` });
});
