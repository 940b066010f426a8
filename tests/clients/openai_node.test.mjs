// The official OpenAI client for Node against running servers, named by UNMASK_URL and UNMASK_KEY; the one at
// UNMASK_CHAT_URL serves a model with a chat template.
// CLIENT_MODULES is the folder that it is installed in.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import test from "node:test";

const require = createRequire(`${process.env.CLIENT_MODULES}/`);
const { OpenAI } = require("openai");

const options = { baseURL: `${process.env.UNMASK_URL}/v1`, apiKey: process.env.UNMASK_KEY, maxRetries: 0 };
const client = new OpenAI(options);
const model = (await client.models.list()).data[0].id;
const complete = (fields) =>
  client.completions.create({ model, prompt: "The old gentleman took out a pair of", max_tokens: 12, seed: 3, ...fields });

test("a completion has text and usage", async () => {
  const answer = await complete();
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 12);
});

test("a stream says what an answer in one piece says", async () => {
  const whole = await complete({ temperature: 1 });
  let text = "";
  let usage;
  const stream = await complete({ temperature: 1, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices.map((choice) => choice.text).join("");
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].text);
  assert.deepEqual(usage, whole.usage);
});

test("n, stop strings and log-probabilities are taken", async () => {
  const several = await complete({ n: 3, temperature: 1 });
  assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1, 2]);
  const text = (await complete()).choices[0].text;
  const stop = text.slice(text.length / 2).slice(0, 2);
  const stopped = await complete({ stop, logprobs: 2 });
  assert.equal(stopped.choices[0].text, text.slice(0, text.indexOf(stop)));
  assert.equal(stopped.choices[0].finish_reason, "stop");
  const { tokens, token_logprobs } = stopped.choices[0].logprobs;
  assert.equal(tokens.length, token_logprobs.length);
});

test("a stream that is left ends the request", async () => {
  const stream = await complete({ max_tokens: 64, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break;
  }
});

const chats = new OpenAI({ ...options, baseURL: `${process.env.UNMASK_CHAT_URL}/v1` });
const chatModel = (await chats.models.list()).data[0].id;
const messages = [{ role: "user", content: "Hi" }];
const chat = { model: chatModel, messages, max_completion_tokens: 12, seed: 3 };

test("a chat is answered, whole and as a stream", async () => {
  const whole = await chats.chat.completions.create({ ...chat, temperature: 1, logprobs: true, top_logprobs: 1 });
  const { message, logprobs } = whole.choices[0];
  assert.equal(message.role, "assistant");
  assert.ok(logprobs.content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 1));
  let text = "";
  const stream = await chats.chat.completions.create({ ...chat, temperature: 1, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(text, message.content);
  // The helper takes an answer that is as long as it may be for an error.
  const stop = text.slice(text.length / 2)[0];
  const helper = chats.chat.completions.stream({ ...chat, temperature: 1, stop });
  assert.equal(await helper.finalContent(), text.slice(0, text.indexOf(stop)));
});

test("a chat's answer is valid by its schema", async () => {
  const schema = {
    type: "object",
    properties: { good: { type: "boolean" }, kind: { enum: ["cat", "dog"] } },
    required: ["good", "kind"],
    additionalProperties: false,
  };
  const response_format = { type: "json_schema", json_schema: { name: "pet", strict: true, schema } };
  const asked = { ...chat, max_completion_tokens: 60, temperature: 1, response_format };
  const pet = JSON.parse((await chats.chat.completions.create(asked)).choices[0].message.content);
  assert.deepEqual(Object.keys(pet), ["good", "kind"]);
  assert.equal(typeof pet.good, "boolean");
});

test("errors name the field and the kind", async () => {
  await assert.rejects(complete({ max_tokens: 0 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "max_tokens");
    return true;
  });
  await assert.rejects(complete({ model: "gpt-4" }), OpenAI.NotFoundError);
  const stranger = new OpenAI({ ...options, apiKey: "wrong" });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});
