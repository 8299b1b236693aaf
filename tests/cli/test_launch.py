"""`sekkei launch`: nothing is written that would not run; what is written does run, on two "machines" of loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sekkei.cli import main

TWO = ["nodes=2", "gpus_per_node=1", "layout.dp=2"]
POD = ["image=registry.local/sekkei:1", "claim=runs"]
SRUN = """#!/usr/bin/env bash
# stands in for Slurm's srun on one machine: the command once per node, SIGTERM passed on, the worst exit code
[[ $1 == --kill-on-bad-exit=1 ]] && shift
pids=()
trap 'kill -TERM "${pids[@]}"' TERM
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo 127.0.0.1; echo other-node; else echo "$@" >> "$REQUEUED"; fi
"""


def written(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["launch", *arguments]) == 0
    return capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["launch", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    return found.err


def test_slurm_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = written(["smoke", "--slurm", *TWO, "partition=gpu", "time=1-12:00:00", "name=a-b"], capsys)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", text, re.MULTILINE))
    wanted = {"job-name": "a-b", "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "1", "partition": "gpu"}
    assert wanted.items() <= asked.items()
    assert asked["time"] == "1-12:00:00"
    assert asked["signal"] == "B:TERM@300"
    assert "account" not in asked
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])  # Slurm stops reading there
    assert lines[first_command] == "set -euo pipefail"
    assert "-m sekkei run smoke layout.dp=2 name=a-b &" in text
    script = tmp_path / "a.sbatch"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=True).stderr == ""
    for used in set(re.findall(r"\$\{?([a-z_]+)", text)):  # set -u: each is set before
        assert re.search(rf"^\s*{used}=", text, re.MULTILINE), used


def test_words_are_quoted_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    text = written(["smoke", "--slurm", *TWO, "--run-dir", "/runs/a b; rm -rf $HOME"], capsys)
    assert "--run-dir '/runs/a b; rm -rf $HOME' &" in text


def test_kubernetes_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    text = written(["smoke", "--kubernetes", *TWO, *POD, "name=Run_1.x", "memory=64Gi", "namespace=ml"], capsys)
    service, job = list(yaml.safe_load_all(text))
    name = "run-1-x"
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert [part["metadata"] for part in (service, job)] == [{"name": name, "namespace": "ml"}] * 2
    assert service["spec"]["selector"] == {"job-name": name}  # a label that the Job controller gives its pods
    spec: dict[str, Any] = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]  # so that <job>-0.<service> is the first pod's name
    assert pod["restartPolicy"] == "OnFailure"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1, "memory": "64Gi"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["runs"]
    shell, flag, command = container["command"]
    assert (shell, flag) == ("/bin/sh", "-c")
    assert f"--rdzv-endpoint={name}-0.{name}:29400 " in command
    assert service["spec"]["ports"][0]["port"] == 29400
    assert subprocess.run(["sh", "-n", "-c", command], capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["smoke", *TWO], "give one of --slurm and --kubernetes"),
        (["smoke", "--slurm", "gpus_per_node=1"], "nodes: not given"),
        (["smoke", "--kubernetes", *TWO, "image=x"], "claim: not given"),
        (
            ["smoke", "--slurm", "nodes=2", "gpus_per_node=4", "layout.dp=2"],
            "1·2·1·1 = 2, and nodes·gpus_per_node = 2·4",
        ),
        (["smoke", "--slurm", "nodes=3", "gpus_per_node=1", "layout.tp=3"], "tp=3 must divide model.num_heads=2"),
        (["smoke", "--slurm", "nodes=many", "gpus_per_node=1"], "nodes: got 'many', must be a whole number"),
        (["smoke", "--slurm", *TWO, "time=soon"], "time: got 'soon'"),
        (["smoke", "--slurm", *TWO, "partition=a b"], "partition: got 'a b'"),
        (["smoke", "--slurm", *TWO, "nodes=4"], "nodes: given twice"),
        (["smoke", "--slurm", *TWO, "image=x"], "image"),
        (["smoke", "--slurm", *TWO, "--until", "nothing"], "nothing"),
        (["smoke", "--kubernetes", *TWO, "image=x", "claim=Runs"], "claim: got 'Runs'"),
        (["smoke", "--kubernetes", *TWO, *POD, "memory=much"], "memory: got 'much'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(arguments, capsys)


def test_nothing_is_written_for_a_bad_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.sbatch"
    refused(["smoke", "--slurm", "nodes=2", "gpus_per_node=1", "layout.cp=4", "--out", str(out)], capsys)
    assert list(tmp_path.iterdir()) == []
    assert main(["launch", "smoke", "--slurm", *TWO, "--out", str(out)]) == 0
    assert out.read_text().startswith("#!/usr/bin/env bash\n")


def test_tensor_parallel_between_nodes_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["model.num_kv_heads=2", "layout.tp=2"]
    for nodes, per_node, warned in ((2, 1, True), (1, 2, False)):
        cluster = [f"nodes={nodes}", f"gpus_per_node={per_node}"]
        assert main(["launch", "smoke", "--slurm", *cluster, *wide]) == 0
        found = capsys.readouterr()
        assert ("warning: layout.tp=2 is more than gpus_per_node=1" in found.err) == warned
        assert "warning" not in found.out


@pytest.mark.slow
def test_the_script_runs_is_stopped_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole script under bash: two launchers with a c10d rendezvous, one rank each; SIGTERM; the second start."""
    run, script = tmp_path / "run", tmp_path / "a.sbatch"
    words = [*TWO, f"python={sys.executable}", "pretrain.general.steps=200", "cpus_per_gpu=1"]
    options = ["--run-dir", str(run), "--until", "pretrain.general"]
    script.write_text(written(["smoke", "--slurm", *words, *options], capsys))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "REQUEUED": str(tmp_path / "requeued"),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    first = subprocess.Popen(["bash", script], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 300
        while len(steps(run)) < 20 and time.monotonic() < end and first.poll() is None:
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 0, errors[-3000:]
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    reached = len(steps(run))
    assert 20 <= reached < 200
    again = {**environment, "SLURM_RESTART_COUNT": "1"}
    second = subprocess.run(
        ["bash", script], env=again, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert [row["step"] for row in steps(run)] == list(range(1, 201))
    assert (tmp_path / "requeued").read_text().count("requeue") == 1
    assert f"goes on from step {reached} of 200" in second.stdout + second.stderr


def steps(run: Path) -> list[dict[str, Any]]:
    """The training steps that a run has logged."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if row.get("stage") == "pretrain.general" and "loss" in row]


def test_restarted_ranks_redo_nothing_on_purpose() -> None:
    from sekkei.core.launch import without_redoing

    words = ["run", "laptop", "--force", "--from", "sft", "--until", "grpo", "--from=dpo", "seed=1"]
    assert without_redoing(words) == ["run", "laptop", "--until", "grpo", "seed=1"]
