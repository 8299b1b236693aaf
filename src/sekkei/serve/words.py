"""What a model speaks: text and conversations to token ids and back, for our own tokenizers and for others'.

    own      tokenizer.json with our special tokens + chat template: contents cannot hold special tokens (text/chat.py)
    foreign  any Hugging Face folder with tokenizer.json; the chat template is rendered as transformers renders it
             (Jinja, trimmed blocks, `messages`, `tools`, `add_generation_prompt`, `enable_thinking`)

A template that knows no tools gets them as a system message, in the words that Qwen 3 and Hermes models are trained
on: the model answers with <tool_call>{"name": …, "arguments": …}</tool_call>.

It does not handle tokenizers without tokenizer.json (sentencepiece files, tiktoken ranks), or templates that need
Python code.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from sekkei.core.errors import UserError
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import SPECIAL, THINK, THINK_END, Tokenizer, default_template

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
CALL, CALL_END = "<tool_call>", "</tool_call>"
TOOLS_TEXT = """You may call one or more functions to help with the question.

These are the functions, one JSON object per line:
{tools}

To call one, write a JSON object with its name and arguments between {call} and {end}:
{call}{{"name": "...", "arguments": {{...}}}}{end}"""
BROKEN = "\ufffd"


class Words(Protocol):
    """What a served model speaks.

    Attributes:
        inner: decodes, also token by token. stop_tokens: ids that end an answer. chats: it knows turns.
    """

    inner: tokenizers.Tokenizer
    stop_tokens: tuple[int, ...]
    chats: bool

    def plain(self, text: str) -> list[int]:
        """Ids of a text to go on from, the mark of a beginning included where the model was trained with one."""
        ...

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool] = (), thinking: bool = True) -> list[int]:
        """Ids of a conversation up to where the assistant begins to write.

        Raises:
            UserError: the template refuses these messages.
        """
        ...


class OwnWords:
    """Of a model trained by sekkei.

    Args:
        inner: the same tokenizer as the library's object. chats: False for a model that was only pretrained.
    """

    def __init__(self, tokenizer: Tokenizer, inner: tokenizers.Tokenizer, chats: bool = True) -> None:
        self.tokenizer, self.inner, self.chats = tokenizer, inner, chats
        self.stop_tokens = (tokenizer.end_id,)

    def plain(self, text: str) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool] = (), thinking: bool = True) -> list[int]:
        return encode_prompt(self.tokenizer, with_tools_as_text(messages, tools), thinking)


class ForeignWords:
    """Of a Hugging Face folder.

    Raises:
        UserError: tokenizer.json is missing or unreadable, or no token ends an answer.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{folder}: no readable tokenizer.json there ({error})") from None
        self.inner.no_truncation()
        self.inner.no_padding()
        settings = read_json(folder / "tokenizer_config.json")
        self.marks = {f"{name}_token": _content(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
        self.stop_tokens = self._ends(folder)
        template = _template(folder, settings)
        self.chats = template is not None
        self._knows_tools = template is not None and "tools" in template
        self._template = _environment().from_string(template) if template is not None else None

    def plain(self, text: str) -> list[int]:
        return self.inner.encode(text).ids

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool] = (), thinking: bool = True) -> list[int]:
        if self._template is None:
            raise UserError("this model has no chat template: it continues text and knows no turns")
        if not self._knows_tools:
            messages, tools = with_tools_as_text(messages, tools), ()
        try:
            text = self._template.render(
                messages=[_with_parsed_arguments(message) for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=True,
                enable_thinking=thinking,
                **{name: mark or "" for name, mark in self.marks.items()},
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses these messages: {error}") from None
        return self.inner.encode(text, add_special_tokens=False).ids

    def _ends(self, folder: Path) -> tuple[int, ...]:
        """Ids that end an answer: those of the configs, and the tokenizer's own end mark."""
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            stated = read_json(folder / name).get("eos_token_id")
            found += stated if isinstance(stated, list) else [] if stated is None else [stated]
        if self.marks["eos_token"]:
            own = self.inner.token_to_id(self.marks["eos_token"])
            found += [] if own is None else [own]
        if not found:
            raise UserError(f"{folder}: no config names a token that ends an answer (eos_token_id, eos_token)")
        return tuple(dict.fromkeys(found))


def open_words(folder: Path, chats: bool | None = None) -> OwnWords | ForeignWords:
    """The words of a tokenizer folder.

    Args:
        chats: None: whether there is a chat template decides.
    Raises:
        UserError: no tokenizer there can be read.
    """
    foreign = ForeignWords(folder)
    foreign.chats = foreign.chats and chats is not False
    if any(foreign.inner.token_to_id(token) is None for token in SPECIAL):
        return foreign
    foreign.inner.post_processor = None  # what `sekkei export` adds for others: here <|bos|> is put first by hand
    template = _template(folder, read_json(folder / "tokenizer_config.json")) or default_template()
    return OwnWords(Tokenizer(foreign.inner, template), foreign.inner, foreign.chats)


def with_tools_as_text(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Tools and calls written into contents, for a template that knows neither."""
    said: list[Message] = []
    for message in messages:
        content = message.get("content") or ""
        for call in message.get("tool_calls") or ():
            function = call["function"]
            asked = {"name": function["name"], "arguments": _parsed(function.get("arguments"))}
            content += f"{CALL}{json.dumps(asked, ensure_ascii=False)}{CALL_END}"
        kept = {key: value for key, value in message.items() if key in ("role", "reasoning_content")}
        said.append(kept | {"content": content})
    if not tools:
        return said
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = TOOLS_TEXT.format(tools=lines, call=CALL, end=CALL_END)
    if said and said[0]["role"] == "system":
        return [{**said[0], "content": f"{said[0]['content']}\n\n{text}"}, *said[1:]]
    return [{"role": "system", "content": text}, *said]


class Pieces:
    """What single tokens say: their text, and their bytes where the vocabulary is one of bytes (GPT-2's alphabet)."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self.inner = inner
        self._bytes_of = byte_alphabet()
        self._special = {token.content for token in inner.get_added_tokens_decoder().values()}

    def raw(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        piece = self.inner.id_to_token(token)
        if piece is None:
            return b""
        if piece not in self._special and all(c in self._bytes_of for c in piece):
            return bytes(self._bytes_of[c] for c in piece)
        return self.inner.decode([token], skip_special_tokens=False).encode()

    def text(self, token: int) -> str:
        """As `raw`; bytes that are no whole character are spelled `bytes:\\xe3`, as OpenAI's completions do."""
        raw = self.raw(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def byte_alphabet() -> dict[str, int]:
    """Character -> byte in byte-level vocabularies (Radford et al. 2019): printable ones stand for themselves."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def parted(text: str, inside: bool = False) -> tuple[str | None, str]:
    """(thinking or None, visible text) of an answer as far as it has come.

    Args:
        inside: the prompt ended in an open think block.
    """
    if not inside:
        start = text.lstrip()
        if not start.startswith(THINK):
            return None, text
        text = start.removeprefix(THINK)
    thinking, closed, visible = text.partition(THINK_END)
    return thinking, visible if closed else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a JSON object")
    return data


def _content(mark: Any) -> str | None:
    """Special tokens are written as text, or as an object with it."""
    return mark.get("content") if isinstance(mark, dict) else mark


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    stated = settings.get("chat_template")
    if isinstance(stated, list):  # several by name
        by_name = {entry["name"]: entry["template"] for entry in stated}
        return by_name.get("default") or next(iter(by_name.values()), None)
    return stated


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what is learned; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 (the library's own declaration)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """As transformers sets it up (`render_jinja_template`)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _parsed(arguments: Any) -> Any:
    """Arguments of a call come as JSON text; templates want the object."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments or {}
    except ValueError:
        return arguments


def _with_parsed_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return {**message, "content": message.get("content") or ""}
    calls = [
        {**call, "function": {**call["function"], "arguments": _parsed(call["function"].get("arguments"))}}
        for call in message["tool_calls"]
    ]
    return {**message, "content": message.get("content") or "", "tool_calls": calls}
