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
/** `answered` is the request whose answer is shown, without its seed, and the seed that the server took. */
const state = { mode: "infill", presets: [], frames: [], segments: [], answered: null, abort: null };

// ---- The request ----

class GapError extends Error {
  /** `at` is where the braces stand, in the text's UTF-16 units; the message counts bytes, as the server's does. */
  constructor(text, at) {
    const bytes = new TextEncoder().encode(text.slice(0, at)).length;
    super(`text: at byte ${bytes}: {{ must be followed by a number of tokens, at least 1, and }}, such as {{8}}; write \\{{ for literal braces`);
    this.at = at;
  }
}

/**
 * The marks of a text, by the server's grammar: `{{8}}` is a gap of 8 tokens, `\{{` two literal braces, and other double braces
 * are a fault. Of more than two braces in a row the last two open the gap.
 */
function* marks(text) {
  let at = 0;
  for (;;) {
    let open = text.indexOf("{{", at);
    if (open < 0) return;
    if (open > at && text[open - 1] === "\\") {
      at = open + 2;
      yield { start: open - 1, end: at, literal: "{{" };
      continue;
    }
    while (text[open + 2] === "{") open++;
    const [mark, digits] = /^\{\{(\d+)\}\}/.exec(text.slice(open)) ?? ["{{", "0"];
    const tokens = Number(digits);
    const gap = tokens > 0;
    at = open + (gap ? mark.length : 2);
    yield gap ? { start: open, end: at, tokens } : { start: open, end: at, fault: true };
  }
}

/** A text with gaps, in the pieces that the API takes. */
function segmentsOf(text) {
  const pieces = [];
  let literal = "";
  let at = 0;
  for (const mark of marks(text)) {
    if (mark.fault) throw new GapError(text, mark.start);
    literal += text.slice(at, mark.start) + (mark.literal ?? "");
    at = mark.end;
    if (mark.tokens) {
      pieces.push(literal, { gap: { tokens: mark.tokens } });
      literal = "";
    }
  }
  return [...pieces, literal + text.slice(at)].filter((piece) => piece !== "");
}

/** A text with gaps as a request has it. A number that cannot be sent as one is the server's to refuse, in the text. */
function gapsOf(text) {
  const segments = segmentsOf(text);
  const isSent = segments.every(({ gap }) => !gap || Number.isSafeInteger(gap.tokens));
  return isSent ? { segments } : { text };
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
      return ["/v1/infill", { ...gapsOf(text), ...body, logprobs: true, top_logprobs: 5 }];
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

/** What the server sends, or an error that says that it sends nothing. */
async function sent(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`The server does not answer at ${location.origin}: is it still running?`);
  }
}

/** Why a request was refused, in the server's words. */
async function refusal(response) {
  const error = (await response.json().catch(() => null))?.error;
  if (!error) return new Error(`The answer has the status ${response.status}, and no reason.`);
  const hint = error.code === "no_chat_template" ? ". In this page, choose Complete or Infill." : "";
  return new Error(error.message + hint);
}

/** The `data` of each server-sent event of an answer. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await sent(reader.read());
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
  state.abort?.abort();
  const abort = new AbortController();
  state.abort = abort;
  clearAnswer();
  busy(true);
  const begun = performance.now();
  try {
    const [path, body] = request();
    state.segments = segmentsShown(body);
    const response = await sent(
      fetch(path, {
        method: "POST",
        headers: headers(),
        body: JSON.stringify(streamed(body)),
        signal: abort.signal,
      }),
    );
    if (!response.ok) throw await refusal(response);
    let text = "";
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.object === "diffusion.frame") addFrame(event);
      else text += finalText(event, text);
      if (event.diffusion) {
        showFigures(event, performance.now() - begun);
        state.answered = { request: JSON.stringify([path, body]), seed: event.diffusion.seed };
      }
    }
  } catch (error) {
    // What a run that a later one has taken the place of ends with is nobody's concern.
    if (state.abort !== abort) return;
    if (error.name === "AbortError") $("detail").textContent = "Stopped.";
    else showError(error);
  } finally {
    if (state.abort === abort) busy(false);
  }
}

/** No answer is shown beside a request that is not its own. */
function clearAnswer() {
  state.frames = [];
  state.answered = null;
  hideError();
  $("canvas").replaceChildren();
  $("figures").replaceChildren();
  $("detail").textContent = "";
  $("scrub").max = 0;
  showPlace(0);
}

