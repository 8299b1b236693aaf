"""Traces: what a run leaves, that it replays without model and tools, and that every difference is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekkei.agent import builtin
from sekkei.agent.loop import Agent, AgentConfig, Outcome
from sekkei.agent.registry import from_function
from sekkei.agent.trace import Recorder, TraceError, read, replay
from sekkei.llm import LLM, LLMError, Reply
from sekkei.llm.protocol import ToolCall
from sekkei.llm.scripted import Scripted

TASK = "How much is 6*7, and is it noted?"


def note(text: str) -> str:
    """Write a note."""
    return f"noted {text}"


def record(path: Path, protocol: str = "native", last: Any = "It is 42.", **config: Any) -> Outcome:
    asked = (
        ToolCall("a", "calculator", '{"expression": "6*7"}'),
        ToolCall("b", "note", '{"text": "42"}'),
        ToolCall("c", "note", "{"),
    )
    first = Reply(text="", tool_calls=asked) if protocol == "native" else "<tool> calculator : 6*7 </tool>"
    tools = [builtin.calculator(), from_function(note, writes=True)]
    script = ["1. calculate", first, last] if config.get("plan") else [first, last]
    with Recorder(path) as recorder:
        agent = Agent(
            LLM(Scripted(script)),
            tools,
            AgentConfig(protocol=protocol, **config),
            approve=lambda tool, arguments: "not now",
            listen=recorder,
        )
        return agent.run(TASK)


@pytest.mark.parametrize("protocol", ["native", "text", "trained"])
@pytest.mark.parametrize("plan", [False, True])
def test_a_replay_ends_as_the_run_did(tmp_path: Path, protocol: str, plan: bool) -> None:
    if plan and protocol == "trained":
        pytest.skip("a trained protocol has no plan")
    outcome = record(tmp_path / "run.jsonl", protocol, plan=plan)
    assert outcome.answer == "It is 42."
    assert replay(tmp_path / "run.jsonl") == outcome


def test_a_trace_holds_everything(tmp_path: Path) -> None:
    outcome = record(tmp_path / "deep" / "run.jsonl")
    events = read(tmp_path / "deep" / "run.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds == ["start", "clock", "reply", "approval", "tool", "tool", "tool", "clock", "reply", "clock", "end"]
    assert (events[0]["task"], events[0]["model"]) == (TASK, "scripted")
    assert [tool["schema"]["function"]["name"] for tool in events[0]["tools"]] == ["calculator", "note"]
    assert (events[3]["allowed"], events[3]["reason"]) == (False, "not now")
    assert [(event["tool"], event["failed"]) for event in events[4:7]] == [
        *(("calculator", False), ("note", True), ("note", True)),
    ]
    said = [message for event in events if event["event"] == "reply" for message in event["messages"]]
    assert said == [dict(message) for message in outcome.messages[:-1]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def another_result(events: list[dict[str, Any]]) -> None:
    next(event for event in events if event["event"] == "tool")["result"] = "43"


def another_reply(events: list[dict[str, Any]]) -> None:
    [event for event in events if event["event"] == "reply"][-1]["reply"]["text"] = "It is 43."


def another_call(events: list[dict[str, Any]]) -> None:
    next(event for event in events if event["event"] == "tool")["arguments"] = '{"expression": "1"}'


def another_limit(events: list[dict[str, Any]]) -> None:
    events[0]["config"]["max_steps"] = 1


def fewer(events: list[dict[str, Any]]) -> None:
    del events[-3:]


def another_version(events: list[dict[str, Any]]) -> None:
    events[0]["version"] = 99


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_result, "asks the model something else than was recorded"),
        (another_reply, "ends with answer='It is 43.'"),
        (another_call, "recorded is calculator"),
        (another_limit, "ends"),
        (fewer, "before the run did"),
        (another_version, "has version 99"),
        (list.clear, "is no trace of an agent"),
    ],
)
def test_what_was_changed_does_not_replay(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], words: str
) -> None:
    path = tmp_path / "run.jsonl"
    record(path)
    events = lines_of(path)
    change(events)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(TraceError, match=words):
        replay(path)


def test_other_tools_or_another_task_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    outcome = record(path)
    same = [builtin.calculator(), from_function(note, writes=True)]
    assert replay(path, same, TASK) == outcome
    with pytest.raises(TraceError, match="asks the model something else"):
        replay(path, same[:1])
    with pytest.raises(TraceError, match="asks the model something else"):
        replay(path, task="another")


def test_a_model_that_failed_fails_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(LLMError, match="busy"):
        record(path, last=LLMError("busy"))
    with pytest.raises(LLMError, match="busy"):
        replay(path)


def test_a_torn_line_is_left_out_and_other_damage_said(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    assert len(read(path)) == len(whole.splitlines()) - 1
    path.write_text("{}\n" + whole)
    with pytest.raises(TraceError, match="line 1 is no event"):
        read(path)
    path.write_text("not json\n" + whole)
    with pytest.raises(TraceError, match="line 1 is not JSON"):
        read(path)
    with pytest.raises(TraceError, match="cannot be read"):
        read(tmp_path / "missing")
