"""One renderer of conversations, for SFT, reinforcement learning, chat and the server.

The template is Jinja in the Hugging Face convention (`messages`, `add_generation_prompt`,
`{% generation %}` around what the model is to learn), so the same file works in `transformers`:

    <|bos|><|user|>Hello<|end|><|assistant|><think>…</think>Hi!<|end|>
                                            └── learned ───────────┘

A message is {"role", "content"} plus, for the assistant, an optional "reasoning_content"; "" renders
an empty think block, an absent key none. Special tokens inside contents are written with spaces
(`<| end |>`), so that no text can close its own turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from sekkei.core.errors import UserError
from sekkei.text.tokenizer import BOS, END, SPECIAL, THINK, THINK_END, Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters that frame learned spans while rendering
_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: frames its body."""

    tags = {"generation"}  # noqa: RUF012 (the library's own declaration)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_frame"), [], [], body).set_lineno(line)

    def _frame(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=[_Generation], undefined=jinja2.Undefined)
    return environment.from_string(template)


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation and, for each, whether the model is to learn it."""

    ids: list[int]
    learned: list[bool]


def render(
    template: str, messages: Sequence[Message], *, add_generation_prompt: bool = False, enable_thinking: bool = True
) -> list[tuple[str, bool]]:
    """Text of a conversation as (piece, learned) spans.

    Raises:
        UserError: a message without a known role or without text.
    """
    text = _compile(template).render(
        messages=[_checked(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
        bos_token=BOS,
        eos_token=END,
    )
    spans = []
    for piece in re.split(f"({_OPEN}[^{_CLOSE}]*{_CLOSE})", text):
        if piece:
            spans.append((piece.strip(_OPEN + _CLOSE), piece.startswith(_OPEN)))
    return spans


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """A whole conversation for training.

    Raises:
        UserError: nothing in it is learned, or a learned span does not end with the stop token (a model
            trained on that would never stop).
    """
    spans = render(tokenizer.template, messages)
    encoded = tokenizer.encode_many([piece for piece, _ in spans], trusted=True)
    ids = [token for piece in encoded for token in piece]
    learned = [flag for piece, (_, flag) in zip(encoded, spans, strict=True) for _ in piece]
    ends = [piece[-1:] == [tokenizer.end_id] for piece, (_, flag) in zip(encoded, spans, strict=True) if flag]
    if not ends or not all(ends):
        raise UserError(
            f"the chat template must put {END} inside {{% generation %}} of every assistant turn: "
            "without it in the loss the model never stops"
        )
    return Rendered(ids, learned)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], enable_thinking: bool = True) -> list[int]:
    """The conversation up to where the assistant begins to write."""
    spans = render(tokenizer.template, messages, add_generation_prompt=True, enable_thinking=enable_thinking)
    return tokenizer.encode_trusted("".join(piece for piece, _ in spans))


@dataclass(frozen=True)
class Reply:
    """What an assistant wrote: the think block (None where there is none) and the visible content."""

    reasoning: str | None
    content: str
    ended: bool


def parse_reply(text: str) -> Reply:
    """Split a completion. An unclosed think block is all reasoning; `ended` means the stop token came last."""
    ended = text.endswith(END)
    text = text.removesuffix(END)
    if not text.startswith(THINK):
        return Reply(None, text, ended)
    reasoning, closed, content = text.removeprefix(THINK).partition(THINK_END)
    return Reply(reasoning, content if closed else "", ended)


def _checked(message: Message) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; known roles: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"a message of role {role!r} has no text in 'content'")
    reasoning = message.get("reasoning_content")
    if role == "assistant" and reasoning is None and content.startswith(THINK) and THINK_END in content:
        reasoning, _, content = content.removeprefix(THINK).partition(THINK_END)
    checked = {"role": role, "content": _plain(content)}
    if reasoning is not None:
        checked["reasoning_content"] = _plain(reasoning)
    return checked


def _plain(text: str) -> str:
    """Contents cannot hold special tokens or our frames."""
    text = text.replace(_OPEN, "").replace(_CLOSE, "")
    return _SPECIAL.sub(lambda match: re.sub(r"(<\|?/?)(\w+)(\|?>)", r"\1 \2 \3", match.group()), text)
