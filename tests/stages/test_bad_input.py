"""What a user can get wrong ends in one line with the key and the remedy, exit code 2, and nothing half-written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sekkei.core.errors import UserError
from sekkei.stages.model_artifact import load_model

Call = Callable[..., tuple[int, str]]
Refused = Callable[..., str]


def whole_stages(folder: Path) -> set[str]:
    """Finished stages; asserts that the others hold no artifact and nobody left a file aside."""
    assert [*folder.rglob("*.tmp"), *folder.rglob("*.old")] == []
    stages = {path.name for path in folder.iterdir() if path.is_dir()}
    finished = {path.parent.name for path in folder.glob("*/done.json")}
    for stage in stages - finished:
        left = {path.name for path in (folder / stage).iterdir()}
        assert left <= {"started.json", "checkpoints", "cleaned"}
        assert "cleaned" not in left or (folder / stage / "cleaned" / "summary.json").exists(), "written last"
    return finished


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    return folder


def binary(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.html").write_bytes(bytes(range(256)) * 20)


def filtered_away(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"too short {number}")


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda folder: folder.rmdir(), "data.pages.path={}: no such file or folder"),
        (lambda folder: None, "data.pages.path={}: holds no files; give a folder with .warc"),
        (
            lambda folder: (folder / "a.pdf").write_text("x"),
            "all 1 pages were dropped, 1 of them by the rule 'read.unknown_format'; data.pages.path must",
        ),
        (binary, "all 3 pages were dropped, 3 of them by the rule 'not_text'; data.pages.path must name"),
        (filtered_away, "all 3 pages were dropped, 3 of them by the rule "),
    ],
    ids=["missing", "empty", "no_pages", "binary", "filtered_away"],
)
def test_pages(fill: Callable[[Path], object], told: str, pages: Path, tmp_path: Path, refused: Refused) -> None:
    fill(pages)
    line = refused("run", "smoke", f"data.pages.path={pages}", "--run-dir", tmp_path / "run")
    assert told.format(pages) in line
    assert "data." in line.partition("dropped")[2] or "data.pages.path=" in line
    assert whole_stages(tmp_path / "run") == set()


def test_a_missing_package_is_said_before_the_first_stage(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "lancedb" else find(name, *_))
    line = refused("run", "smoke", "documents={stage: sft}", "--run-dir", tmp_path / "run")
    assert "documents needs lancedb, which is not installed; pip install 'sekkei[rag]'" in line
    assert whole_stages(tmp_path / "run") == set()


def test_one_page_leaves_nothing_to_hold_out(smoke_run: Path, pages: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copy(smoke_run / "data" / "pages" / "pathlib.html", pages)
    line = refused("run", "smoke", f"data.pages.path={pages}", "--run-dir", tmp_path / "run")
    assert "1 documents are left of a domain: it needs 2" in line
    assert whole_stages(tmp_path / "run") == set()


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (300, "tokenizer.vocab_size=300 is too small: "),
        (40000, "tokenizer.vocab_size=40000: the text gives only "),
    ],
)
def test_vocabulary_that_does_not_fit_the_text(size: int, told: str, copy: Path, refused: Refused) -> None:
    before = whole_stages(copy)
    line = refused("run", "smoke", f"tokenizer.vocab_size={size}", "--run-dir", copy)
    assert told in line
    assert line.endswith(("raise it", "lower it or add text", "raise it, or max_digits=2 for numbers"))
    assert whole_stages(copy) == before - {"tokenizer"}


@pytest.fixture
def begun(smoke_run: Path, tmp_path: Path) -> Path:
    """A run of `smoke` that has its tokens and no model yet."""
    folder = tmp_path / "runs" / "smoke"
    for stage in ("data", "tokenizer", "tokens"):
        shutil.copytree(smoke_run / stage, folder / stage)
    return folder


SHORT = ("pretrain.long=null", "pretrain.reasoning=null", "pretrain.general.steps=1")


def test_a_conversation_longer_than_the_context(begun: Path, refused: Refused) -> None:
    line = refused("run", "smoke", "--run-dir", begun, *SHORT, "model.max_context=64", "eval.shots=[0]")
    assert "sft: a conversation has " in line
    assert line.endswith(" tokens, it does not fit model.max_context=64; raise it")
    assert "eval.base" in whole_stages(begun)
    assert "sft" not in whole_stages(begun)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["eval.shots=[1, 200]"], "eval.shots=[1, 200]: a prompt of "),
        (
            ["model.max_context=33", "pretrain.general.context=32", "eval.max_tokens=16", "dpo=null", "grpo=null"],
            "data.chain.reported_operations=8: a prompt of ",
        ),
    ],
)
def test_a_prompt_longer_than_the_context(settings: list[str], told: str, begun: Path, refused: Refused) -> None:
    line = refused("run", "smoke", "--run-dir", begun, *SHORT, *settings)
    assert told in line
    assert line.endswith("; lower it, or raise model.max_context")
    assert "eval.base" not in whole_stages(begun)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = hasattr(os, "geteuid") and os.geteuid() == 0
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a disk that is full needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free: int) -> Path:
    """A file that leaves `free` bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    return ballast


