"""The endpoint backend against a fake one over a real socket: faults are retried or reported, and none hangs."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from email.utils import format_datetime
from typing import Any

import pytest
from llm_endpoint import (
    Behaviour,
    FakeEndpoint,
    answers,
    chunk,
    completion,
    drips,
    fails,
    response,
    says,
    sends,
    streams,
)

from sekkei.llm import LLM, LLMError, Reply, Settings, TransientError, Usage, assistant, open_llm, user
from sekkei.llm.http import Endpoint, EndpointConfig, retry_after_seconds
from sekkei.llm.limit import Limited
from sekkei.llm.retry import RetryConfig, Retrying

ASKED = [user("how are you?")]
KEY = "sk-very-secret"


def open_endpoint(server: FakeEndpoint, waits: list[float] | None = None, attempts: int = 1, **config: Any) -> LLM:
    """The endpoint with retries whose waits are written down instead of waited for."""
    options = {"read_s": 1.0, "call_s": 2.0, "key": KEY, **config}

    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    endpoint = Endpoint(EndpointConfig(url=server.url, model="tiny", **options))
    return LLM(Retrying(endpoint, RetryConfig(attempts=attempts), sleep))


def test_a_call_and_its_reply() -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": "sum", "parameters": {"type": "object"}}}]
    wanted = Settings(temperature=0.7, top_p=0.9, max_tokens=50, stop=("\n",), seed=5, thinking=False)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with FakeEndpoint([says("fine", reasoning_content="hm")]) as server, open_endpoint(server) as llm:
        reply = llm.chat(ASKED, replace(wanted, response_format=form), tools)
        assert reply == Reply(text="fine", thinking="hm", usage=Usage(7, 3), model=f"{server.url}#tiny")
        first, headers, body = server.requests[0]
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "tiny",
        "messages": ASKED,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 50,
        "stop": ["\n"],
        "seed": 5,
        "n": 1,
        "response_format": form,
        "chat_template_kwargs": {"enable_thinking": False},
        "tools": tools,
    }


def test_a_think_block_in_the_content_is_parted() -> None:
    with FakeEndpoint([says("<think>two and two</think>\n\n4")]) as server, open_endpoint(server) as llm:
        reply = llm.chat(ASKED)
    assert (reply.thinking, reply.text) == ("two and two", "4")


def test_tool_calls_logprobs_and_reasons() -> None:
    call = {"id": "a1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    data = completion("", tool_calls=[call])
    data["choices"][0] |= {"finish_reason": "tool_calls", "logprobs": {"content": [{"token": "a", "logprob": -0.5}]}}
    with FakeEndpoint([answers(data)]) as server, open_endpoint(server) as llm:
        reply = llm.chat(ASKED, Settings(logprobs=True))
    assert [(c.id, c.name, c.arguments) for c in reply.tool_calls] == [("a1", "add", '{"x": 1}')]
    assert reply.finish_reason == "tool_calls"
    assert reply.logprobs == (("a", -0.5),)
    assert reply.message()["tool_calls"] == [call]


def test_too_many_requests_waits_as_long_as_the_server_says() -> None:
    waits: list[float] = []
    busy = fails("429 Too Many Requests", "Retry-After: 7")
    with FakeEndpoint([busy, busy, says("now")]) as server, open_endpoint(server, waits, attempts=3) as llm:
        assert llm.chat(ASKED).text == "now"
        assert len(server.requests) == 3
    assert waits == [7.0, 7.0]


def test_a_wait_beyond_the_limit_is_reported_at_once() -> None:
    with (
        FakeEndpoint([fails("429 Too Many Requests", "Retry-After: 3600")]) as server,
        open_endpoint(server, attempts=5) as llm,
    ):
        with pytest.raises(LLMError, match="HTTP 429, no luck; the server asks to wait 3600 s"):
            llm.chat(ASKED)
        assert len(server.requests) == 1


def test_faults_of_the_server_are_retried_with_growing_jittered_waits() -> None:
    waits: list[float] = []
    with (
        FakeEndpoint(
            [fails("500 Oops"), fails("503 Busy"), fails("502 Bad Gateway", body=b"<html>"), says("up")]
        ) as server,
        open_endpoint(server, waits, attempts=4) as llm,
    ):
        assert llm.chat(ASKED).text == "up"
    assert len(waits) == 3
    for i, wait in enumerate(waits):
        assert 0 < wait <= 0.5 * 2**i
    assert len({wait / 2**i for i, wait in enumerate(waits)}) == 3, "the jitter must differ from try to try"


BAD: dict[str, tuple[Behaviour, str]] = {
    "status": (fails("500 Oops"), "HTTP 500, no luck"),
    "html instead of json": (sends(response("200 OK", b"<html>busy</html>")), "not JSON but begins with '<html>busy"),
    "torn json": (sends(response("200 OK", b'{"choices": [{"mess')), "not JSON"),
    "no choices": (answers({"usage": {}}), "malformed"),
    "empty choices": (answers({"choices": []}), "choices is empty"),
    "a list": (answers([1, 2]), "malformed"),
    "null": (answers(None), "malformed"),
    "content is a number": (answers(completion(3)), "malformed"),  # type: ignore[arg-type]
    "tool call without a name": (says("", tool_calls=[{"function": {"arguments": "{}"}}]), "malformed"),
    "closed without a word": (sends(b""), "connection broke"),
    "half a head": (sends(b"HTTP/1.1 200 O"), "connection broke"),
    "half a body": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"),
        "connection broke",
    ),
    "no HTTP at all": (sends(b"SSH-2.0-OpenSSH_9.7\r\n\r\n"), "connection broke"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_may_pass_is_retried_then_reported(name: str) -> None:
    bad, told = BAD[name]
    with FakeEndpoint([bad, bad, says("ok")]) as server, open_endpoint(server, attempts=3) as llm:
        assert llm.chat(ASKED).text == "ok"
    with FakeEndpoint([bad]) as server, open_endpoint(server, attempts=2) as llm:
        with pytest.raises(LLMError, match=told) as caught:
            llm.chat(ASKED)
        assert len(server.requests) == 2
    assert "tried 2 times" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [("401 Unauthorized", "SEKKEI_LLM_KEY"), ("404 Not Found", "model's name"), ("400 Bad Request", f"{KEY}")],
)
def test_the_callers_own_mistakes_are_not_retried(status: str, remedy: str) -> None:
    body = json.dumps({"error": {"message": f"your key {KEY} or request is wrong"}}).encode()
    with FakeEndpoint([fails(status, body=body)]) as server, open_endpoint(server, attempts=5) as llm:
        with pytest.raises(LLMError) as caught:
            llm.chat(ASKED)
        assert len(server.requests) == 1
    assert "is wrong" in str(caught.value)
    assert KEY not in str(caught.value), "a server that echoes the key must not get it into a log"
    if remedy != KEY:
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    "slow",
    [says("late", seconds=3.0), drips(response("200 OK", json.dumps(completion("x" * 400)).encode()), 0.02)],
    ids=["silence", "slow bytes"],
)
def test_slowness_ends_in_time(slow: Behaviour) -> None:
    with FakeEndpoint([slow]) as server, open_endpoint(server, read_s=0.5, call_s=0.9) as llm:
        began = time.monotonic()
        with pytest.raises(LLMError, match=r"no answer in time|not finished after call_s=0\.9"):
            llm.chat(ASKED)
        assert time.monotonic() - began < 2.0


def test_a_server_that_is_not_there() -> None:
    with FakeEndpoint([says("x")]) as server:
        url = server.url
    llm = LLM(Endpoint(EndpointConfig(url=url, model="tiny")))
    with pytest.raises(TransientError, match="cannot be reached"):
        llm.chat(ASKED)


END_USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'


def test_a_stream() -> None:
    parts = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), b": a comment\n\n"]
    parts += [chunk({"content": "lo"}), chunk({}, "stop"), END_USAGE]
    with FakeEndpoint([streams(*parts)]) as server, open_endpoint(server) as llm:
        pieces = list(llm.stream(ASKED))
        assert server.requests[0][2]["stream"] is True
    assert [piece.text for piece in pieces] == ["Hel", "lo", ""]
    assert pieces[-1].reply == Reply(text="Hello", usage=Usage(4, 2), model=f"{server.url}#tiny")


def test_thinking_in_a_stream_whatever_way_it_is_cut() -> None:
    whole = "<think>a < b</think>\n\nso <b>"
    for size in (1, 2, 3, 7, 100):
        parts = [chunk({"content": whole[i : i + size]}) for i in range(0, len(whole), size)]
        with FakeEndpoint([streams(*parts, chunk({}, "stop"), END_USAGE)]) as server, open_endpoint(server) as llm:
            pieces = list(llm.stream(ASKED))
        reply = pieces[-1].reply
        assert reply is not None
        assert (reply.thinking, reply.text) == ("a < b", "so <b>")
        assert "".join(piece.thinking for piece in pieces) == "a < b"
        assert "".join(piece.text for piece in pieces).strip() == "so <b>"


def test_tool_calls_in_a_stream_come_in_fragments() -> None:
    first = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}
    parts = [chunk({"tool_calls": [first]})]
    parts += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in ('{"x"', ": 1}")]
    parts += [chunk({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "now", "arguments": "{}"}}]})]
    with FakeEndpoint([streams(*parts, chunk({}, "tool_calls"), END_USAGE)]) as server, open_endpoint(server) as llm:
        reply = list(llm.stream(ASKED))[-1].reply
    assert reply is not None
    assert [(c.id, c.name, c.arguments) for c in reply.tool_calls] == [("c1", "add", '{"x": 1}'), ("c2", "now", "{}")]


def test_a_half_closed_stream_is_retried_only_while_nothing_was_shown() -> None:
    good = streams(chunk({"content": "whole"}), chunk({}, "stop"), END_USAGE)
    with FakeEndpoint([streams(), good]) as server, open_endpoint(server, attempts=2) as llm:
        assert "".join(piece.text for piece in llm.stream(ASKED)) == "whole"
    with FakeEndpoint([streams(chunk({"content": "half"})), good]) as server, open_endpoint(server, attempts=2) as llm:
        pieces = llm.stream(ASKED)
        assert next(pieces).text == "half"
        with pytest.raises(LLMError, match="ended in the middle of a reply"):
            next(pieces)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (b"data: {oops\n\n", "malformed chunk"),
        (b'data: {"choices": [3]}\n\n', "malformed chunk"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
    ],
)
def test_a_broken_stream_is_reported(part: bytes, told: str) -> None:
    with (
        FakeEndpoint([streams(chunk({"content": "a"}), part)]) as server,
        open_endpoint(server) as llm,
        pytest.raises(LLMError, match=told),
    ):
        list(llm.stream(ASKED))


def test_a_dripping_stream_ends_in_time() -> None:
    parts = [chunk({"content": "x"})] * 50
    with FakeEndpoint([streams(*parts, pause=0.1)]) as server, open_endpoint(server, call_s=0.6) as llm:
        began = time.monotonic()
        with pytest.raises(LLMError, match=r"not finished after call_s=0\.6"):
            list(llm.stream(ASKED))
        assert time.monotonic() - began < 2.0


def test_a_stream_that_is_left_early_lets_the_server_go() -> None:
    with FakeEndpoint([streams(*[chunk({"content": "x"})] * 200, pause=0.05)]) as server, open_endpoint(server) as llm:
        for _ in llm.stream(ASKED):
            break
        deadline = time.monotonic() + 2
        while server.under_way and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.under_way == 0


def test_samples_that_a_server_leaves_out_are_asked_for() -> None:
    with FakeEndpoint([says("a"), says("b"), says("c")]) as server, open_endpoint(server) as llm:
        replies = llm.sample(ASKED, Settings(n=3, seed=10))
        assert [(body["n"], body["seed"]) for _, _, body in server.requests] == [(3, 10), (2, 11), (1, 12)]
    assert [reply.text for reply in replies] == ["a", "b", "c"]


def test_usage_of_samples_adds_up() -> None:
    data = completion("short")
    data["choices"].append({"message": {"content": "a much longer reply"}, "finish_reason": "length"})
    data["usage"] = {"prompt_tokens": 11, "completion_tokens": 8}
    with FakeEndpoint([answers(data)]) as server, open_endpoint(server) as llm:
        replies = llm.sample(ASKED, Settings(n=2))
    assert replies[0].usage + replies[1].usage == Usage(11, 8)
    assert replies[1].usage.prompt_tokens == 0
    assert replies[1].finish_reason == "length"


def test_an_endpoint_that_counts_nothing_is_estimated_and_says_so() -> None:
    data = completion("four letters x four")
    del data["usage"]
    with FakeEndpoint([answers(data)]) as server, open_endpoint(server) as llm:
        usage = llm.chat(ASKED).usage
    assert usage.estimated
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 6)


def test_what_a_chat_endpoint_cannot_do_is_refused() -> None:
    with FakeEndpoint([says("x")]) as server, open_endpoint(server) as llm:
        with pytest.raises(LLMError, match="cannot score"):
            llm.loglikelihood(ASKED, ["a"])
        with pytest.raises(LLMError, match="cannot go on from an assistant's message"):
            llm.chat([*ASKED, assistant("I am")])
        with pytest.raises(LLMError, match="gives no log-probabilities"):
            llm.chat(ASKED, Settings(logprobs=True))
    with FakeEndpoint([says("x")]) as server, open_endpoint(server, continues=True) as llm:
        llm.chat([*ASKED, assistant("I am")])
        assert server.requests[0][2]["continue_final_message"] is True


def test_no_more_calls_at_once_than_allowed() -> None:
    with FakeEndpoint([says("x", seconds=0.05)]) as server:
        llm = LLM(Limited(Endpoint(EndpointConfig(url=server.url, model="tiny")), 3))
        replies = llm.chat_many([[user(str(i))] for i in range(12)])
        assert len(replies) == 12
        assert server.most_under_way == 3


def test_one_endpoint_serves_several_event_loops() -> None:
    with FakeEndpoint([says("x")]) as server, open_endpoint(server) as llm:
        assert llm.chat(ASKED).text == "x"
        for _ in range(2):
            assert asyncio.run(llm.achat(ASKED)).text == "x"


def test_open_from_a_string_and_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint([says("x")]) as server:
        monkeypatch.setenv("SEKKEI_LLM_KEY", "k1")
        with open_llm(f"{server.url}#big") as llm:
            llm.chat(ASKED)
        monkeypatch.setenv("SEKKEI_LLM_URL", server.url)
        monkeypatch.setenv("SEKKEI_LLM_MODEL", "small")
        with open_llm("env") as llm:
            llm.chat(ASKED)
        with open_llm({"endpoint": {"url": server.url, "model": "third", "key": "own"}}) as llm:
            llm.chat(ASKED)
        found = [(body["model"], headers["authorization"]) for _, headers, body in server.requests]
    assert found == [("big", "Bearer k1"), ("small", "Bearer k1"), ("third", "Bearer own")]


def test_retry_after_is_a_number_or_a_date() -> None:
    from datetime import UTC, datetime, timedelta

    assert retry_after_seconds("12") == 12.0
    assert retry_after_seconds("-3") == 0.0
    assert retry_after_seconds(None) is None
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds("inf") is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after_seconds(later) or 0) <= 31
