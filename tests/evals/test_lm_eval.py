"""lm-eval, the real client, on our models: through the exported checkpoint and through `sekkei serve`.

It gets an environment of its own (/tmp/sekkei-lm-eval, made once; SEKKEI_LM_EVAL names another Python), reads a
local file, and must report what `sekkei eval` reports. The commands are those of docs/evaluation.md.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sekkei.cli.eval import open_local
from sekkei.evals.choice import evaluate_choices, read_choices
from sekkei.evals.local import LocalBackend
from sekkei.llm import LLM

ROOT = Path(__file__).parents[2]
HOME = Path("/tmp/sekkei-lm-eval")
PACKAGES = ("torch==2.13.0", "transformers", "accelerate", "lm-eval[api]")
TASK = """task: chains
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1}}
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def client() -> Path:
    """A Python that has lm-eval."""
    python = Path(os.environ.get("SEKKEI_LM_EVAL") or HOME / "bin" / "python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"lm-eval cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def exported(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm-eval") / "exported"
    command = [sys.executable, "-m", "sekkei", "export", str(smoke_run), str(folder), "--stage", "pretrain.long"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def items(exported: Path) -> Path:
    """Single steps of the chain task with three wrong results each, and lm-eval's description of the task."""
    rng = random.Random(0)
    file = exported.parent / "chains.jsonl"
    with file.open("w") as out:
        for _ in range(40):
            start, more = rng.randrange(23), rng.randint(1, 9)
            right = (start + more) % 23
            results = [right, *((right + off) % 23 for off in rng.sample(range(1, 22), 3))]
            rng.shuffle(results)
            row = {
                "question": f"{start} add {more} =",
                "choices": list(map(str, results)),
                "answer": results.index(right),
            }
            out.write(json.dumps(row) + "\n")
    (exported.parent / "chains.yaml").write_text(TASK.format(file=file))
    return file


@pytest.fixture(scope="module")
def url(exported: Path) -> Iterator[str]:
    """`sekkei serve` on the exported folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "sekkei", "serve", str(exported), "--port", str(port)])
    base = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{base}/models", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield base
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.parametrize("way", ["exported checkpoint", "server"])
def test_lm_eval_reports_what_sekkei_eval_reports(
    way: str, client: Path, exported: Path, items: Path, url: str, tmp_path: Path
) -> None:
    if way == "server":
        model = "local-completions"
        arguments = f"model=exported,base_url={url}/completions,tokenizer={exported},max_length=512,add_bos_token=True"
    else:
        model, arguments = "hf", f"pretrained={exported},dtype=float32"
    command = [client, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", "chains"]
    command += ["--include_path", exported.parent, "--batch_size", "8", "--output_path", tmp_path, "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]["chains"]
    (samples,) = tmp_path.rglob("samples_*.jsonl")
    logprobs = [
        [float(answer[0][0]) for answer in row["resps"]]
        for row in sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    ]
    with LLM(LocalBackend(open_local(exported, None, "cpu", "float32"))) as llm:
        ours = evaluate_choices(llm, read_choices(items))
    assert ours.figures["accuracy"].value == theirs["acc,none"]
    assert ours.figures["accuracy_norm"].value == theirs["acc_norm,none"]
    for mine, known in zip(ours.rows, logprobs):
        assert mine["logprobs"] == pytest.approx(known, abs=2e-3)