/** Takes in what is final: the text of a completion so far, or an infill's answer. */
function finalText(event, before) {
  const choice = event.choices?.[0];
  if (!choice) return "";
  if (event.object === "infill") {
    addFrame({ step: event.diffusion.steps, gaps: choice.gaps.map((gap) => ({ slots: gap.provenance.map(committed) })) });
    return choice.text;
  }
  return choice.text ?? choice.delta?.content ?? "";
}

function committed(token) {
  return { state: "committed", ...token, alternatives: token.top_logprobs };
}

/** The canvas of a request: texts, and gaps among them. How long that of a completion is, its frames say. */
function segmentsShown(body) {
  if (state.mode === "infill") return body.segments ?? [body.text];
  return state.mode === "complete" ? [body.prompt, { gap: {} }] : [{ gap: {} }];
}

function busy(running) {
  $("run").disabled = running;
  $("stop").disabled = !running;
  $("scrub").disabled = running || state.frames.length < 2;
}

function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (error instanceof GapError) {
    $("text").focus({ preventScroll: true });
    $("text").setSelectionRange(error.at, error.at + 2);
  }
  $("error").scrollIntoView({ block: "nearest" });
}

function hideError() {
  $("error").hidden = true;
  $("error").textContent = "";
}

// ---- The canvas ----

function addFrame(frame) {
  const first = !state.frames.length;
  if (first) state.frames.push(maskedFrame(frame));
  // An infill's answer is the last step's frame, and knows more of it.
  if (state.frames.at(-1).step === frame.step) state.frames.pop();
  state.frames.push(frame);
  $("scrub").max = frame.step;
  showFrame(frame);
  // On a narrow screen the canvas lies below the form, and may still grow by a line.
  if (first && $("scrub").getBoundingClientRect().bottom > innerHeight) $("result-title").scrollIntoView();
}

/** The canvas before any step. A model may have changed the length of a gap in the first, the request has it as it was. */
function maskedFrame(first) {
  const asked = state.segments.filter((segment) => segment.gap);
  const gaps = first.gaps.map(({ slots }, i) => {
    const length = asked[i]?.gap.tokens ?? slots.length;
    return { slots: Array.from({ length }, () => ({ state: "masked" })) };
  });
  return { step: 0, gaps };
}

function showFrame(frame) {
  showPlace(frame.step);
  const canvas = $("canvas");
  canvas.replaceChildren();
  let shown = 0;
  for (const segment of state.segments) {
    if (segment.gap) {
      const { slots } = frame.gaps[shown++] ?? { slots: [] };
      canvas.append(...slots.map((slot) => slotElement(slot, frame.step)));
    } else {
      canvas.append(segment);
    }
  }
}

function showPlace(step) {
  const slider = $("scrub");
  slider.value = step;
  slider.setAttribute("aria-valuetext", `step ${step} of ${slider.max}`);
  $("step").textContent = step;
}

/** Shows the step that the slider was moved to. A reader that was slow has no frame of some steps: those are passed over. */
function scrub() {
  const before = Number($("step").textContent);
  const step = Number($("scrub").value);
  const { frames } = state;
  const frame = step > before ? frames.find((f) => f.step >= step) : frames.findLast((f) => f.step <= step);
  if (!frame) return;
  $("detail").textContent = "";
  showFrame(frame);
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
  if (/^\n+$/.test(slot.text)) element.classList.add("breaks");
  element.style.setProperty("--p", slot.probability ?? 0.5);
  element.tabIndex = 0;
  const detail = describe(slot);
  element.setAttribute("aria-label", detail);
  // Not mouseenter, which comes too when a step puts another token under a pointer that rests.
  for (const event of ["mousemove", "focus"]) {
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
  $("gap-help").hidden = mode !== "infill";
}

/** Makes the selection a gap of about as many tokens, or inserts one of four. */
function insertGap() {
  if (state.mode !== "infill") return;
  const field = $("text");
  const text = field.value;
  const { start, end, tokens } = gapPlace(text, field.selectionStart, field.selectionEnd);
  const gap = `{{${tokens}}}`;
  const after = text.slice(0, start) + gap + text.slice(end);
  if (![...marks(after)].some((mark) => mark.tokens && mark.start === start)) {
    $("detail").textContent = "A backslash before a gap would make its braces text: take it into the gap, or put something between.";
    return;
  }
  field.focus();
  field.setSelectionRange(start, end);
  // What setRangeText does cannot be undone; the command, old as it is, is an edit like any other.
  if (!document.execCommand("insertText", false, gap)) field.setRangeText(gap, start, end, "end");
}

/** What a gap takes the place of, and how many tokens it has. */
function gapPlace(text, from, to) {
  let [start, end] = [from, to];
  if (start === end) {
    const inside = [...marks(text)].find((mark) => mark.start < start && start < mark.end);
    if (inside) start = inside.end;
    // Tokens begin with their space, so that the gap takes in the one before it, and a word after it keeps one.
    const space = text[start - 1] === " ";
    const word = /^[^\s.,;:!?)\]}{]/.test(text.slice(start));
    return { start: start - space, end: start - (space && word), tokens: 4 };
  }
  // Some systems select a word with the space after it, which is the next token's.
  end = start + (text.slice(start, end).trimEnd().length || end - start);
  let tokens = 0;
  let characters = 0;
  for (const mark of marks(text)) {
    if (mark.end <= start || end <= mark.start) continue;
    start = Math.min(start, mark.start);
    end = Math.max(end, mark.end);
    tokens += mark.tokens ?? 0;
    characters -= mark.tokens ? mark.end - mark.start : 0;
  }
  characters += end - start;
  if (characters) tokens += Math.max(1, Math.round(characters / 4));
  if (text[start - 1] === " " && !/\s/.test(text[start])) start--;
  return { start, end, tokens };
}

