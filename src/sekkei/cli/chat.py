"""`sekkei chat FOLDER`: talk to the newest model of a run, or to a Hugging Face folder, in a terminal or a pipe.

Replies go to standard output, everything else (the greeting, notes, the prompt sign) to standard error, so
`echo "Who are you?" | sekkei chat runs/laptop` prints the answer alone. In a pipe every line is a conversation of its
own, so a file of questions gets answers that do not depend on their order. Thinking is shown dim on a terminal
and in brackets elsewhere. Earlier turns that no longer fit the context are left out, with a note; what the
model thought and calculated in them is never shown to it again. A run's model may call the calculator that it learned
to use: its call is worked out, the result is shown, and it goes on. A model that was only pretrained knows no turns:
it continues what is typed.

It does not handle other tools (`sekkei agent`), several conversations, or saving one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed

MAX_CALLS = 4  # of the calculator, in one reply
SMALL = 50e6  # parameters; below that a run's model is one that learned on a laptop
HELP = """/reset          forget the conversation
/system TEXT    give a system message (and forget the conversation); no TEXT takes it back
/think on|off   let the model think first, or not
/help           this list
/quit           leave (or Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops a reply."""


def command(
    folder: Annotated[Path, typer.Argument(help="folder of a run, as runs/laptop, or a Hugging Face folder")],
    stage: Annotated[str | None, typer.Option(help="whose model: grpo, dpo, sft, pretrain.… [default: newest]")] = None,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token; 1 = as trained")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="most tokens of a reply, thinking included")] = 200,
    no_thinking: Annotated[bool, typer.Option("--no-thinking", help="start with thinking switched off")] = False,
    dtype: Annotated[str, typer.Option(help="of the weights: float32 or bfloat16")] = "float32",
) -> None:
    """Talk to a model; /help lists what else can be typed.

    \b
    Examples:
      sekkei chat runs/laptop
      sekkei chat runs/laptop --stage sft --temperature 0.7
      sekkei chat ./Llama-3.2-1B-Instruct --dtype bfloat16
      echo "start at 7, add 3, times 4, modulo 23" | sekkei chat runs/laptop
    """
    from sekkei.engine.engine import Engine
    from sekkei.engine.request import Sampling
    from sekkei.serve.opened import open_model

    opened = open_model(folder, stage, dtype=dtype)
    if max_tokens >= opened.model.config.max_context:
        room = opened.model.config.max_context
        raise UserError(f"--max-tokens={max_tokens} must be below the model's context of {room}")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, stop_tokens=opened.words.stop_tokens)
    piped = not sys.stdin.isatty()
    talk = Conversation(Engine(opened.model), opened.words, sampling, thinking=not no_thinking, fresh=piped)
    talk.calculates = opened.stage is not None
    _note(greeting(opened, folder))
    converse(talk, sys.stdin, sys.stdout)


def greeting(opened: Any, folder: Path) -> str:
    """What is talked to, and what may be expected of it."""
    size = sum(parameter.numel() for parameter in opened.model.parameters())
    tiny = size < SMALL and opened.stage is not None
    if not opened.words.chats:
        what = "it continues text and knows no turns"
    elif tiny:
        what = "it likes short everyday turns, chain arithmetic and sums"
    else:
        what = f"its context holds {opened.model.config.max_context} tokens"
    name = f"{opened.stage} of {folder}" if opened.stage is not None else str(folder)
    return f"{name}: a {'tiny ' if tiny else ''}model of {size / 1e6:.2g}M parameters; {what}. /help for help."


@dataclass
class Conversation:
    """What was said so far, and how the model is asked to go on.

    Args:
        engine: with the model. words: of the same model. sampling: of every reply.
        thinking: may it think first. fresh: every message begins a new conversation. calculates: its calls of the
            calculator are worked out.
    """

    engine: Any
    words: Any
    sampling: Any
    thinking: bool = True
    fresh: bool = False
    calculates: bool = False
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    asked: int = 0

    @property
    def base(self) -> bool:
        """The model continues text instead of answering."""
        return not self.words.chats

    @property
    def room(self) -> int:
        """Most tokens of a prompt that leave room for a whole reply."""
        return int(self.engine.model.config.max_context - self.sampling.max_tokens)

    def prompt(self, text: str, calls: Sequence[dict[str, str]] = ()) -> tuple[list[int], int]:
        """Ids to continue from, and how many earlier turns had to be left out.

        Args:
            calls: what it calculated for this reply so far, calls and results in turn.
        Raises:
            UserError: `text` alone does not fit the context.
        """
        if self.base:
            return self._fitting(self.words.plain(text)), 0
        head = [{"role": "system", "content": self.system}] if self.system else []
        dropped = 0
        while True:
            turns = [*self.turns[dropped:], {"role": "user", "content": text}, *calls]
            ids = self.words.chat([*head, *turns], thinking=self.thinking)
            if len(ids) <= self.room or dropped == len(self.turns):
                return self._fitting(ids), dropped
            dropped += 2  # a question and its answer

    def _fitting(self, ids: list[int]) -> list[int]:
        if len(ids) > self.room:
            raise UserError(
                f"that is {len(ids)} tokens; the context has room for {self.room} beside a reply of "
                f"{self.sampling.max_tokens} (--max-tokens)"
            )
        return ids

    def stream(self, ids: Sequence[int]) -> Iterator[int]:
        """The reply's token ids as they are drawn; with a temperature, each reply has its own seed."""
        from sekkei.engine.request import Request

        self.asked += 1
        request = Request(prompt_ids=tuple(ids), sampling=self.sampling, seed=derive_seed("chat", self.asked))
        for token, _ in self.engine.stream(request):
            yield token

    def results(self, reply: str) -> str:
        """The message that answers the calls of the calculator in a reply; empty where there are none."""
        from sekkei.data.tasks import calculator

        return calculator.results_text(calculator.respond(reply)) if self.calculates and not self.base else ""

    def remember(self, text: str, reply: str, dropped: int) -> None:
        """Add a finished turn; a base model's are not turns."""
        if not self.base and not self.fresh:
            said = {"role": "assistant", "content": reply.strip()}
            self.turns = [*self.turns[dropped:], {"role": "user", "content": text}, said]


def converse(talk: Conversation, source: TextIO, out: TextIO) -> None:
    """Read messages from `source` until it ends or says /quit, and stream replies to `out`."""
    for text in messages(source):
        if text.startswith("/"):
            if not obey(talk, text):
                return
            continue
        try:
            reply, dropped = answer(talk, text, out)
        except UserError as error:  # this message is too long, the conversation goes on
            _note(f"({error})")
            continue
        except KeyboardInterrupt:
            print(file=out, flush=True)
            _note("(stopped; this turn is forgotten)")
            continue
        talk.remember(text, reply, dropped)


def answer(talk: Conversation, text: str, out: TextIO) -> tuple[str, int]:
    """Stream the reply to one message, with the results of what it calculates on the way.

    Returns its last words, and how many earlier turns had to be left out.

    Raises:
        UserError: the message, or a call with its result, does not fit the context.
    """
    calls: list[dict[str, str]] = []
    noted = 0
    while True:
        ids, dropped = talk.prompt(text, calls)
        if dropped > noted:
            _note(f"(the {dropped} oldest messages are left out: the context holds {talk.room} tokens of them)")
            noted = dropped
        reply = show(talk, ids, out)
        results = talk.results(reply)
        if not results or len(calls) == 2 * MAX_CALLS:
            return reply, dropped
        dim, plain = marks_of(out)
        print(f"{dim}{results}{plain}", file=out, flush=True)
        calls += [{"role": "assistant", "content": reply.strip()}, {"role": "tool", "content": results}]


def marks_of(out: TextIO) -> tuple[str, str]:
    """What stands around thoughts and results: dim on a terminal, brackets elsewhere."""
    return ("\x1b[2m", "\x1b[0m") if out.isatty() and "NO_COLOR" not in os.environ else ("(", ")")


def messages(source: TextIO) -> Iterator[str]:
    """Messages typed or piped: stripped, empty ones skipped, lines that end with a backslash joined."""
    lines: list[str] = []
    while True:
        try:
            line = _read(source, "… " if lines else "> ")
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return
        if line is not None and line.endswith("\\"):
            lines.append(line.removesuffix("\\"))
            continue
        text = "\n".join([*lines, line or ""]).strip()
        lines = []
        if text:
            yield text
        if line is None:
            return


def obey(talk: Conversation, line: str) -> bool:
    """Do what a line that begins with a slash says; False for /quit."""
    verb, _, rest = line.partition(" ")
    rest = rest.strip()
    if verb == "/quit":
        return False
    if verb == "/help":
        _note(HELP)
    elif talk.base and verb in ("/reset", "/system", "/think"):
        _note("(a pretrained model knows no turns: every line is continued for itself)")
    elif verb == "/reset":
        talk.turns = []
        _note("(forgotten)")
    elif verb == "/system":
        talk.system, talk.turns = rest, []
        _note("(a new conversation with this system message)" if rest else "(a new conversation)")
    elif verb == "/think" and rest in ("on", "off"):
        talk.thinking = rest == "on"
        _note(f"(thinking is {rest})")
    else:
        _note(f"({line}: no such command)\n{HELP}")
    return True


def show(talk: Conversation, ids: Sequence[int], out: TextIO) -> str:
    """Stream a reply to `out`, thinking dim or in brackets; returns the visible text."""
    from tokenizers import decoders

    from sekkei.text.tokenizer import THINK, THINK_END

    dim, plain = marks_of(out)
    marks = re.compile(f"({re.escape(THINK)}|{re.escape(THINK_END)})")
    growing = decoders.DecodeStream(skip_special_tokens=False)
    visible: list[str] = []
    thinking = ended = False
    try:
        for token in talk.stream(ids):
            ended = token in talk.sampling.stop_tokens
            text = "" if ended else growing.step(talk.words.inner, token) or ""
            for piece in marks.split(text):  # a broken character is held back and comes with the next mark
                if piece == THINK and not thinking:
                    thinking = True
                    print(dim, end="", file=out)
                elif piece == THINK_END and thinking:
                    thinking = False
                    print(plain, file=out)
                else:
                    print(piece, end="", file=out)
                    visible += [] if thinking else [piece]
            out.flush()
    finally:
        if thinking:
            print(plain, end="", file=out, flush=True)
    print(file=out, flush=True)
    if not ended:
        _note(f"(cut off after {talk.sampling.max_tokens} tokens; --max-tokens allows more)")
    return "".join(visible)


def _read(source: TextIO, sign: str) -> str | None:
    """One line without its end, None at the end of the input."""
    typed = source is sys.stdin and source.isatty()
    if not typed or not sys.stdout.isatty():
        if typed:
            print(sign, end="", file=sys.stderr, flush=True)
        line = source.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None
    import readline  # noqa: F401 (line editing and history for input())

    try:
        return input(sign)
    except EOFError:
        print(file=sys.stderr)
        return None


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