@pytest.mark.parametrize(
    ("free", "stages"),
    [
        (100_000, ["tokens"]),
        (100_000, ["grpo", "eval.grpo"]),
        (1_500_000, ["grpo", "eval.grpo"]),
        (0, ["eval.grpo"]),
    ],
    ids=["tokens", "first_checkpoint", "tensors", "log"],
)
def test_a_full_disk(
    free: int, stages: list[str], smoke_run: Path, small_disk: Path, refused: Refused, call: Call
) -> None:
    folder = Path(shutil.copytree(smoke_run, small_disk / "smoke"))
    for stage in stages:
        shutil.rmtree(folder / stage)
    before = whole_stages(folder)
    ballast = fill(small_disk, free)
    line = refused("run", "smoke", "--run-dir", folder)
    assert f"{folder}" in line
    assert "the disk is full; free some space or choose another --run-dir" in line
    assert whole_stages(folder) == before
    ballast.unlink()
    code, shown = call("run", "smoke", "--run-dir", folder)
    assert code == 0, shown
    assert digests(folder) == digests(smoke_run)


def digests(folder: Path) -> dict[str, str]:
    return json.loads((folder / "results.json").read_text())["digests"]


def flip_a_byte(path: Path) -> None:
    """Damage the middle of a file without changing its length."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_a_damaged_checkpoint(smoke_run: Path, copy: Path, refused: Refused, call: Call) -> None:
    (copy / "grpo" / "done.json").unlink()
    (checkpoint,) = (copy / "grpo" / "checkpoints").iterdir()
    flip_a_byte(checkpoint / "tensors.safetensors")
    line = refused("run", "smoke", "--run-dir", copy)
    assert f"{checkpoint / 'tensors.safetensors'}: its checksum differs from manifest.json" in line
    assert "remove that folder and run again" in line
    assert "grpo" not in {path.parent.name for path in copy.glob("*/done.json")}
    shutil.rmtree(checkpoint)
    code, shown = call("run", "smoke", "--run-dir", copy)
    assert code == 0, shown
    assert digests(copy) == digests(smoke_run)


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("dpo/model/tensors.safetensors", "grpo"),
        ("dpo/model/state.json", "eval.dpo"),
        ("tokens/shards/docs.train.bin", "pretrain.general"),
        ("tokens/shards/docs.heldout.bin", "eval.pretrain.general"),
        ("tokenizer/tokenizer.json", "tokens"),
        ("data/facts.json", "eval.base"),
    ],
)
def test_a_damaged_artifact(file: str, reader: str, copy: Path, refused: Refused) -> None:
    stage = file.partition("/")[0]
    flip_a_byte(copy / file)
    line = refused("run", "smoke", "--run-dir", copy, "--from", reader)
    assert f"{copy / stage} differs from its own record done.json: a file is damaged or was changed" in line
    assert line.endswith(f"; run again with --from {stage}")


def test_the_remedy_of_a_damaged_artifact(smoke_run: Path, copy: Path, call: Call) -> None:
    flip_a_byte(copy / "grpo" / "model" / "tensors.safetensors")
    with pytest.raises(UserError, match=r"its checksum differs .*; run the recipe again with --from grpo$"):
        load_model(copy / "grpo" / "model")
    assert call("run", "smoke", "--run-dir", copy, "--from", "grpo")[0] == 0
    load_model(copy / "grpo" / "model")
    assert digests(copy) == digests(smoke_run)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"key": "x"}', b"\xff\xfe"])
def test_a_damaged_record(content: bytes, copy: Path, refused: Refused, call: Call) -> None:
    record = copy / "eval.grpo" / "done.json"
    record.write_bytes(content)
    assert f"{record}: is damaged; remove that file and run again" in refused("run", "smoke", "--run-dir", copy)


def test_a_damaged_log(copy: Path, refused: Refused) -> None:
    log = copy / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b"{", b"", 1))
    line = refused("run", "smoke", "--run-dir", copy, "--from", "eval.grpo")
    assert f"{log}: line 1 is not a JSON object; remove the line" in line


def test_a_disk_that_fills_while_pages_are_rendered(small_disk: Path, refused: Refused) -> None:
    """No torn page may pass for a whole one, now or when the same command is given again."""
    fill(small_disk, 60_000)
    line = refused("run", "smoke", "--run-dir", small_disk / "run", "--until", "data")
    assert "disk is full" in line
    assert not (small_disk / "run" / "data" / "pages").exists()


def test_a_gate_that_is_not_reached(copy: Path, refused: Refused, call: Call) -> None:
    """One more round, which is remembered, then a clear end; the same again when it is asked again."""
    gate = ("sft.gate.min_pass1_sampled=1.0", "sft.gate.extra_steps=2", "sft.gate.rounds=1")
    command = ("run", "smoke", *gate, "--run-dir", copy, "--until", "sft", "--quiet")
    told = refused(*command)
    assert "after 18 steps, the gate sft.gate.min_pass1_sampled=1.0 is not reached" in told
    assert not (copy / "sft" / "done.json").exists()
    assert len(json.loads((copy / "sft" / "gate.json").read_text())) == 1
    assert refused(*command) == told