async function loadModel() {
  hideError();
  const response = await sent(fetch("/v1/models", { headers: headers() }));
  if (!response.ok) throw await refusal(response);
  const [model] = (await response.json()).data;
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

const KEY = "UNMASK_API_KEY";

/** JSON as Python writes it: its strings are Python's too, its three words are not. */
function python(json) {
  const words = { true: "True", false: "False", null: "None" };
  return json.replace(/"(?:[^"\\]|\\.)*"|true|false|null/g, (found) => words[found] ?? found);
}

/** `keyed` where the server asks for a key, which a snippet takes from the environment and never holds. */
const snippets = {
  curl: (url, json, keyed) => {
    const quoted = json.replaceAll("'", "'\\''");
    const key = keyed ? ` -H "authorization: Bearer $${KEY}"` : "";
    return `curl -s '${url}' -H 'content-type: application/json'${key} -d '${quoted}'`;
  },
  python: (url, json, keyed) => {
    const key = keyed ? `, "authorization": "Bearer " + os.environ["${KEY}"]` : "";
    return (
      `import json, ${keyed ? "os, " : ""}urllib.request\n\nbody = ${python(json)}\n` +
      `headers = {"content-type": "application/json"${key}}\n` +
      `request = urllib.request.Request(${JSON.stringify(url)}, json.dumps(body).encode(), headers)\n` +
      `print(json.load(urllib.request.urlopen(request)))`
    );
  },
  javascript: (url, json, keyed) => {
    const key = keyed ? `, authorization: \`Bearer \${process.env.${KEY}}\`` : "";
    return (
      `const response = await fetch(${JSON.stringify(url)}, {\n  method: "POST",\n` +
      `  headers: { "content-type": "application/json"${key} },\n` +
      `  body: JSON.stringify(${json}),\n});\nconsole.log(await response.json());`
    );
  },
};

async function copy(kind) {
  hideError();
  let snippet;
  try {
    const [path, body] = request();
    // The canvas shown is to come again: its seed, if the server drew it.
    const shown = state.answered?.request === JSON.stringify([path, body]);
    const json = JSON.stringify(shown ? { ...body, seed: state.answered.seed } : body, null, 2);
    snippet = snippets[kind](location.origin + path, json, $("key").value !== "");
  } catch (error) {
    showError(error);
    return;
  }
  try {
    await navigator.clipboard.writeText(snippet);
    $("detail").textContent = "Copied.";
  } catch {
    // Without the right to the clipboard, show what would be in it.
    $("canvas").textContent = snippet;
    $("detail").textContent = "The browser does not let this page copy: take the request from the canvas.";
  }
}

// ---- Events ----

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("stop").addEventListener("click", () => state.abort?.abort());
$("gap").addEventListener("click", insertGap);
$("scrub").addEventListener("input", scrub);
$("key").addEventListener("change", () => loadModel().catch(showError));
// A field that the browser refuses is a new attempt too: the error of the last is not about it.
$("form").addEventListener("invalid", hideError, true);
$("preset").addEventListener("change", () => {
  const preset = state.presets.find(({ name }) => name === $("preset").value);
  $("preset-help").textContent = preset?.description ?? "";
});
$("text").addEventListener("keydown", (event) => {
  if (event.altKey && event.code === "KeyG") {
    event.preventDefault();
    insertGap();
  } else if (event.ctrlKey && event.key === "Enter") {
    event.preventDefault();
    $("form").requestSubmit();
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
loadModel().catch(showError);
