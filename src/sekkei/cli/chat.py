"""`sekkei chat RUN_DIR`: talk to the newest model of a run, in a terminal or through a pipe.

Replies go to standard output, everything else (the greeting, notes, the prompt sign) to standard error, so
`echo "Who are you?" | sekkei chat runs/laptop` prints the answer alone. Thinking is shown dim on a terminal
and in brackets elsewhere. Earlier turns that no longer fit the context are left out, with a note; what the
model thought in them is never shown to it again. A model that was only pretrained knows no turns: it
continues what is typed.

It does not handle tools, several conversations, or saving one.
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

ALIGNED = ("grpo", "dpo", "sft")  # newest first; pretraining stages come after them
HELP = """/reset          forget the conversation
/system TEXT    give a system message (and forget the conversation); no TEXT takes it back
/think on|off   let the model think first, or not
/help           this list
/quit           leave (or Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops a reply."""


def command(
    run_dir: Annotated[Path, typer.Argument(help="folder of a run, as runs/laptop")],
    stage: Annotated[str | None, typer.Option(help="whose model: grpo, dpo, sft, pretrain.… [default: newest]")] = None,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token; 1 = as trained")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="most tokens of a reply, thinking included")] = 200,
    no_thinking: Annotated[bool, typer.Option("--no-thinking", help="start with thinking switched off")] = False,
) -> None:
    """Talk to the model of a run; /help lists what else can be typed.

    \b
    Examples:
      sekkei chat runs/laptop
      sekkei chat runs/laptop --stage sft --temperature 0.7
      echo "start at 7, add 3, times 4, modulo 23" | sekkei chat runs/laptop
    """
    chosen = choose_stage(run_dir, stage)
    from sekkei.engine.engine import Engine
    from sekkei.engine.request import Sampling
    from sekkei.stages.model_artifact import load_model
    from sekkei.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(run_dir / "tokenizer")
    model = load_model(run_dir / chosen / "model")
    if max_tokens >= model.config.max_context:
        raise UserError(f"--max-tokens={max_tokens} must be below the model's context of {model.config.max_context}")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, stop_tokens=(tokenizer.end_id,))
    talk = Conversation(Engine(model), tokenizer, sampling, base=chosen not in ALIGNED, thinking=not no_thinking)
    size = sum(parameter.numel() for parameter in model.parameters())
    what = "continues text and knows no turns" if talk.base else "likes short everyday turns and chain arithmetic"
    _note(f"{chosen} of {run_dir}: a tiny model of {size / 1e6:.2g}M parameters; it {what}. /help for help.")
    converse(talk, sys.stdin, sys.stdout)


def choose_stage(run_dir: Path, wanted: str | None = None) -> str:
    """The stage whose model to load: `wanted`, or the newest finished one.

    Raises:
        UserError: no run there, no finished model, or `wanted` is not one of them.
    """
    from sekkei.core.config import read_yaml

    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(f"{run_dir}: holds no run (recipe.yaml is missing); sekkei run writes one")
    pretrained = [f"pretrain.{key}" for key in reversed(list(read_yaml(recipe).get("pretrain") or {}))]
    finished = [
        name
        for name in (*ALIGNED, *pretrained)
        if (run_dir / name / "done.json").is_file() and (run_dir / name / "model").is_dir()
    ]
    if not finished:
        raise UserError(
            f"{run_dir}: no stage has finished a model yet; go on with sekkei run {recipe} --run-dir {run_dir}"
        )
    if wanted is None:
        return finished[0]
    if wanted not in finished:
        raise UserError(f"--stage={wanted}: {run_dir} has no finished model of it; it has {', '.join(finished)}")
    return wanted


@dataclass
class Conversation:
    """What was said so far, and how the model is asked to go on.

    Args:
        engine: with the model. tokenizer: of the same run. sampling: of every reply.
        base: the model continues text instead of answering. thinking: may it think first.
    """

    engine: Any
    tokenizer: Any
    sampling: Any
    base: bool = False
    thinking: bool = True
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    asked: int = 0

    @property
    def room(self) -> int:
        """Most tokens of a prompt that leave room for a whole reply."""
        return int(self.engine.model.config.max_context - self.sampling.max_tokens)

    def prompt(self, text: str) -> tuple[list[int], int]:
        """Ids to continue from, and how many earlier turns had to be left out.

        Raises:
            UserError: `text` alone does not fit the context.
        """
        from sekkei.text.chat import encode_prompt

        if self.base:
            ids = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
            return self._fitting(ids), 0
        head = [{"role": "system", "content": self.system}] if self.system else []
        dropped = 0
        while True:
            turns = [*self.turns[dropped:], {"role": "user", "content": text}]
            ids = encode_prompt(self.tokenizer, [*head, *turns], self.thinking)
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

    def remember(self, text: str, reply: str, dropped: int) -> None:
        """Add a finished turn; a base model's are not turns."""
        if not self.base:
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
            ids, dropped = talk.prompt(text)
        except UserError as error:  # this message is too long, the conversation goes on
            _note(f"({error})")
            continue
        if dropped:
            _note(f"(the {dropped} oldest messages are left out: the context holds {talk.room} tokens of them)")
        try:
            reply = show(talk, ids, out)
        except KeyboardInterrupt:
            print(file=out, flush=True)
            _note("(stopped; this turn is forgotten)")
            continue
        talk.remember(text, reply, dropped)


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
    from sekkei.text.tokenizer import END, THINK, THINK_END

    dim, plain = ("\x1b[2m", "\x1b[0m") if out.isatty() and "NO_COLOR" not in os.environ else ("(", ")")
    marks = re.compile(f"({re.escape(THINK)}|{re.escape(THINK_END)}|{re.escape(END)})")
    visible: list[str] = []
    thinking = ended = False
    try:
        for text in talk.tokenizer.decode_stream(talk.stream(ids)):
            for piece in marks.split(text):  # a broken character is held back and comes with the next mark
                if piece == THINK and not thinking:
                    thinking = True
                    print(dim, end="", file=out)
                elif piece == THINK_END and thinking:
                    thinking = False
                    print(plain, file=out)
                elif piece == END:
                    ended = True
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
