"""Conversations for SFT from files in the ecosystem's formats, and which of their turns are learned.

    messages    {"messages": [{"role": "user", "content": "…"}, …]}                     OpenAI, TRL
    alpaca      {"instruction": "…", "input": "…", "output": "…"}                       Stanford Alpaca; "system" too
    sharegpt    {"conversations": [{"from": "human", "value": "…"}, …]}                 also gpt, system, tool names

as JSON, JSONL or Parquet, told by the keys of each record. `hub:` addresses as in text/read/hub.py are read by
`datasets`. A turn's text may stand in parts ({"type": "text", "text": "…"}), which are read one after the other. What
cannot be learned from is left out and counted by reason: nothing is repaired in silence, except that turns after the
last assistant turn are cut off ("trimmed"). It does not handle images and sounds (left out as "media"), or tool calls
as structured fields.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sekkei.core.errors import UserError
from sekkei.text.chat import Rendered

Learn = Literal["all", "last"]
Conversation = list[dict[str, str]]
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
ROLES = frozenset({"system", "user", "assistant", "tool"})
HUB = "hub:"


class Unfit(Exception):
    """A record that cannot be learned from; its text is the reason's short name."""


def read_conversations(path: str) -> tuple[list[Conversation], dict[str, float]]:
    """All conversations of a file that can be learned from, and the counts of what was left out or trimmed.

    Args:
        path: a .json, .jsonl or .parquet file, or `hub:OWNER/NAME`, `hub:OWNER/NAME:SPLIT:CONFIG`.
    Raises:
        UserError: the file is missing or damaged, is in no known format, or nothing in it can be learned from.
    """
    kept: list[Conversation] = []
    counts: Counter[str] = Counter()
    for where, record in records(path):
        try:
            messages = to_messages(record, where)
            checked = check_conversation(messages)
        except Unfit as reason:
            counts[f"conversations/dropped_{reason}"] += 1
            continue
        counts["conversations/trimmed"] += len(checked) < len(messages)
        kept.append(checked)
    if not kept:
        why = ", ".join(f"{n} {name.removeprefix('conversations/dropped_')}" for name, n in counts.items() if n)
        raise UserError(f"{path}: no conversation to learn from" + (f" (left out: {why})" if why else ""))
    return kept, {name: float(n) for name, n in counts.items() if n}


