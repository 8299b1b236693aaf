"""Do the bias terms' intervals cover what was planted, and do corrected rankings beat raw ones? 200 simulated panels.

    python benchmarks/judge_bias.py --panels 200 --out benchmarks/results/judge_bias.json

Each panel (judge/simulate.py) plants a position bias, a length slope, an own-family bonus and a noise level per
judge. Counted per kind of term: how often the 95% interval holds the planted value, and how wide it is beside an
oracle's that knows the nuisance terms: all kinds of bias but the one that it estimates. The candidates' quality it has
to estimate from the same judgements (`width_ratio`), or it knows even that (`width_ratio_all_known`).
"own_bonus_alone" is the bonus before pooling over judges. `--outlier X` plants the bonus X in the first judge and none
in the two others that have own candidates, the case that pooling is worst at, and counts that judge alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core import atomic
from sekkei.core.progress import Console
from sekkei.judge.bias import fit_biases
from sekkei.judge.simulate import Panel, oracle_widths, panel

KINDS = ("position", "length_slope", "own_bonus", "own_bonus_alone", "scale", "quality")


def judge_panel(drawn: Panel) -> dict[str, Any]:
    """(hit, width) of every interval of one panel by kind, the oracle's widths, and whether rankings are right."""
    fitted = fit_biases(drawn.pairs, drawn.judge_family, drawn.candidate_family)
    found: dict[str, Any] = {kind: [] for kind in KINDS}
    planted = {
        "position": drawn.position,
        "length_slope": drawn.length_slope,
        "own_bonus": drawn.own_bonus,
        "own_bonus_alone": drawn.own_bonus,
        "scale": drawn.scale,
    }
    for j, judge in enumerate(fitted.judges):
        for kind, values in planted.items():
            estimate = getattr(judge, kind)
            if estimate is not None:
                found[kind].append((estimate.low <= values[j] <= estimate.high, estimate.high - estimate.low))
    for true, estimate in zip(drawn.quality, fitted.quality, strict=True):
        found["quality"].append((estimate.low <= true <= estimate.high, estimate.high - estimate.low))
    order = np.argsort(drawn.quality)
    corrected = np.argsort([estimate.value for estimate in fitted.quality])
    found["corrected_right"] = bool((corrected == order).all())
    found["raw_right"] = bool((np.argsort(fitted.raw) == order).all())
    for who, knows_quality in (("oracle", False), ("all_known", True)):
        widths = oracle_widths(drawn, knows_quality)
        found[who] = widths | {"own_bonus_alone": widths["own_bonus"]}
    return found


def run(panels: int, questions: int, outlier: float | None = None) -> dict[str, Any]:
    """Figures over `panels` panels drawn from seeds 0, 1, …"""
    found = []
    bonuses = None if outlier is None else (outlier, 0.0, 0.0)
    with Console().bar("panels", panels) as bar:
        for seed in range(panels):
            one = judge_panel(panel(seed, questions=questions, bonuses=bonuses))
            for kind in ("own_bonus", "own_bonus_alone") if bonuses else ():
                one[kind] = one[kind][:1]  # the judge that is unlike the others
            found.append(one)
            bar.update(seed + 1)
    figures: dict[str, Any] = {"panels": panels, "questions": questions}
    for kind in KINDS:
        inside = np.concatenate([[hit for hit, _ in one[kind]] for one in found])
        widths = np.concatenate([[width for _, width in one[kind]] for one in found])
        oracle, all_known = (
            float(np.median(np.concatenate([one[who][kind] for one in found]))) for who in ("oracle", "all_known")
        )
        figures[kind] = {
            "coverage": round(float(inside.mean()), 4),
            "intervals": len(inside),
            "median_width": round(float(np.median(widths)), 4),
            "median_oracle_width": round(oracle, 4),
            "width_ratio": round(float(np.median(widths)) / oracle, 3),
            "width_ratio_all_known": round(float(np.median(widths)) / all_known, 3),
        }
    figures["corrected_ranking_right"] = sum(one["corrected_right"] for one in found)
    figures["raw_ranking_right"] = sum(one["raw_right"] for one in found)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panels", type=int, default=200)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--outlier", type=float)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    figures = run(chosen.panels, chosen.questions, chosen.outlier)
    print(json.dumps(figures, indent=2))
    if chosen.out:
        atomic.write_json(chosen.out, figures)
