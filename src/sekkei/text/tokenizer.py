"""Byte-level BPE through Hugging Face `tokenizers`, saved so that `AutoTokenizer.from_pretrained` opens it.

Text is cut into pieces by a pattern (letters with their leading space; at most `max_digits` digits with their
leading space, two by default, so that small numbers are single tokens; punctuation; line ends), and pieces are merged
bottom-up (Sennrich et al. 2016; on bytes: Radford et al. 2019). Any text is encodable.

Special tokens never come out of plain text: `encode` reads `<|end|>` in a page as seven ordinary
characters. Only `encode_trusted`, used for text that we rendered ourselves, parses them. One token,
`<|end|>`, ends documents and turns alike, so there is one stop token to get right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
THINK, THINK_END = "<think>", "</think>"
SPECIAL = (PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", THINK, THINK_END)
ALPHABET = 256


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How a tokenizer is learned.

    Args:
        vocab_size: tokens, special ones included. train_bytes: most text that merges are learned from.
        max_digits: most digits of one token. 1: a number is its digits, as arithmetic is taught (Singh and Strouse
            2024, "Tokenization counts"); 3: as cl100k and Llama 3 have it.
    """

    vocab_size: int = 4096
    train_bytes: int = 8_000_000
    max_digits: int = 2

    def __post_init__(self) -> None:
        least = ALPHABET + len(SPECIAL)
        if self.vocab_size < least:
            raise ConfigError(
                "vocab_size",
                f"got {self.vocab_size}, must be >= {least} ({ALPHABET} bytes + {len(SPECIAL)} special tokens)",
            )
        if self.train_bytes < 1:
            raise ConfigError("train_bytes", f"got {self.train_bytes}, must be >= 1")
        if not 1 <= self.max_digits <= 9:
            raise ConfigError("max_digits", f"got {self.max_digits}, must be 1 to 9 digits of one token")


class Tokenizer:
    """Token ids from text and back.

    Args:
        inner: a `tokenizers.Tokenizer` that knows all of `SPECIAL`.
        template: the chat template's source (Jinja).
    """

    def __init__(self, inner: tokenizers.Tokenizer, template: str) -> None:
        self.template = template
        self._trusting = inner
        self._plain = tokenizers.Tokenizer.from_str(inner.to_str())
        self._plain.encode_special_tokens = True
        missing = [token for token in SPECIAL if inner.token_to_id(token) is None]
        if missing:
            raise UserError(f"the tokenizer lacks the special tokens {', '.join(missing)}; train it with sekkei")
        self.pad_id, self.bos_id, self.end_id = (inner.token_to_id(token) for token in (PAD, BOS, END))
        self.vocab_size: int = inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it stay ordinary characters."""
        return self._plain.encode(text).ids

    def encode_many(self, texts: Sequence[str], trusted: bool = False) -> list[list[int]]:
        inner = self._trusting if trusted else self._plain
        return [encoding.ids for encoding in inner.encode_batch_fast(list(texts))]

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of text that we rendered ourselves: special tokens in it are special."""
        return self._trusting.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        return self._trusting.decode(list(ids), skip_special_tokens=False)

    def id_of(self, piece: str) -> int | None:
        """The id of a piece that is one token as a whole, else None."""
        ids = self.encode(piece) if piece not in SPECIAL else self.encode_trusted(piece)
        return ids[0] if len(ids) == 1 else None

    def token_bytes(self) -> list[int]:
        """Bytes of text that each id stands for; 0 for special tokens.

        The byte-level alphabet writes each byte as one character, so a piece's length is its bytes.
        """
        sizes = [0] * self.vocab_size
        for piece, token in self._trusting.get_vocab().items():
            sizes[token] = 0 if piece in SPECIAL else len(piece)
        return sizes

    def save(self, folder: Path) -> None:
        """Write the Hugging Face layout: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
        atomic.write_text(folder / "tokenizer.json", self._trusting.to_str(pretty=True))
        atomic.write_text(folder / "chat_template.jinja", self.template)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [token for token in SPECIAL if token not in (PAD, BOS, END)],
            "clean_up_tokenization_spaces": False,
            "chat_template": self.template,
        }
        atomic.write_json(folder / "tokenizer_config.json", config)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing or unreadable.
        """
        try:
            inner = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except Exception as error:  # the library raises a bare Exception for a malformed file
            raise UserError(f"{folder}: no readable tokenizer there ({error})") from None
        return cls(inner, template)


def default_template() -> str:
    """The chat template that ships with the package."""
    return resources.files("sekkei.text").joinpath("chat.jinja").read_text(encoding="utf-8")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, whole: Sequence[str] = ()) -> Tokenizer:
    """Learn merges from `texts`.

    Args:
        whole: pieces that must be single tokens afterwards.
    Raises:
        UserError: the text is too small for the vocabulary, or a piece of `whole` was not learned.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN % config.max_digits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(_capped(texts, config.train_bytes), trainer)
    tokenizer = Tokenizer(inner, default_template())
    if tokenizer.vocab_size < config.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size={config.vocab_size}: the text gives only {tokenizer.vocab_size} tokens; "
            "lower it or add text"
        )
    split = [piece for piece in whole if tokenizer.id_of(piece) is None]
    if split:
        raise UserError(
            f"tokenizer.vocab_size={config.vocab_size} is too small: {split[0]!r} and {len(split) - 1} more pieces of "
            f"the reasoning task are not single tokens; raise it, or max_digits={config.max_digits} for numbers"
        )
    return tokenizer


def _capped(texts: Iterable[str], limit: int) -> Iterator[str]:
    used = 0
    for text in texts:
        if used >= limit:
            return
        used += len(text.encode())
        yield text
