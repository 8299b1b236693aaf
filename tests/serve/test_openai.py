"""Every endpoint driven by the official `openai` client over a real socket."""

from __future__ import annotations

import json
import math
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from live import Live, gauges

from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.lora import load_lora, merge_lora
from sekkei.serve.opened import open_model
from sekkei.serve.wire import ChatRequest, CompletionRequest

TALK = [{"role": "user", "content": "say hello"}]
MODEL = "tiny/sft"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "double")
]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "polite"]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.models.retrieve("other")


def test_an_adapter_is_a_model_beside_the_base(client: openai.OpenAI, run_dir: Path, adapter: Path) -> None:
    """Its log-probabilities are those of the merged model, while the base model answers beside it."""
    assert client.models.retrieve("polite").parent == MODEL  # type: ignore[attr-defined]
    prompt, said = "You say hello", {}
    for name in ("polite", MODEL, "polite"):
        answer = client.completions.create(
            model=name, prompt=prompt, max_tokens=8, temperature=0, echo=True, logprobs=1
        )
        assert answer.model == name
        said[name] = answer.choices[0].logprobs.token_logprobs
    for name, folder in (("polite", adapter), (MODEL, None)):
        opened = open_model(run_dir)
        if folder is not None:
            load_lora(folder, opened.model)
            merge_lora(opened.model)
        ids = tuple(opened.words.plain(prompt))
        sampling = Sampling(temperature=0.0, max_tokens=8, stop_tokens=opened.words.stop_tokens, prompt_logprobs=True)
        ((found,),) = Engine(opened.model).generate([Request(prompt_ids=ids, sampling=sampling)])
        assert said[name][1:] == pytest.approx([*found.prompt_logprobs, *found.logprobs], abs=1e-5)
    assert said["polite"] != said[MODEL]


def test_a_chat_is_the_engines_answer(client: openai.OpenAI, run_dir: Path) -> None:
    opened = open_model(run_dir)
    ids = opened.words.chat(TALK)
    sampling = Sampling(temperature=0.9, max_tokens=24, stop_tokens=opened.words.stop_tokens, text=True)
    request = Request(prompt_ids=tuple(ids), sampling=sampling, n=3, seed=7)
    (expected,) = Engine(opened.model, tokenizer=opened.words.inner).generate([request])
    answer = client.chat.completions.create(
        model=MODEL, messages=TALK, temperature=0.9, max_tokens=24, seed=7, n=3, logprobs=True, top_logprobs=4
    )
    drawn = 0
    for choice, completion in zip(answer.choices, expected, strict=True):
        assert choice.message.content == completion.text
        assert choice.finish_reason == completion.finish_reason
        entries = choice.logprobs.content
        np.testing.assert_allclose([entry.logprob for entry in entries], completion.logprobs, atol=1e-4)
        assert all(len(entry.top_logprobs) == 4 for entry in entries)
        joined = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
        assert joined.removesuffix("<|end|>") == completion.text
        drawn += len(entries)
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == drawn


def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    settings = {"model": MODEL, "messages": TALK, "temperature": 1.0, "max_tokens": 40, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**settings, stop=["a", "zz"])
    texts, reasons, usage, chunks = ["", ""], [None, None], None, 0
    stream = client.chat.completions.create(
        **settings, stop=["a", "zz"], stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        chunks += 1
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert chunks > 6


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=TALK,
        n=4,
        max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
    )
    whole = [choice.message.content for choice in answer.choices if choice.finish_reason == "stop"]
    assert whole
    for text in whole:
        jsonschema.validate(json.loads(text), schema)