def records(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, record) of a file; for other formats of pairs and answers too.

    Raises:
        UserError: see `read_conversations`.
    """
    if path.startswith(HUB):
        yield from _hub(path)
        return
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; give a .json, .jsonl(.gz) or .parquet file, or hub:OWNER/NAME")
    if file.suffix == ".parquet":
        rows = _parquet(file)
    elif file.suffix == ".json":
        rows = _json(file)
    elif file.name.endswith((".jsonl", ".jsonl.gz")):
        rows = _jsonl(file)
    else:
        raise UserError(f"{path}: the name must end in .json, .jsonl, .jsonl.gz or .parquet")
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: a record must be a JSON object, got {type(row).__name__}")
        yield where, row


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    import gzip

    opened = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        with opened(file, "rt", encoding="utf-8") as lines:  # type: ignore[operator]
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file}:{number}: cannot be read ({error})") from None


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not isinstance(data, list):
        raise UserError(f"{file}: must be a list of records; one object per line belongs into a .jsonl file")
    for number, row in enumerate(data):
        yield f"{file}[{number}]", row


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    for number, row in enumerate(table.to_pylist()):
        yield f"{file}[{number}]", row


def _hub(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from sekkei.text.read.hub import rows_of  # it imports pyarrow
    except ImportError as error:
        raise UserError(f"{path} needs the library datasets ({error}): pip install 'sekkei[hub]'") from None
    yield from rows_of(path)


def to_messages(record: Mapping[str, Any], where: str) -> Conversation:
    """A record of any of the formats as messages, unchecked.

    Raises:
        UserError: no known format. Unfit: media (see `text_of`).
    """
    if "messages" in record:
        turns: Any = record["messages"]
        return [_turn(t, "role", "content", where) for t in _listed(turns, "messages", where)]
    if "conversations" in record:
        turns = _listed(record["conversations"], "conversations", where)
        found = [_turn(t, "from", "value", where) for t in turns]
        found = [{**turn, "role": SHAREGPT_ROLES.get(turn["role"], turn["role"])} for turn in found]
        return _with_system(record, found)
    if "instruction" in record and "output" in record:
        asked = [str(record["instruction"] or ""), str(record.get("input") or "")]
        user = "\n\n".join(part for part in asked if part.strip())
        answer = {"role": "assistant", "content": str(record["output"] or "")}
        return _with_system(record, [{"role": "user", "content": user}, answer])
    raise UserError(
        f"{where}: keys {', '.join(sorted(record)) or '(none)'} are no known format: needs 'messages', "
        "'conversations', or 'instruction' and 'output'"
    )


def _listed(value: Any, key: str, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list of turns, got {type(value).__name__}")
    return value


def _turn(turn: Any, role: str, content: str, where: str) -> dict[str, str]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get(role), str):
        raise UserError(f"{where}: a turn needs {role!r} and {content!r}, got {turn!r:.80}")
    made = {"role": turn[role], "content": text_of(turn.get(content), where)}
    if isinstance(turn.get("reasoning_content"), str):
        made["reasoning_content"] = turn["reasoning_content"]
    return made


def text_of(content: Any, where: str) -> str:
    """A turn's text, "" for none; of a list of parts the texts one after the other, as chat templates write them.

    Raises:
        Unfit: media (a part that is no text: an image, a sound, a file). UserError: a part without type or text.
    """
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or (kind == "text" and not isinstance(part.get("text"), str)):
            raise UserError(f"{where}: a part of a turn needs 'type' and, if that is text, 'text', got {part!r:.80}")
        if kind != "text":
            raise Unfit("media")
        texts.append(part["text"])
    return "".join(texts)


def _with_system(record: Mapping[str, Any], turns: Conversation) -> Conversation:
    system = record.get("system")
    return [{"role": "system", "content": system}, *turns] if isinstance(system, str) and system.strip() else turns


def check_conversation(messages: Sequence[dict[str, str]]) -> Conversation:
    """The conversation up to its last assistant turn.

    Raises:
        Unfit: role (unknown), system (two, or not first), empty (a turn without text), no_answer, no_question.
    """
    if any(message["role"] not in ROLES for message in messages):
        raise Unfit("role")
    if any(message["role"] == "system" for message in messages[1:]):
        raise Unfit("system")
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    kept = list(messages[: last + 1])
    if not kept:
        raise Unfit("no_answer")
    if any(not (message["content"].strip() or message.get("reasoning_content", "").strip()) for message in kept):
        raise Unfit("empty")
    if not any(message["role"] in ("user", "tool") for message in kept[:-1]):
        raise Unfit("no_question")
    return kept


def learned_turns(rendered: Rendered, learn: Learn) -> Rendered:
    """The conversation with every assistant turn learned, or the last alone.

    Between two assistant turns stands at least the token that opens the second.
    """
    if learn == "all":
        return rendered
    flags = list(rendered.learned)
    end = max((i for i, flag in enumerate(flags) if flag), default=-1)
    start = end
    while start > 0 and flags[start - 1]:
        start -= 1
    return replace(rendered, learned=[start <= i <= end and flag for i, flag in enumerate(flags)])


def fitting(rendered: Iterable[Rendered], longest: int) -> tuple[list[Rendered], dict[str, float]]:
    """Those of at most `longest` tokens; the others are left out and counted, never cut: a cut answer has no end."""
    kept, dropped = [], 0
    for one in rendered:
        if len(one.ids) <= longest:
            kept.append(one)
        else:
            dropped += 1
    return kept, {"conversations/dropped_long": float(dropped)} if dropped else {}
