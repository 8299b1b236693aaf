"""Budget, retries, cache, trace and cassette around a scripted backend; and the plain face around all."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.llm import (
    LLM,
    BudgetError,
    Call,
    LLMError,
    Message,
    Piece,
    Reply,
    Settings,
    TransientError,
    Usage,
    open_llm,
    system,
    user,
)
from sekkei.llm.budget import Budget, BudgetConfig, Budgeted
from sekkei.llm.cache import Cached
from sekkei.llm.cassette import CassetteError, Recording, Replay
from sekkei.llm.limit import Limited
from sekkei.llm.retry import RetryConfig, Retrying
from sekkei.llm.scripted import Scripted
from sekkei.llm.trace import Prices, Traced


def ask(text: str) -> list[Message]:
    return [user(text)]


def echo(call: Call) -> list[str]:
    return [f"{call.messages[-1]['content']}/{call.settings.seed + i}" for i in range(call.settings.n)]


class Slow(Scripted):
    """A script whose every answer takes a while."""

    async def answer(self, call: Call) -> tuple[Reply, ...]:
        await asyncio.sleep(0.3)
        return await super().answer(call)


def test_a_budget_of_calls() -> None:
    llm = LLM(Budgeted(Scripted(echo), Budget(BudgetConfig(calls=2))))
    llm.chat(ask("a"))
    list(llm.stream(ask("b")))
    with pytest.raises(BudgetError, match="budget of 2 calls is spent"):
        llm.chat(ask("c"))


def test_a_budget_of_tokens_counts_prompts_and_replies_and_is_shared() -> None:
    budget, script = Budget(BudgetConfig(tokens=8)), Scripted(["one two", "three", "four"], scorer=lambda *_: -1.0)
    first, second = LLM(Budgeted(script, budget)), LLM(Budgeted(script, budget))
    first.chat(ask("a b c"))  # 3 + 2
    assert budget.usage == Usage(3, 2)
    second.chat(ask("a b"))  # 2 + 1
    for work in (lambda: first.chat(ask("x")), lambda: second.loglikelihood(ask("x"), ["y"])):
        with pytest.raises(BudgetError, match=r"8 tokens is spent \(8 used in 2 calls\)"):
            work()


def test_a_budget_of_seconds_cuts_off_a_call() -> None:
    llm = LLM(Budgeted(Slow(echo), Budget(BudgetConfig(seconds=0.1))))
    with pytest.raises(BudgetError, match=r"0\.1 seconds was spent during a call"):
        llm.chat(ask("a"))
    with pytest.raises(BudgetError, match=r"0\.1 seconds is spent"):
        llm.chat(ask("a"))


@pytest.mark.parametrize("key", ["tokens", "calls", "seconds"])
def test_a_budget_that_allows_nothing_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got 0"):
        BudgetConfig(**{key: 0})


def test_retries_are_the_same_in_every_run_and_differ_between_calls() -> None:
    def waits_of(text: str) -> list[float]:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        script = Scripted([TransientError("busy"), TransientError("busy"), "done"])
        assert LLM(Retrying(script, RetryConfig(attempts=3), sleep)).chat(ask(text)).text == "done"
        return waits

    assert waits_of("a") == waits_of("a")
    assert waits_of("a") != waits_of("b")


def test_a_refusal_is_not_retried() -> None:
    script = Scripted([LLMError("wrong key"), "never"])
    with pytest.raises(LLMError, match="wrong key"):
        LLM(Retrying(script, RetryConfig(attempts=5))).chat(ask("a"))
    assert len(script.calls) == 1


def test_a_limited_stream_gives_its_place_back_when_it_is_left() -> None:
    llm = LLM(Limited(Scripted(echo), 1))
    for _ in range(3):
        for _ in llm.stream(ask("a b c d")):
            break
    assert llm.chat(ask("x")).text == "x/0"


def test_the_cache_keeps_calls_apart_by_all_that_determines_them(tmp_path: Path) -> None:
    script = Scripted(echo, scorer=lambda _, text: -float(len(text)))
    llm = LLM(Cached(script, tmp_path))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    different = [
        lambda: llm.chat(ask("a")),
        lambda: llm.chat(ask("b")),
        lambda: llm.chat(ask("a"), Settings(seed=1)),
        lambda: llm.chat(ask("a"), Settings(temperature=0.5)),
        lambda: llm.chat(ask("a"), Settings(stop=("x",))),
        lambda: llm.chat([system("s"), *ask("a")]),
        lambda: llm.chat(ask("a"), tools=[tool]),
        lambda: llm.sample(ask("a"), Settings(n=2)),
        lambda: llm.loglikelihood(ask("a"), ["x"]),
        lambda: llm.loglikelihood(ask("a"), ["yy"]),
    ]
    first = [work() for work in different]
    assert len(script.calls) == len(different)
    second = [work() for work in different]
    assert len(script.calls) == len(different), "the second round must come from the disk"
    for before, after in zip(first, second):
        for old, new in zip(
            before if isinstance(before, list) else [before], after if isinstance(after, list) else [after]
        ):
            if isinstance(old, Reply):
                assert (old.cached, new.cached) == (False, True)
                assert (new.text, new.usage, new.model) == (old.text, old.usage, old.model)
            else:
                assert old == new


def test_another_model_does_not_read_the_first_ones_replies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert LLM(Cached(Scripted([name], name=name), tmp_path)).chat(ask("who?")).text == name


def test_a_stream_fills_the_cache_and_is_served_from_it(tmp_path: Path) -> None:
    script = Scripted([Reply(text="a b", thinking="hm"), "other"])
    llm = LLM(Cached(script, tmp_path))
    for _ in range(2):
        pieces = list(llm.stream(ask("q")))
        assert "".join(piece.text for piece in pieces) == "a b"
        assert "".join(piece.thinking for piece in pieces) == "hm"
    assert len(script.calls) == 1


@pytest.mark.parametrize("damage", ["", "[", "{}", "[]", '[{"text": 1}]', "\xff"])
def test_a_damaged_cache_file_is_asked_for_again(tmp_path: Path, damage: str) -> None:
    llm = LLM(Cached(Scripted(["first", "second"]), tmp_path))
    assert llm.chat(ask("a")).text == "first"
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage.encode("latin-1"))
    assert llm.chat(ask("a")).text == "second"
    assert llm.chat(ask("a")).cached


def test_the_trace_has_every_call_with_its_cost(tmp_path: Path) -> None:
    script = Scripted(["one two three", LLMError("no"), "streamed"], scorer=lambda *_: -2.0)
    path = tmp_path / "deep" / "trace.jsonl"
    llm = LLM(Traced(Cached(script, tmp_path / "cache"), path, Prices(prompt=1.0, completion=10.0)))
    llm.chat(ask("a b"))
    llm.chat(ask("a b"))
    with pytest.raises(LLMError):
        llm.chat(ask("c"))
    list(llm.stream(ask("d")))
    llm.loglikelihood(ask("e"), ["yes"])
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert [line["kind"] for line in lines] == ["answer", "answer", "answer", "stream", "score"]
    assert lines[0]["replies"][0]["text"] == "one two three"
    assert lines[0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "estimated": False}
    assert lines[0]["cost"] == pytest.approx(32e-6)
    assert (lines[1]["cached"], lines[1]["cost"]) == (True, 0.0)
    assert lines[2]["error"] == "no"
    assert "replies" not in lines[2]
    assert lines[4]["scores"] == [
        {"continuation": "yes", "logprob": -2.0, "tokens": 1, "greedy": True, "usage": lines[4]["usage"]}
    ]
    assert all(line["messages"] and "settings" in line and line["seconds"] >= 0 for line in lines)


def record(path: Path) -> None:
    script = Scripted(echo, scorer=lambda _, text: -float(len(text)), name="teacher")
    with LLM(Recording(script, path)) as llm:
        llm.chat([system("be kind"), *ask("what is the weather in Kyoto today?")], Settings(temperature=0.5))
        llm.chat(ask("line\u2028separator\x85and\nmore"))
        llm.chat(ask("twice"))
        llm.chat(ask("twice"))
        llm.loglikelihood(ask("score"), [" yes", " no"])
        assert not path.exists(), "a cassette is whole or absent"
        llm.close()
        llm.close()


def test_a_cassette_replays_offline_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    record(path)
    llm = LLM(Replay(path))
    assert llm.name == "teacher"
    assert llm.capabilities.loglikelihood
    assert llm.loglikelihood(ask("score"), [" yes", " no"])[1].logprob == -3.0
    assert llm.chat(ask("line\u2028separator\x85and\nmore")).text == "line\u2028separator\x85and\nmore/0"
    assert "".join(piece.text for piece in llm.stream(ask("twice"))) == "twice/0"
    llm.chat(ask("twice"))
    with pytest.raises(CassetteError, match="recorded 2 times is made again"):
        llm.chat(ask("twice"))


@pytest.mark.parametrize(
    ("messages", "settings", "told"),
    [
        (
            [system("be kind"), *ask("what is the weather in Osaka today?")],
            Settings(temperature=0.5),
            "message 1 (user) reads",
        ),
        (
            [system("be kind"), *ask("what is the weather in Kyoto today?")],
            Settings(temperature=0.7),
            "settings.temperature is 0.7, recorded was 0.5",
        ),
        (
            [system("be kind"), *ask("what is the weather in Kyoto today?"), *ask("and?")],
            Settings(temperature=0.5),
            "it has 3 messages, the nearest recording 2",
        ),
    ],
)
def test_a_call_that_was_not_recorded_is_refused_and_the_difference_named(
    tmp_path: Path, messages: list[Message], settings: Settings, told: str
) -> None:
    record(tmp_path / "c")
    with pytest.raises(CassetteError) as caught:
        LLM(Replay(tmp_path / "c")).chat(messages, settings)
    assert told in str(caught.value)
    assert "record anew" in str(caught.value)
    if "Osaka" in messages[1]["content"]:
        assert "Osaka" in str(caught.value)
        assert "Kyoto" in str(caught.value)


def test_a_file_that_is_no_cassette_is_refused(tmp_path: Path) -> None:
    for content in ("", "{}", "hello", '{"cassette": 99, "model": "x", "capabilities": {}}', '{"cassette": 1}'):
        (tmp_path / "c").write_text(content)
        with pytest.raises(CassetteError):
            Replay(tmp_path / "c")
    with pytest.raises(CassetteError, match="record one with cassette:"):
        Replay(tmp_path / "none")


def test_a_recording_that_was_cut_off_leaves_no_cassette(tmp_path: Path) -> None:
    llm = LLM(Recording(Scripted(echo), tmp_path / "c"))
    llm.chat(ask("a"))
    assert not (tmp_path / "c").exists()
    assert (tmp_path / "c.part").exists()


def test_specs_that_name_nothing(tmp_path: Path) -> None:
    for spec, told in [
        (str(tmp_path / "nothing"), "names nothing that answers"),
        (str(tmp_path), "holds no run"),
        ("https://host/v1", "names no model"),
        ("env", "SEKKEI_LLM_URL and SEKKEI_LLM_MODEL not set"),
        (f"cassette:{tmp_path}/none", "no such cassette"),
    ]:
        with pytest.raises(UserError, match=told):
            open_llm(spec)
    with pytest.raises(UserError, match="either spec"):
        open_llm({})
    with pytest.raises(ConfigError, match="did you mean 'concurrency'"):
        open_llm({"spec": "env", "concurency": 3})


def test_open_llm_composes_the_layers(tmp_path: Path) -> None:
    record(tmp_path / "c")
    options = {"spec": f"cassette:{tmp_path}/c", "budget": {"calls": 1}, "trace": str(tmp_path / "t.jsonl")}
    llm = open_llm({**options, "cache": str(tmp_path / "cache")})
    llm.chat(ask("twice"))
    llm.chat(ask("twice"))  # from the cache: it costs no call
    with pytest.raises(BudgetError):
        llm.chat(ask("line\u2028separator\x85and\nmore"))
    assert len((tmp_path / "t.jsonl").read_text().split("\n")) == 4


def test_the_face_refuses_several_replies_where_one_is_given() -> None:
    llm = LLM(Scripted(echo))
    with pytest.raises(LLMError, match="use sample"):
        llm.chat(ask("a"), Settings(n=2))
    with pytest.raises(LLMError, match="use sample"):
        list(llm.stream(ask("a"), Settings(n=2)))
    assert [reply.text for reply in llm.sample(ask("a"), Settings(n=2))] == ["a/0", "a/1"]


def test_the_plain_face_works_where_a_loop_is_running_and_in_threads() -> None:
    llm = LLM(Scripted(echo))

    async def notebook_cell() -> str:
        return llm.chat(ask("cell")).text

    assert asyncio.run(notebook_cell()) == "cell/0"
    found: list[str] = []
    threads = [threading.Thread(target=lambda i=i: found.append(llm.chat(ask(str(i))).text)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"{i}/0" for i in range(8)]


def test_many_conversations_raise_the_first_failure_itself() -> None:
    llm = LLM(Scripted(lambda call: LLMError("bad") if call.messages[0]["content"] == "3" else "ok"))
    assert [reply.text for reply in llm.chat_many([ask("1"), ask("2")])] == ["ok", "ok"]
    with pytest.raises(LLMError, match="bad"):
        llm.chat_many([ask(str(i)) for i in range(6)])


def test_a_failure_in_a_stream_reaches_the_plain_face() -> None:
    class Broken(Scripted):
        async def stream(self, call: Call) -> AsyncGenerator[Piece, None]:
            yield Piece(text="a")
            raise TransientError("gone")

    pieces = LLM(Broken(echo)).stream(ask("x"))
    assert next(pieces).text == "a"
    with pytest.raises(TransientError, match="gone"):
        next(pieces)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("max_tokens", 0),
        ("n", 0),
        ("stop", "\n"),
        ("response_format", {"type": "x"}),
    ],
)
def test_settings_refuse_what_makes_no_sense(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message", [{"role": "robot", "content": "x"}, {"role": "user"}, {"role": "user", "content": None}]
)
def test_messages_that_are_none_are_refused(message: Message) -> None:
    with pytest.raises(LLMError):
        LLM(Scripted(echo)).chat([message])
    with pytest.raises(LLMError, match="at least one"):
        LLM(Scripted(echo)).chat([])


def test_a_script_that_has_run_out_says_so() -> None:
    llm = LLM(Scripted(["only"]))
    llm.chat(ask("a"))
    with pytest.raises(LLMError, match="no reply left"):
        llm.chat(ask("b"))
