"""`sekkei tokenizer ACTION`: learn byte-level BPE from documents, and compare tokenizers by how much they compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sekkei.core.errors import UserError


def train(
    path: Annotated[Path, typer.Argument(help="texts: any format of `sekkei data clean`")],
    out: Annotated[Path, typer.Option("--out", help="folder for tokenizer.json and its companions")],
    vocab_size: Annotated[int, typer.Option(help="tokens, special ones included")] = 4096,
    train_bytes: Annotated[int, typer.Option(help="most bytes of text to learn from")] = 8_000_000,
    max_digits: Annotated[int, typer.Option(help="most digits of one token; 1 splits numbers into digits")] = 2,
) -> None:
    """Learn a byte-level BPE tokenizer and write it in the Hugging Face layout, chat template included.

    \b
    Examples:
      sekkei tokenizer train cleaned --out tok --vocab-size 8192
    """
    from sekkei.text.pipeline.plan import texts_of
    from sekkei.text.tokenizer import TokenizerConfig, train_tokenizer

    config = TokenizerConfig(vocab_size=vocab_size, train_bytes=train_bytes, max_digits=max_digits)
    tokenizer = train_tokenizer(texts_of(path), config)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.vocab_size:,} tokens")


def evaluate(
    tokenizers: Annotated[list[str], typer.Argument(help="run folders, tokenizer.json files or folders, *.tiktoken")],
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="DOMAIN=FILE to measure on, repeatable [default: built in]")
    ] = None,
) -> None:
    """Print bytes per token per domain, a row per tokenizer: more bytes per token mean shorter sequences.

    Without --text four short built-in samples are measured: English, Japanese, code and maths.

    \b
    Examples:
      sekkei tokenizer eval runs/laptop
      sekkei tokenizer eval tok gpt2/tokenizer.json cl100k_base.tiktoken --text ja=jsquad.txt
    """
    from sekkei.text.compression import SAMPLES, measure, open_tokenizer

    domains = dict(SAMPLES)
    if texts:
        domains = {}
        for item in texts:
            name, equals, file = item.partition("=")
            if not equals or not Path(file).is_file():
                raise UserError(f"--text={item}: must be DOMAIN=FILE with a file that is there")
            domains[name] = Path(file).read_bytes().decode("utf-8", "replace")
    opened = {name: open_tokenizer(Path(name)) for name in tokenizers}
    width = max(9, *map(len, opened))
    print(f"{'tokenizer':<{width}}  {'vocabulary':>10}  " + "  ".join(f"{name:>9}" for name in domains))
    for name, (size, encode) in opened.items():
        figures = "  ".join(f"{measure(encode, text):>9.3f}" for text in domains.values())
        print(f"{name:<{width}}  {size:>10,}  {figures}")


COMMANDS = {"train": train, "eval": evaluate}
