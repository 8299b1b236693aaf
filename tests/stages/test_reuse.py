"""A finished stage is reused while its key is the same; what else a command may select; who may write."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekkei.recipes.recipe import load
from sekkei.stages import run as stages_run
from sekkei.stages.life import stages_of

Call = Callable[..., tuple[int, str]]
Refused = Callable[..., str]
ALL = [stage.name for stage in stages_of(load("smoke"))]
GRPO_AND_AFTER = {"grpo", "eval.grpo", "agent", "inference.grpo", "judge"}
DPO_AND_AFTER = {"dpo", "eval.dpo", *GRPO_AND_AFTER}
HOLDER = """
import sys, time
from pathlib import Path
from sekkei.core.runlog import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def stamps(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Files with what tells one from another that was written in its place."""
    found = (path for path in sorted(folder.glob(pattern)) if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def redone(folder: Path, call: Call, *arguments: object) -> set[str]:
    """Stages whose record was written anew by `sekkei run smoke …`."""
    before = stamps(folder, "*/done.json")
    code, shown = call("run", "smoke", "--run-dir", folder, *arguments)
    assert code == 0, shown
    after = stamps(folder, "*/done.json")
    changed = {Path(name).parent.name for name, stamp in after.items() if before.get(name) != stamp}
    reused = {line.split()[0] for line in shown.splitlines() if line.endswith(" reused")}
    assert changed & reused == set()
    return changed


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_second_run_writes_nothing(copy: Path, call: Call) -> None:
    before, log, figures = stamps(copy, "*/**/*"), (copy / "metrics.jsonl").read_bytes(), results(copy)
    code, shown = call("run", "smoke", "--run-dir", copy)
    assert code == 0, shown
    assert [line.split()[0] for line in shown.splitlines() if line.endswith(" reused")] == ALL
    assert stamps(copy, "*/**/*") == before
    assert (copy / "metrics.jsonl").read_bytes() == log
    assert results(copy) == figures


def test_a_changed_key_redoes_what_depends_on_it(copy: Path, call: Call, refused: Refused) -> None:
    before = results(copy)["digests"]
    assert redone(copy, call, "dpo.beta=0.2", "--until", "eval.sft") == set()
    kept = results(copy)
    assert {name.split("/")[0] for name in kept["digests"]} == {"recipe", *ALL} - DPO_AND_AFTER, (
        "figures of another recipe"
    )
    assert not [name for name in kept["figures"] if name.startswith(("dpo.", "reasoning.dpo.", "reasoning.grpo."))]
    line = refused("run", "smoke", "--run-dir", copy, "dpo.beta=0.2", "--only", "eval.dpo")
    assert "eval.dpo reads the stage dpo, made by another recipe" in line
    assert redone(copy, call, "dpo.beta=0.2") == DPO_AND_AFTER
    after = results(copy)["digests"]
    assert {name for name in before if after[name] != before[name]} >= {"dpo/model", "grpo/model"}
    assert {name.split("/")[0] for name in before if after[name] != before[name]} <= {"recipe", *DPO_AND_AFTER}


def test_from_redoes_a_stage_and_all_after_it(copy: Path, call: Call) -> None:
    before = results(copy)
    assert redone(copy, call, "--from", "grpo") == GRPO_AND_AFTER
    after = results(copy)
    assert after["digests"] == before["digests"]
    assert {k: v for k, v in after["figures"].items() if not k.startswith("run.")} == {
        k: v for k, v in before["figures"].items() if not k.startswith("run.")
    }


def test_until_and_only_and_force(copy: Path, call: Call) -> None:
    shutil.rmtree(copy / "eval.pretrain.general")
    shutil.rmtree(copy / "eval.pretrain.long")
    assert redone(copy, call, "--until", "pretrain.long") == {"eval.pretrain.general"}
    assert redone(copy, call, "--only", "eval.pretrain.general") == set()
    assert redone(copy, call, "--only", "eval.pretrain.general", "--force") == {"eval.pretrain.general"}
    assert redone(copy, call, "--until", "tokens", "--from", "tokens") == {"tokens"}
    assert redone(copy, call) == {"eval.pretrain.long"}


def test_only_needs_finished_inputs(copy: Path, refused: Refused) -> None:
    (copy / "grpo" / "done.json").unlink()
    line = refused("run", "smoke", "--run-dir", copy, "--only", "eval.grpo", "--force")
    assert "eval.grpo reads the stage grpo, which is not finished; run it first" in line


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        (["--until", "sfd"], "--until=sfd: this recipe has no such stage; did you mean 'sft'?"),
        (["--from", "nothing at all"], "it has data, tokenizer, tokens, pretrain.general"),
        (["--only", "eval"], "--only=eval: this recipe has no such stage"),
        (["--only", "sft", "--until", "dpo"], "--only=sft names the one stage to run; leave out --until and --from"),
        (["--only", "sft", "--from", "data"], "--only=sft names the one stage to run"),
        (["--from", "dpo", "--until", "sft"], "--until=sft comes before --from=dpo: nothing is left to run"),
    ],
)
def test_a_selection_that_selects_nothing_is_refused(
    selection: list[str], told: str, tmp_path: Path, refused: Refused
) -> None:
    assert told in refused("run", "smoke", "--run-dir", tmp_path / "run", *selection)
    assert list((tmp_path / "run").glob("*")) in ([], [tmp_path / "run" / ".lock"])


def test_a_second_process_is_refused(tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        line = refused("run", "smoke", "--run-dir", folder)
        holder.kill()
    assert f"{folder}: is in use by process {holder.pid} on " in line
    assert "choose another --run-dir" in line
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_folder_of_another_recipe_is_refused(copy: Path, refused: Refused) -> None:
    before = stamps(copy, "**/*")
    line = refused("run", "laptop", "--run-dir", copy)
    assert f"{copy}: holds a run of the recipe 'smoke', this one is 'laptop'; choose another --run-dir" in line
    assert stamps(copy, "**/*") == before


def test_a_kill_while_a_stage_is_cleared_leaves_it_unfinished(
    copy: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records go first, so half a cleared folder is neither reused nor resumed."""

    def killed(path: Path, **_: object) -> None:
        if path.name == "eval.grpo":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages_run.shutil, "rmtree", killed)
        code, shown = call("run", "smoke", "--run-dir", copy, "--from", "eval.grpo")
    assert code == 130, shown
    assert not list((copy / "eval.grpo").glob("*.json"))
    assert redone(copy, call) == {"eval.grpo"}


def test_a_removed_artifact_is_made_again(copy: Path, call: Call) -> None:
    """The remedy of many an error line is to remove a damaged folder: a record alone is no artifact."""
    before = results(copy)["digests"]
    shutil.rmtree(copy / "grpo" / "model")
    assert redone(copy, call) == {"grpo"}, "from its last checkpoint; what was made of it stays"
    assert results(copy)["digests"] == before


def test_a_life_without_dpo(copy: Path, call: Call) -> None:
    assert redone(copy, call, "dpo=null") == GRPO_AND_AFTER
    figures = results(copy)["figures"]
    assert not [name for name in figures if ".dpo." in name or name.startswith(("dpo.", "preferences."))]
    assert "reasoning.grpo.pass1_greedy" in figures
