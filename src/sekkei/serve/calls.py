"""Tool calls in what a model writes, and schemas that make it write one.

    Let me look. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>     auto: parsed out of the text
    {"name": "add", "arguments": {"a": 1}}                                         required or named: by a schema

The form in the text is that of Hermes and Qwen models. A block that is no JSON object with a name stays text. It does
not handle other forms of calls (Llama 3's bare JSON, Python-like calls).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sekkei.serve.words import CALL, CALL_END

Tool = Mapping[str, Any]


def forced_schema(tools: Sequence[Tool], name: str | None) -> dict[str, Any]:
    """JSON schema of one call of `name`, or of any of `tools`.

    Raises:
        KeyError: no tool of that name.
    """
    offered = {tool["function"]["name"]: tool["function"] for tool in tools}
    chosen = [offered[name]] if name is not None else list(offered.values())
    calls = [_call_schema(function) for function in chosen]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": function.get("parameters") or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def read_call(text: str) -> dict[str, Any] | None:
    """A call in OpenAI's shape, or None where the text is none."""
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or not isinstance(asked.get("name"), str):
        return None
    arguments = asked.get("arguments", {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": asked["name"], "arguments": written},
    }


class CallText:
    """Parts a growing text into what is shown and the calls in it.

    Attributes:
        calls: found so far.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._held = ""

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """More text; what of it is shown now, and the calls that it completed."""
        self._held += text
        shown, found = [], []
        while True:
            start = self._held.find(CALL)
            if start < 0:
                keep = next((n for n in range(len(CALL) - 1, 0, -1) if self._held.endswith(CALL[:n])), 0)
                shown.append(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                break
            end = self._held.find(CALL_END, start)
            if end < 0:
                shown.append(self._held[:start])
                self._held = self._held[start:]
                break
            call = read_call(self._held[start + len(CALL) : end])
            after = end + len(CALL_END)
            shown.append(self._held[:start] if call else self._held[:after])
            found += [call] if call else []
            self._held = self._held[after:]
        self.calls += found
        return "".join(shown), found

    def end(self) -> str:
        """No text follows: what was held back is shown."""
        held, self._held = self._held, ""
        return held
