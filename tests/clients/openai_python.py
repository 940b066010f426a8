"""The official OpenAI client for Python against running servers, named by UNMASK_URL and UNMASK_KEY; the one at
UNMASK_CHAT_URL serves a model with a chat template."""

import asyncio
import json
import os
import unittest
from typing import Literal

import openai
import pydantic

CLIENT = openai.OpenAI(
    base_url=os.environ["UNMASK_URL"] + "/v1", api_key=os.environ["UNMASK_KEY"], max_retries=0
)
MODEL = CLIENT.models.list().data[0].id
PROMPT = "The old gentleman took out a pair of"


def complete(**options):
    return CLIENT.completions.create(**{"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "seed": 3} | options)


class Models(unittest.TestCase):
    def test_a_model_can_be_listed_and_retrieved(self):
        self.assertEqual(CLIENT.models.retrieve(MODEL).id, MODEL)


class Completions(unittest.TestCase):
    def test_a_completion_has_text_and_usage(self):
        answer = complete()
        self.assertEqual(answer.object, "text_completion")
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 12)
        self.assertEqual(
            answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
        self.assertEqual(answer.choices[0].text, complete().choices[0].text)

    def test_n_prompts_and_echo_go_together(self):
        answer = complete(prompt=["One", "Two"], n=2, temperature=1, echo=True)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        starts = [choice.text[:3] for choice in answer.choices]
        self.assertEqual(starts, ["One", "One", "Two", "Two"])

    def test_a_stream_says_what_an_answer_in_one_piece_says(self):
        whole = complete(temperature=1)
        chunks = list(complete(temperature=1, stream=True, stream_options={"include_usage": True}))
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        self.assertEqual(text, whole.choices[0].text)
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_a_stop_string_ends_a_completion_and_is_not_in_it(self):
        text = complete().choices[0].text
        stop = text[len(text) // 2 :][:2]
        answer = complete(stop=[stop])
        self.assertEqual(answer.choices[0].text, text[: text.index(stop)])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_log_probabilities_have_one_entry_a_token(self):
        logprobs = complete(logprobs=3).choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), 12)
        for lists in (logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset):
            self.assertEqual(len(lists), 12)
        for token, logprob, top in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs
        ):
            self.assertLessEqual(logprob, 0)
            self.assertAlmostEqual(top[token], logprob, places=5)

    def test_a_bias_keeps_a_token_out(self):
        first = CLIENT.post("/infill", cast_to=object, body=infill({"tokens": 1}))
        token = first["choices"][0]["gaps"][0]["tokens"][0]
        body = infill({"tokens": 1}) | {"logit_bias": {str(token): -100}}
        other = CLIENT.post("/infill", cast_to=object, body=body)
        self.assertNotEqual(other["choices"][0]["gaps"][0]["tokens"][0], token)

    def test_a_suffix_makes_it_an_infilling(self):
        self.assertEqual(complete(suffix=" and put them on.").choices[0].index, 0)


def infill(gap):
    return {"segments": ["He took out a pair of", {"gap": gap}, " and put them on."], "seed": 1}


class Extensions(unittest.TestCase):
    def test_choices_have_probabilities(self):
        answer = CLIENT.post("/infill", cast_to=object, body=infill({"choices": [" gloves", " the"]}))
        choices = answer["choices"][0]["gaps"][0]["choices"]
        self.assertAlmostEqual(sum(choice["probability"] for choice in choices), 1)

    def test_options_of_diffusion_are_taken(self):
        answer = complete(extra_body={"diffusion": {"steps": 3}})
        self.assertEqual(answer.model_extra["diffusion"]["steps"], 3)


CHAT_OPTIONS = {
    "base_url": os.environ["UNMASK_CHAT_URL"] + "/v1", "api_key": os.environ["UNMASK_KEY"], "max_retries": 0
}
CHAT = openai.OpenAI(**CHAT_OPTIONS)
CHAT_MODEL = CHAT.models.list().data[0].id
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
]


def chat(**options):
    options = {"model": CHAT_MODEL, "messages": MESSAGES, "max_completion_tokens": 12, "seed": 3} | options
    return CHAT.chat.completions.create(**options)


