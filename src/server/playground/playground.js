"use strict";
// The page speaks to this server alone, through the same API as every other client.

const $ = (id) => document.getElementById(id);
const EXAMPLES = {
  infill: "The old gentleman took out a pair of{{4}} and fitted them on his{{1}}.",
  complete: "Once upon a time there was a little",
  chat: "What is a masked diffusion language model?",
};
const LABELS = {
  infill: "Text with gaps: {{4}} is a gap of 4 tokens",
  complete: "Text to be continued",
  chat: "Message",
};
const texts = { ...EXAMPLES };
const state = { mode: "infill", presets: [], frames: [], fixed: [], abort: null };

// ---- The request ----

const gapPattern = /\{\{(\d+)\}\}/;

/** A text with gaps, in the pieces that the API takes: no brace of the text is read as a gap by mistake. */
function segmentsOf(text) {
  const pieces = text.split(gapPattern);
  return pieces
    .map((piece, i) => (i % 2 ? { gap: { tokens: Number(piece) } } : piece))
    .filter((piece) => piece !== "");
}

function request() {
  const diffusion = {};
  const body = {};
  const number = (id, into) => {
    if ($(id).value !== "") into[id] = Number($(id).value);
  };
  if ($("preset").value) diffusion.preset = $("preset").value;
  number("steps", diffusion);
  number("block_length", diffusion);
  number("temperature", body);
  number("top_p", body);
  number("seed", body);
  if (Object.keys(diffusion).length) body.diffusion = diffusion;
  const text = $("text").value;
  switch (state.mode) {
    case "infill":
      return ["/v1/infill", { segments: segmentsOf(text), ...body, logprobs: true, top_logprobs: 5 }];
    case "complete":
      number("max_tokens", body);
      return ["/v1/completions", { prompt: text, ...body }];
    default:
      number("max_tokens", body);
      return ["/v1/chat/completions", { messages: [{ role: "user", content: text }], ...body }];
  }
}

/** An infill's stream ends with its answer, which has the usage; of the others it is asked for. */
function streamed(body) {
  const usage = state.mode === "infill" ? {} : { include_usage: true };
  return { ...body, stream: true, stream_options: { diffusion: "frames", ...usage } };
}

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

/** The `data` of each server-sent event of an answer. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

// ---- Running ----

async function run() {
  const [path, body] = request();
  state.abort?.abort();
  const abort = new AbortController();
  state.abort = abort;
  state.frames = [];
  state.fixed = fixedTexts();
  showError("");
  $("figures").replaceChildren();
  $("detail").textContent = "";
  busy(true);
  const begun = performance.now();
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: headers(),
      body: JSON.stringify(streamed(body)),
      signal: abort.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let text = "";
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.object === "diffusion.frame") addFrame(event);
      else text += finalText(event, text);
      if (event.diffusion) showFigures(event, performance.now() - begun);
    }
  } catch (error) {
    if (error.name === "AbortError") $("detail").textContent = "Stopped.";
    else showError(error.message);
  } finally {
    if (state.abort === abort) busy(false);
  }
}

/** Takes in what is final: the text of a completion so far, or an infill's answer. */
function finalText(event, before) {
  const choice = event.choices?.[0];
  if (!choice) return "";
  if (event.object === "infill") {
    addFrame({ step: event.diffusion.steps, gaps: choice.gaps.map((gap) => ({ slots: gap.provenance.map(committed) })) });
    return choice.text;
  }
  const piece = choice.text ?? choice.delta?.content ?? "";
  // A server may stream text without frames of the canvas.
  if (piece && !state.frames.length) {
    $("canvas").textContent = state.fixed[0] + before + piece;
  }
  return piece;
}

function committed(token) {
  return { state: "committed", ...token, alternatives: token.top_logprobs };
}

/** The texts around the gaps. */
function fixedTexts() {
  const text = $("text").value;
  if (state.mode === "complete") return [text, ""];
  if (state.mode === "chat") return ["", ""];
  return text.split(gapPattern).filter((_, i) => i % 2 === 0);
}

function busy(running) {
  $("run").disabled = running;
  $("stop").disabled = !running;
  $("scrub").disabled = running || state.frames.length < 2;
}

function showError(message) {
  $("error").hidden = !message;
  $("error").textContent = message;
}

// ---- The canvas ----

function addFrame(frame) {
  state.frames.push(frame);
  const last = state.frames.length - 1;
  $("scrub").max = last;
  $("scrub").value = last;
  showFrame(last);
}

function showFrame(index) {
  const frame = state.frames[index];
  if (!frame) return;
  $("step").textContent = frame.step;
  const canvas = $("canvas");
  canvas.replaceChildren();
  frame.gaps.forEach((gap, i) => {
    canvas.append(state.fixed[i] ?? "");
    for (const slot of gap.slots) canvas.append(slotElement(slot, frame.step));
  });
  canvas.append(state.fixed[frame.gaps.length] ?? "");
}

function slotElement(slot, step) {
  const element = document.createElement("span");
  if (slot.state === "masked") {
    element.className = "slot masked";
    element.textContent = "▒";
    return element;
  }
  element.className = slot.step === step ? "slot new" : "slot";
  element.textContent = slot.text || "∅";
  element.style.setProperty("--p", slot.probability ?? 0.5);
  element.tabIndex = 0;
  const detail = describe(slot);
  element.setAttribute("aria-label", detail);
  for (const event of ["mouseenter", "focus"]) {
    element.addEventListener(event, () => ($("detail").textContent = detail));
  }
  return element;
}

