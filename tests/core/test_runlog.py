"""The log survives a writer's death, and the lock dies with its holder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekkei.core.errors import UserError
from sekkei.core.runlog import RunLock, RunLog, read, without_machine

values = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text() | st.none() | st.booleans()
records = st.builds(
    lambda extra, stage, step: {**extra, "stage": stage, "step": step},
    st.dictionaries(st.text(max_size=5), values, max_size=3),
    st.sampled_from(["sft", "dpo", "日本\u2028"]),
    st.integers(0, 5),
)


@given(st.lists(records, max_size=8), st.integers(0, 5), st.binary(max_size=9))
def test_what_is_written_is_read_and_truncated(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, object]], step: int, torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    with RunLog(path) as log:
        for line in lines:
            log.write(line)
    assert read(path) == lines
    if lines:
        with path.open("ab") as file:
            file.write(torn.replace(b"\n", b""))
        assert read(path) == lines
    log.truncate("sft", step)
    kept = [line for line in lines if line["stage"] != "sft" or int(str(line["step"])) <= step]
    assert read(path) == kept
    if lines:
        assert path.read_bytes().endswith(b"\n" if kept else b"")
    log.write({"stage": "sft", "step": 9})
    log.drop("dpo")
    assert read(path) == [line for line in kept if line["stage"] != "dpo"] + [{"stage": "sft", "step": 9}]
    log.close()


def test_lines_are_canonical(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with RunLog(path) as log:
        log.write({"step": 1, "stage": "sft", "loss": 0.1 + 0.2, "machine": {"tokens_per_s": 5.0}})
        log.write({"step": 2, "stage": "sft", "loss": float("nan"), "grads": [float("inf"), 1.0]})
        # each line is on the disk as soon as it is written
        assert path.read_text() == (
            '{"loss": 0.30000000000000004, "machine": {"tokens_per_s": 5.0}, "stage": "sft", "step": 1}\n'
            '{"grads": [null, 1.0], "loss": null, "stage": "sft", "step": 2}\n'
        )
    assert without_machine(read(path))[0] == {"loss": 0.30000000000000004, "stage": "sft", "step": 1}


def test_a_new_writer_cuts_the_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "sft", "step": 1}\n{"stage": "sf')
    with RunLog(path) as log:
        log.write({"stage": "sft", "step": 2})
    assert [record["step"] for record in read(path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "sft", "step": 1}\nnonsense\n{"stage": "sft", "step": 2}\n')
    with pytest.raises(UserError, match="line 2 is not a JSON object"):
        read(path)


@pytest.mark.parametrize("record", [{"stage": "sft"}, {"step": 1}])
def test_a_record_says_where_it_belongs(record: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        RunLog(tmp_path / "metrics.jsonl").write(record)


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []
    RunLog(tmp_path / "none.jsonl").truncate("sft", 3)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import os, sys, time
from pathlib import Path
from sekkei.core.runlog import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else 0
    if child or sys.argv[2] != "fork":
        print(child, flush=True)
    time.sleep(60)
"""


def hold(folder: Path, kind: str) -> tuple[subprocess.Popen[str], int]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), kind], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


@pytest.mark.parametrize("kind", ["plain", "fork"])
def test_the_second_process_is_refused_until_the_first_is_dead(kind: str, tmp_path: Path) -> None:
    holder, child = hold(tmp_path / "run", kind)
    try:
        with pytest.raises(UserError) as caught, RunLock(tmp_path / "run"):
            pass
        message = str(caught.value)
        assert f"in use by process {holder.pid}" in message
        assert message.endswith("wait or choose another --run-dir")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunLock(tmp_path / "run"):  # free at once, though a forked child may live on
            assert (tmp_path / "run" / ".lock").read_text().split()[0] == str(os.getpid())
    finally:
        holder.kill()
        if child:
            os.kill(child, signal.SIGKILL)


def test_the_lock_is_free_after_the_block(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        pass
    holder, _ = hold(tmp_path, "plain")
    holder.kill()
    holder.wait()


def test_a_killed_writer_loses_no_whole_line(tmp_path: Path) -> None:
    code = (
        "import itertools, sys\nfrom pathlib import Path\nfrom sekkei.core.runlog import RunLog\n"
        "log = RunLog(Path(sys.argv[1]))\n"
        "for step in itertools.count():\n    log.write({'stage': 'sft', 'step': step, 'text': 'x' * 3000})\n"
    )
    path = tmp_path / "metrics.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() or path.stat().st_size < 100_000:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    steps = [record["step"] for record in read(path)]
    assert steps == list(range(len(steps)))
    assert json.loads(path.read_text().splitlines()[0])["step"] == 0
