"""Checkpoints: what stays, what is refused, and that opening one runs no code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.train.checkpoint import MANIFEST, STATE, TENSORS, Checkpoints, read_sealed, write_sealed

WEIGHTS = {
    "policy/model/embed.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "policy/state/embed.weight/step": torch.tensor(7.0),
    "policy/half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "transposed": torch.arange(6).view(2, 3).T,
}


def pieces(tensors: dict[str, torch.Tensor]) -> list[tuple[str, Callable[[], torch.Tensor]]]:
    return [(name, lambda tensor=tensor: tensor) for name, tensor in tensors.items()]  # type: ignore[misc]


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_sealed(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "run again" in message
    return message


def test_a_round_trip(tmp_path: Path) -> None:
    write_sealed(tmp_path / "c", WEIGHTS, {"next_row": 4, "name": "größer"})
    tensors, state = read_sealed(tmp_path / "c")
    assert state == {"next_row": 4, "name": "größer"}
    assert set(tensors) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    write_sealed(tmp_path / "c", {"other": torch.ones(1)}, {})
    assert set(read_sealed(tmp_path / "c")[0]) == {"other"}
    assert steps(tmp_path) == ["c"]


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_sealed(folder, WEIGHTS, {"next_row": 4})
    for name in (TENSORS, STATE):
        whole = (folder / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 25)):
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert str(folder / name) in refused(folder)
        (folder / name).write_bytes(whole[:-1])
        assert str(folder / name) in refused(folder)
        (folder / name).write_bytes(whole)
    read_sealed(folder)
    whole = (folder / MANIFEST).read_bytes()
    for place in range(len(whole)):
        for bit in (1, 128):
            (folder / MANIFEST).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            assert str(folder) in refused(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"tensors.safetensors": "00"}', b"\xff"])
def test_a_broken_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    write_sealed(tmp_path / "c", WEIGHTS, {})
    (tmp_path / "c" / MANIFEST).write_bytes(content)
    assert str(tmp_path / "c" / MANIFEST) in refused(tmp_path / "c")


@pytest.mark.parametrize("name", [TENSORS, STATE, MANIFEST])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_sealed(tmp_path / "c", WEIGHTS, {})
    (tmp_path / "c" / name).unlink()
    assert name in refused(tmp_path / "c")


class Weapon:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


def test_a_planted_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, marker = tmp_path / "c", tmp_path / "ran"
    write_sealed(folder, WEIGHTS, {"next_row": 4})
    for write in (lambda path, it: path.write_bytes(pickle.dumps(it)), lambda path, it: torch.save(it, path)):
        write(folder / TENSORS, Weapon(marker))
        digests = {name: atomic.sha256(folder / name) for name in (TENSORS, STATE)}
        (folder / MANIFEST).write_text(json.dumps(digests))  # a stranger's manifest fits the stranger's file
        refused(folder)
        assert not marker.exists()
    pickle.loads(pickle.dumps(Weapon(marker)))
    assert marker.exists()  # the weapon was live


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=1)
    expected = {
        1: (3.0, ["step-000001"]),
        2: (1.0, ["step-000002"]),
        3: (2.0, ["step-000002", "step-000003"]),
        4: (None, ["step-000002", "step-000004"]),
        5: (1.0, ["step-000002", "step-000005"]),  # a tie does not replace
        6: (0.5, ["step-000006"]),
    }
    for step, (watched, names) in expected.items():
        kept.save(step, pieces(WEIGHTS), {"tokens": 10 * step}, watched)
        assert steps(tmp_path) == names
    assert (kept.best_step, kept.best_value) == (6, 0.5)


def test_two_of_the_newest_stay(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=2)
    for step in (998, 999, 1000, 1001):
        kept.save(step, pieces(WEIGHTS), {}, None)
    assert steps(tmp_path) == ["step-001000", "step-001001"]


def test_the_best_is_remembered_by_a_later_process(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, keep_last=1)
    first.save(1, pieces(WEIGHTS), {"tokens": 5}, 1.0)
    first.save(2, pieces(WEIGHTS), {"tokens": 6}, 2.0)
    second = Checkpoints(tmp_path, keep_last=1)
    found = second.load()
    assert found is not None
    step, tensors, state = found
    assert (step, state["tokens"], set(tensors)) == (2, 6, set(WEIGHTS))
    second.save(3, pieces(WEIGHTS), {}, 1.5)
    assert steps(tmp_path) == ["step-000001", "step-000003"]


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load() is None


def test_what_a_killed_writer_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, pieces(WEIGHTS), {}, None)
    (tmp_path / ".step-000002.99.tmp").mkdir()
    found = kept.load()
    assert found is not None
    assert found[0] == 1
