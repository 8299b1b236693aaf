"""What a pipeline step promises beyond `prove`: scores on every rank, all outputs, uneven micro-batches, two shapes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sekkei.core import dist
from sekkei.core.errors import UserError
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.parallel.layout import Layout
from sekkei.parallel.pipeline import cut, layers_of

WORKER = Path(__file__).with_name("pipeline_worker.py")
DEADLINE = 150.0  # seconds until the ranks are given up; 12 where the two cores are free
CONFIG = ModelConfig(hidden_size=16, num_layers=4, num_heads=2, num_kv_heads=1, intermediate_size=24, vocab_size=23)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """The figures of both ranks."""
    folder = tmp_path_factory.mktemp("pipeline")
    shared = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    outs = [folder / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(out)],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        end = time.monotonic() + DEADLINE
        for rank, process in enumerate(processes):
            _, errors = process.communicate(timeout=max(1.0, end - time.monotonic()))
            assert process.returncode == 0, f"rank {rank}: {errors[-2000:]}"
        yield [json.loads(out.read_text()) for out in outs]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved", "zero_bubble"])
def test_scores_metrics_and_gradients_are_those_of_one_process(ranks: list[dict[str, Any]], schedule: str) -> None:
    for found in ranks:
        assert found[schedule]["steps"] == [12, 20, 12]
        for figure in ("score", "gradient", "metrics"):
            assert found[schedule][figure] <= 1e-13, figure


def test_updates_that_a_pipeline_cannot_run(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["1f1b"]["lengths"].startswith("a pipeline needs rows of one length per step, got [12, 20]")
        assert found["1f1b"]["few"] == "layout.pp: 1f1b needs pp=2 micro-batches per data rank, an update has 1"
        assert "must divide 1 micro-batches" in found["zero_bubble"]["few"]
        assert "few" not in found["gpipe"]


def test_a_rank_holds_its_stages_only(ranks: list[dict[str, Any]]) -> None:
    first, last = (found["interleaved"]["held"] for found in ranks)
    assert first == ["embed.weight"]
    assert last == ["lm_head.weight", "norm.weight", "value_head.weight"]


def test_messages_are_json(ranks: list[dict[str, Any]]) -> None:
    assert [found["message"] for found in ranks] == [["é", 0], ["é", 0]]


# ---- without processes


def test_stages_are_the_whole_model_once() -> None:
    whole = build(CONFIG, seed=1)
    layout = Layout(pp=2, schedule="interleaved")
    assert [list(layers_of(stage, layout, CONFIG)) for stage in range(4)] == [[0], [1], [2], [3]]
    parts = [dict(cut(whole, stage, layout).named_parameters()) for stage in range(4)]
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(name for name, _ in whole.named_parameters())
    assert all(parameter is whole.get_parameter(name) for part in parts for name, parameter in part.items())


def test_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (dist.rank(), dist.world_size(), dist.launched()) == (0, 1, False)
    dist.finish()
    with pytest.raises(UserError, match="need a launcher"):
        dist.start()


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has as many GPUs as the test asks for")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "7"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "7")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="LOCAL_RANK=7 needs 8 GPUs here"):
        dist.start("cuda")