class Chats(unittest.TestCase):
    def test_an_answer_has_a_message_and_usage(self):
        answer = chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertIsInstance(answer.choices[0].message.content, str)
        self.assertLessEqual(answer.usage.completion_tokens, 12)
        self.assertEqual(
            answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens
        )

    def test_a_stream_says_what_an_answer_in_one_piece_says(self):
        whole = chat(temperature=1, n=2)
        chunks = list(chat(temperature=1, n=2, stream=True, stream_options={"include_usage": True}))
        for index in range(2):
            deltas = [
                choice.delta.content or ""
                for chunk in chunks
                for choice in chunk.choices
                if choice.index == index
            ]
            self.assertEqual("".join(deltas), whole.choices[index].message.content)
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_the_helper_for_streams_ends_in_the_whole_answer(self):
        # The helper takes an answer that is as long as it may be for an error.
        text = chat().choices[0].message.content
        stop = text[len(text) // 2 :][:1]
        options = {"model": CHAT_MODEL, "messages": MESSAGES, "max_completion_tokens": 12, "seed": 3}
        with CHAT.chat.completions.stream(**options, stop=stop) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        self.assertEqual("".join(deltas), text[: text.index(stop)])
        self.assertEqual(final.choices[0].message.content, text[: text.index(stop)])

    def test_log_probabilities_have_one_entry_a_token(self):
        content = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertGreater(len(content), 0)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 2)

    def test_a_stop_string_ends_an_answer_and_is_not_in_it(self):
        text = chat().choices[0].message.content
        stop = text[len(text) // 2 :][:1]
        answer = chat(stop=[stop])
        self.assertEqual(answer.choices[0].message.content, text[: text.index(stop)])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_an_asynchronous_client_is_answered_as_another(self):
        async def ask():
            async with openai.AsyncOpenAI(**CHAT_OPTIONS) as client:
                options = {"model": CHAT_MODEL, "messages": MESSAGES, "max_completion_tokens": 12}
                asked = [client.chat.completions.create(**options, seed=3) for _ in range(4)]
                return await asyncio.gather(*asked)

        texts = {answer.choices[0].message.content for answer in asyncio.run(ask())}
        self.assertEqual(texts, {chat().choices[0].message.content})

    def test_what_a_chat_cannot_be_is_named_by_its_path(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}])
        self.assertEqual(raised.exception.param, "messages[0].content[0].type")

    def test_a_model_without_a_template_says_so(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            CLIENT.chat.completions.create(model=MODEL, messages=MESSAGES)
        self.assertEqual(raised.exception.code, "no_chat_template")


class Dog(pydantic.BaseModel):
    name: Literal["Rex", "Ada"]
    good: bool
    tags: list[Literal["a", "b"]]


class ParsedOutput(unittest.TestCase):
    OPTIONS = {"model": CHAT_MODEL, "messages": MESSAGES, "max_completion_tokens": 100, "response_format": Dog}

    def test_an_answer_is_parsed_into_its_type(self):
        for seed in range(3):
            answer = CHAT.chat.completions.parse(**self.OPTIONS, seed=seed, temperature=1)
            self.assertIsInstance(answer.choices[0].message.parsed, Dog)

    def test_a_stream_is_parsed_into_its_type(self):
        with CHAT.chat.completions.stream(**self.OPTIONS, seed=1, temperature=1) as stream:
            final = stream.get_final_completion()
        self.assertIsInstance(final.choices[0].message.parsed, Dog)

    def test_any_object_can_be_asked_for(self):
        form = {"type": "json_object"}
        answer = chat(response_format=form, max_completion_tokens=60, temperature=1)
        self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)


class StructuredOutput(unittest.TestCase):
    SCHEMA = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 6},
            "good": {"type": "boolean"},
        },
        "required": ["name", "good"],
        "additionalProperties": False,
    }

    def test_a_completion_is_valid_by_its_schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "dog", "schema": self.SCHEMA}}
        for seed in range(4):
            answer = complete(
                max_tokens=40, temperature=1, seed=seed, extra_body={"response_format": form}
            )
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            dog = json.loads(answer.choices[0].text)
            self.assertEqual(list(dog), ["name", "good"])
            self.assertIsInstance(dog["good"], bool)

    def test_a_schema_that_is_not_supported_is_refused_by_its_path(self):
        schema = {"type": "string", "format": "uri"}
        form = {"type": "json_schema", "json_schema": {"name": "mail", "schema": schema}}
        with self.assertRaises(openai.BadRequestError) as raised:
            complete(extra_body={"response_format": form})
        self.assertEqual(raised.exception.param, "response_format.json_schema.schema.format")


class Errors(unittest.TestCase):
    def test_a_bad_field_is_named(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            complete(max_tokens=0)
        self.assertEqual(raised.exception.param, "max_tokens")
        self.assertEqual(raised.exception.code, "invalid_value")
        self.assertTrue(raised.exception.request_id)

    def test_another_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            complete(model="gpt-4")
        self.assertEqual(raised.exception.code, "model_not_found")

    def test_a_wrong_key_is_refused(self):
        stranger = CLIENT.with_options(api_key="wrong")
        with self.assertRaises(openai.AuthenticationError) as raised:
            stranger.models.list()
        self.assertEqual(raised.exception.code, "invalid_api_key")


if __name__ == "__main__":
    unittest.main()
