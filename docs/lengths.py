"""How long answers grow under reinforcement learning: the curves of several runs side by side, kept and drawn.

python docs/lengths.py runs/r1 runs/r1-zero ...   keep their rollout stages' curves, and draw
python docs/lengths.py                            draw what is kept

docs/results/lengths.json    [{run, stage, recipe (digest), steps, steps_written, completion_tokens, reward}, …]
docs/pictures/lengths.svg    results written while thinking, tokens per answer, reward, over steps
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.recipes.tune import ROLLOUTS
from sekkei.report.folder import RunFolder, read_run
from sekkei.report.style import PALETTE, Chart, line, styled

ROOT = Path(__file__).resolve().parent
KEPT, PICTURE = ROOT / "results" / "lengths.json", ROOT / "pictures" / "lengths.svg"
DRAWN = (
    ("steps_written", "results written while thinking"),
    ("completion_tokens", "tokens per answer"),
    ("reward", "reward"),
)


def curves_of(run: RunFolder) -> list[dict[str, Any]]:
    """One entry for every stage of the run that rewards answers."""
    found = []
    for stage in run.tuned_by(*ROLLOUTS):
        entry = {"run": run.name, "stage": stage, "recipe": run.results["digests"]["recipe"]}
        for name, _ in DRAWN:
            series = run.series(stage, name)
            entry |= {"steps": series.steps, name: [round(value, 4) for value in series.values]}
        found.append(entry)
    return found


@styled
def drawn(curves: list[dict[str, Any]]) -> str:
    """Three panels, a line per stage."""
    chart = Chart("lengths", "Steps written, tokens per answer and reward over reinforcement learning", columns=3)
    for axes, (name, title) in zip(chart.axes, DRAWN, strict=True):
        for curve, color in zip(curves, PALETTE):
            line(axes, curve["steps"], curve[name], color, f"{curve['run']}: {curve['stage']}")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    chart.axes[2].legend(loc="lower right")
    return chart.svg()


def main(folders: list[str]) -> None:
    if folders:
        curves = [curve for folder in folders for curve in curves_of(read_run(Path(folder)))]
        atomic.write_text(KEPT, json.dumps(curves) + "\n")
    atomic.write_text(PICTURE, drawn(json.loads(KEPT.read_text(encoding="utf-8"))) + "\n")
    print(f"{KEPT} and {PICTURE}")


if __name__ == "__main__":
    main(sys.argv[1:])
