"""How much a tokenizer compresses: bytes of UTF-8 text per token, by domain.

    bytes per token = len(text.encode()) / len(encode(text))          special tokens are neither added nor parsed

Opens what lies on the disk: our own tokenizers and any `tokenizer.json` (Hugging Face `tokenizers`), a run's folder,
and `.tiktoken` rank files (with the splitting pattern of cl100k: the file does not hold its own).

Not handled: SentencePiece models without a tokenizer.json. Bytes per token say nothing about what a model learns.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import tokenizers

from sekkei.core.errors import UserError
from sekkei.text.blocks.block import need

Encode = Callable[[str], int]

SAMPLES: dict[str, str] = {
    "english": (
        "The harbour was quiet when the last boat came in. Nobody asked why it was late; the wind had turned in the "
        "afternoon, and everyone along the quay knew what that meant for a crew of three with a broken engine. They "
        "tied it up, shared a pot of coffee in the little office, and wrote down the weight of the catch."
    ),
    "japanese": (
        "港に最後の船が戻ったとき、あたりはもう静かだった。遅れた理由を尋ねる人はいなかった。午後から風向きが変わり、"
        "エンジンの壊れた船に三人で乗っていればどうなるか、岸壁の人びとは皆知っていたからである。船をつなぎ、小さな事務所で"
        "コーヒーを分け合い、漁獲の重さを帳面に書きつけた。"
    ),
    "code": (
        "def pack(lengths: list[int], capacity: int) -> list[list[int]]:\n    rows: list[list[int]] = []\n"
        "    for index, length in enumerate(lengths):\n        if not 1 <= length <= capacity:\n"
        '            raise ValueError(f"sequence {index} has {length} tokens")\n'
        "        rows.append([index])\n    return rows\n"
    ),
    "maths": (
        "A shop sells 48 pens at $1.25 each and 17 notebooks at $3.40 each. The pens bring 48 * 1.25 = 60 dollars and "
        "the notebooks 17 * 3.40 = 57.80 dollars, so together 60 + 57.80 = 117.80. With \\frac{1}{2} of 3x^2 - 7 = 20 "
        "we get x^2 = 47/3, so x = \\pm\\sqrt{47/3} \\approx 3.958.\n#### 117.80"
    ),
}
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def measure(encode: Encode, text: str) -> float:
    """Bytes of `text` per token."""
    return len(text.encode()) / max(1, encode(text))


def open_tokenizer(path: Path) -> tuple[int, Encode]:
    """(vocabulary size, text -> number of tokens) of what lies at `path`.

    Raises:
        UserError: nothing there is a tokenizer.
    """
    if path.suffix == ".tiktoken":
        return _tiktoken(path)
    for file in (path, path / "tokenizer.json", path / "tokenizer" / "tokenizer.json"):
        if file.is_file():
            return _hugging_face(file)
    raise UserError(f"{path}: holds no tokenizer; give a tokenizer.json, a folder with one, a run, or a .tiktoken file")


def _hugging_face(file: Path) -> tuple[int, Encode]:
    try:
        found = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{file}: is no tokenizer.json ({error})") from None
    found.encode_special_tokens = True
    return found.get_vocab_size(), lambda text: len(found.encode(text, add_special_tokens=False).ids)


def _tiktoken(path: Path) -> tuple[int, Encode]:
    library = need("tiktoken", "tiktoken", "reading .tiktoken files")
    try:
        rows = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is no .tiktoken file ({error})") from None
    found = library.Encoding("local", pat_str=_CL100K, mergeable_ranks=ranks, special_tokens={})
    return len(ranks), lambda text: len(found.encode_ordinary(text))
