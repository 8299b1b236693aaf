"""`sekkei tokenizer`: learned, opened again by others, and compared."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tokenizers
from tests.text.labelled import KEEP

from sekkei.cli import main
from sekkei.text.compression import SAMPLES, measure, open_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "texts").mkdir()
    for name, _, _, text in KEEP[:24]:
        (folder / "texts" / f"{name}.txt").write_text(text, encoding="utf-8")
    assert main(["tokenizer", "train", str(folder / "texts"), "--out", str(folder / "tok"), "--vocab-size", "600"]) == 0
    return folder / "tok"


def test_eval_prints_bytes_per_token(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = "\n".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
    (tmp_path / "bytes.tiktoken").write_text(ranks)
    (tmp_path / "text.txt").write_text("the harbour " * 50)
    arguments = ["tokenizer", "eval", str(trained), str(tmp_path / "bytes.tiktoken")]
    assert main(arguments) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["tokenizer", "vocabulary", *SAMPLES]
    assert table[1][1] == "600"
    assert float(table[1][2]) > 1.5
    assert table[2][1:] == ["256", "1.000", "1.000", "1.000", "1.000"]
    assert main([*arguments, "--text", f"own={tmp_path / 'text.txt'}"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["tokenizer", "vocabulary", "own"]


def test_the_count_is_that_of_the_library(trained: Path) -> None:
    _, encode = open_tokenizer(trained)
    plain = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    for text in SAMPLES.values():
        assert measure(encode, text) == len(text.encode()) / len(plain.encode(text).ids)
    assert encode("<|end|>") > 1  # special tokens in plain text are plain text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "nowhere"], "holds no tokenizer"),
        (["eval", "TOK", "--text", "nonsense"], "DOMAIN=FILE"),
        (["train", "nowhere", "--out", "x"], "no such file or folder"),
    ],
)
def test_what_is_refused(trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["tokenizer", *(str(trained) if item == "TOK" else item for item in arguments)]) == 2
    assert message in capsys.readouterr().err