function describe(slot) {
  const percent = (p) => `${(100 * p).toFixed(1)} %`;
  const parts = [`${JSON.stringify(slot.text)} (token ${slot.token})`, `step ${slot.step}`];
  if (slot.probability !== undefined) parts.push(`probability ${percent(slot.probability)}`);
  if (slot.remasked) parts.push(`masked again ${slot.remasked} times`);
  if (slot.edited) parts.push(`edited ${slot.edited} times`);
  const others = (slot.alternatives ?? []).filter((other) => other.token !== slot.token);
  if (others.length) {
    const list = others.map((other) => `${JSON.stringify(other.text ?? other.token)} ${percent(Math.exp(other.logprob))}`);
    parts.push(`else ${list.join(", ")}`);
  }
  return parts.join(" · ");
}

function showFigures(event, milliseconds) {
  const { diffusion, usage } = event;
  const tokens = usage?.completion_tokens;
  const figures = {
    Steps: diffusion.steps,
    "Network evaluations": diffusion.nfe,
    "Tokens a forward": diffusion.tokens_per_forward?.toFixed(2),
    "Tokens a second": tokens && ((1000 * tokens) / milliseconds).toFixed(0),
    Milliseconds: milliseconds.toFixed(0),
    Cache: diffusion.cache,
    Seed: diffusion.seed,
  };
  const entries = Object.entries(figures).filter(([, value]) => value !== undefined);
  $("figures").replaceChildren(
    ...entries.map(([name, value]) => {
      const entry = document.createElement("div");
      entry.append(make("dt", name), make("dd", String(value)));
      return entry;
    }),
  );
}

function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

// ---- The form ----

function setMode(mode) {
  texts[state.mode] = $("text").value;
  state.mode = mode;
  $("text").value = texts[mode];
  $("text-label").textContent = LABELS[mode];
  $("gap").disabled = mode !== "infill";
  document.querySelector(".of-gap").hidden = mode === "infill";
}

/** Makes the selection a gap of about as many tokens, or inserts one of four. */
function insertGap() {
  if (state.mode !== "infill") return;
  const field = $("text");
  const { selectionStart: start, selectionEnd: end } = field;
  const tokens = end > start ? Math.max(1, Math.round((end - start) / 4)) : 4;
  field.setRangeText(`{{${tokens}}}`, start, end, "end");
  field.focus();
}

async function loadModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  const model = answer.data[0];
  $("model").textContent = `${model.id} · ${model.family} · ${(model.parameters / 1e6).toFixed(1)} M parameters · at most ${model.context_length} tokens`;
  state.presets = model.presets;
  const options = [["", "the model's default"], ...model.presets.map(({ name }) => [name, name])];
  $("preset").replaceChildren(
    ...options.map(([value, name]) => {
      const option = make("option", name);
      option.value = value;
      return option;
    }),
  );
  if (model.infill !== "bidirectional") document.querySelector("[value=complete]").click();
}

// ---- Snippets ----

const snippets = {
  curl: (url, body) => {
    const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
    return `curl -s ${url} -H 'content-type: application/json' -d '${quoted}'`;
  },
  python: (url, body) =>
    `import json, urllib.request\n\nbody = json.loads(r'''${JSON.stringify(body, null, 2)}''')\n` +
    `request = urllib.request.Request(${JSON.stringify(url)}, json.dumps(body).encode(), {"content-type": "application/json"})\n` +
    `print(json.load(urllib.request.urlopen(request)))`,
  javascript: (url, body) =>
    `const response = await fetch(${JSON.stringify(url)}, {\n  method: "POST",\n  headers: { "content-type": "application/json" },\n` +
    `  body: JSON.stringify(${JSON.stringify(body, null, 2)}),\n});\nconsole.log(await response.json());`,
};

async function copy(kind) {
  const [path, body] = request();
  const snippet = snippets[kind](location.origin + path, body);
  try {
    await navigator.clipboard.writeText(snippet);
    $("detail").textContent = "Copied.";
  } catch {
    // Without the right to the clipboard, show what would be in it.
    $("canvas").textContent = snippet;
  }
}

// ---- Events ----

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", () => state.abort?.abort());
$("gap").addEventListener("click", insertGap);
$("scrub").addEventListener("input", () => showFrame(Number($("scrub").value)));
$("key").addEventListener("change", () => loadModel().catch((error) => showError(error.message)));
$("preset").addEventListener("change", () => {
  const preset = state.presets.find(({ name }) => name === $("preset").value);
  $("preset-help").textContent = preset?.description ?? "";
});
$("text").addEventListener("keydown", (event) => {
  if (event.altKey && event.code === "KeyG") {
    event.preventDefault();
    insertGap();
  } else if (event.ctrlKey && event.key === "Enter") {
    run();
  }
});
for (const radio of document.querySelectorAll("[name=mode]")) {
  radio.addEventListener("change", () => setMode(radio.value));
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button.dataset.copy));
}
$("text").value = texts.infill;
document.querySelector(".of-gap").hidden = true;
loadModel().catch((error) => showError(error.message));