def test_tools_are_called_where_they_must_be(client: openai.OpenAI) -> None:
    for choice, names in (
        ({"type": "function", "function": {"name": "double"}}, {"double"}),
        ("required", {"add", "double"}),
    ):
        answer = client.chat.completions.create(
            model=MODEL, messages=TALK, tools=TOOLS, tool_choice=choice, n=4, max_tokens=80, seed=1
        )
        called = [c.message.tool_calls[0] for c in answer.choices if c.finish_reason == "tool_calls"]
        assert called
        for call in called:
            assert call.function.name in names
            jsonschema.validate(json.loads(call.function.arguments), TOOLS[0]["function"]["parameters"])
    stream = client.chat.completions.create(
        model=MODEL, messages=TALK, tools=TOOLS, tool_choice="required", max_tokens=80, seed=1, stream=True
    )
    calls = [c for chunk in stream for choice in chunk.choices for c in choice.delta.tool_calls or ()]
    assert [call.function.name in ("add", "double") for call in calls] == [True]
    call = calls[0]
    talk = [
        *TALK,
        {"role": "assistant", "tool_calls": [call.model_dump(exclude={"index"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "8"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=talk, tools=TOOLS, max_tokens=5)
    assert answer.choices[0].message.role == "assistant"


def test_text_goes_on_and_is_scored(client: openai.OpenAI, run_dir: Path) -> None:
    opened = open_model(run_dir)
    prompts = ["say hello", "12 + 30"]
    answer = client.completions.create(
        model="sft", prompt=prompts, temperature=0, max_tokens=6, logprobs=2, echo=True, n=2, seed=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    sampling = Sampling(temperature=0.0, max_tokens=6, prompt_logprobs=True, stop_tokens=opened.words.stop_tokens)
    requests = [Request(prompt_ids=tuple(opened.words.plain(prompt)), sampling=sampling) for prompt in prompts]
    expected = [done[0] for done in Engine(opened.model).generate(requests)]
    for choice in answer.choices:
        prompt, done = prompts[choice.index // 2], expected[choice.index // 2]
        assert choice.text.startswith(prompt)
        assert choice.logprobs.token_logprobs[0] is None
        np.testing.assert_allclose(
            choice.logprobs.token_logprobs[1:], [*done.prompt_logprobs, *done.logprobs], atol=1e-4
        )
        assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == len(choice.logprobs.text_offset)
    ids = list(requests[0].prompt_ids)
    for sent in (ids, [ids]):
        scored = client.completions.create(model=MODEL, prompt=sent, max_tokens=0, echo=True, logprobs=1)
        assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected[0].prompt_logprobs, abs=1e-4)
        assert scored.usage.completion_tokens == 0
    stream = client.completions.create(
        model=MODEL, prompt="say hello", temperature=0, max_tokens=6, echo=True, stream=True
    )
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == answer.choices[0].text


def test_null_means_left_out(live: Live) -> None:
    """Clients send null for what their user did not set."""
    for path, kind, body in (
        ("/v1/completions", CompletionRequest, {"prompt": "say", "max_tokens": 3}),
        ("/v1/chat/completions", ChatRequest, {"messages": TALK, "max_tokens": 3}),
    ):
        nulls = {name: None for name in kind.model_fields if name not in body}
        answer = httpx.post(live.url + path, json=nulls | body)
        assert answer.status_code == 200, answer.text


def test_one_request_cannot_make_the_scores_of_others_overflow(live: Live) -> None:
    for wrong in ({"temperature": 1e-320}, {"repetition_penalty": 5e-324}, {"temperature": 5e-324, "stream": True}):
        answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "say", "max_tokens": 3} | wrong)
        assert answer.status_code == 400, answer.text
        assert next(iter(wrong)) in answer.json()["error"]["message"]
    least = {"prompt": "say", "max_tokens": 9, "temperature": 1e-4, "repetition_penalty": 100, "top_p": 5e-324}
    assert httpx.post(f"{live.url}/v1/completions", json=least).status_code == 200


def test_extra_settings_reach_the_engine(client: openai.OpenAI) -> None:
    greedy = client.completions.create(model=MODEL, prompt="say", temperature=0, max_tokens=20).choices[0].text
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        same = client.completions.create(model=MODEL, prompt="say", max_tokens=20, extra_body=extra).choices[0].text
        assert same == greedy
    penalized = client.completions.create(
        model=MODEL, prompt="say", temperature=0, max_tokens=20, extra_body={"repetition_penalty": 50.0}
    )
    assert penalized.choices[0].text != greedy
    seeds = {client.completions.create(model=MODEL, prompt="say", max_tokens=9, seed=4).choices[0].text for _ in "12"}
    assert len(seeds) == 1
    free = {client.completions.create(model=MODEL, prompt="say", max_tokens=9).choices[0].text for _ in "12"}
    assert len(free) == 2


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-5"}, 404, "does not exist"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "clown", "content": "x"}]}, 400, r"messages\.0\.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text parts"),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, 400, "context of 1024"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 10_000}, 400, "n:"),
        ({"presence_penalty": 1.0}, 400, "presence_penalty.*not handled"),
        ({"extra_body": {"nonsense": 1}}, 400, "nonsense: is not known"),
        ({"tool_choice": "required"}, 400, "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, 400, "no tool is named"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            400,
            "JSON schema",
        ),
        ({"stop": [""]}, 400, "stop"),
        ({"top_logprobs": 3}, 400, "needs logprobs"),
    ],
)
def test_what_is_wrong_is_said(client: openai.OpenAI, change: dict, status: int, words: str) -> None:
    with pytest.raises(openai.APIStatusError, match=words) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": TALK, "max_tokens": 4} | change)
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_other_errors_have_the_same_shape(live: Live) -> None:
    for method, path, options, status in (
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/v1/completions", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ("POST", "/v1/completions", {"content": b"x" * 5_000_000}, 413),
        ("POST", "/v1/completions", {"content": (b"x" * 1000 for _ in range(5000))}, 413),
        ("GET", "/v1/models", {"headers": {"host": "evil.example"}}, 421),
        ("POST", "/v1/embeddings", {"json": {"input": "x"}}, 404),
    ):
        answer = httpx.request(method, live.url + path, **options)
        assert answer.status_code == status, (method, path, answer.text)
        assert answer.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_blocks(live: Live, client: openai.OpenAI) -> None:
    def held() -> float:
        return gauges(httpx.get(f"{live.url}/metrics").text)["sekkei_blocks_held"]

    def until(wanted: bool) -> None:
        for _ in range(200):
            if (held() > 0) == wanted:
                return
        raise AssertionError(f"blocks held: {held()}")

    bias = {"model": MODEL, "prompt": "say", "max_tokens": 500, "n": 8}
    before = gauges(httpx.get(f"{live.url}/metrics").text)["sekkei_disconnects_total"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live.url}/v1/completions", json=bias, timeout=0.15)
    until(False)
    stream = client.completions.create(**bias, stream=True)
    next(iter(stream))
    until(True)
    stream.close()
    until(False)
    after = gauges(httpx.get(f"{live.url}/metrics").text)
    assert after["sekkei_disconnects_total"] == before + 2
    assert after["sekkei_samples_open"] == 0


def test_metrics_count(live: Live, client: openai.OpenAI) -> None:
    before = gauges(httpx.get(f"{live.url}/metrics").text)
    answer = client.completions.create(model=MODEL, prompt="say", max_tokens=7, seed=1)
    after = gauges(httpx.get(f"{live.url}/metrics").text)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown('sekkei_requests_total{path="/v1/completions",status="200"}') == 1
    assert grown("sekkei_generated_tokens_total") == answer.usage.completion_tokens
    assert grown("sekkei_prompt_tokens_total") == answer.usage.prompt_tokens
    assert grown("sekkei_first_token_seconds_count") == 1
    assert math.isclose(grown("sekkei_token_seconds_count"), answer.usage.completion_tokens - 1)


def test_a_harness_reads_log_likelihoods(client: openai.OpenAI, run_dir: Path) -> None:
    """The request and the reading of lm-eval's `local-completions`: token ids, one token more, slices by context."""
    opened = open_model(run_dir)
    context = opened.words.plain("say hello 12")
    sampling = Sampling(temperature=0.0, max_tokens=5)
    ((greedy,),) = Engine(opened.model).generate([Request(prompt_ids=tuple(context), sampling=sampling)])
    rows = [[*context, *greedy.token_ids], [*context, *opened.words.plain("42")[1:]]]
    answer = client.completions.create(
        model=MODEL, prompt=rows, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    read = []
    for choice in sorted(answer.choices, key=lambda choice: choice.index):
        values = choice.logprobs.token_logprobs[len(context) : -1]
        tops = choice.logprobs.top_logprobs[len(context) : -1]
        read.append((sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))))
    forced = Request(prompt_ids=tuple(rows[1]), sampling=Sampling(max_tokens=1, prompt_logprobs=True))
    ((scored,),) = Engine(opened.model).generate([forced])
    assert [likeliest for _, likeliest in read] == [True, False]
    assert read[0][0] == pytest.approx(sum(greedy.logprobs), abs=1e-3)
    assert read[1][0] == pytest.approx(sum(scored.prompt_logprobs[len(context) - 1 :]), abs=1e-3)
