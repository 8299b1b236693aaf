"""Our win rates beside AlpacaEval 2's published ones, from its own annotations.

    python benchmarks/judge_alpaca.py FOLDER --out benchmarks/results/judge_alpaca.json

FOLDER holds one annotation file per model (results/MODEL/weighted_alpaca_eval_gpt4_turbo/annotations.json of
github.com/tatsu-lab/alpaca_eval, saved as MODEL.json) and leaderboard.csv of the same evaluator. Raw rates must agree
exactly. Length-controlled ones cannot: the published fit takes instruction difficulties from a file that was made
with other models, aligns rows by their place, and adds the baseline's own verbose and concise variants.
Alone: each model's file given by itself, as somebody who judges one model has it.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sekkei.core import atomic
from sekkei.core.progress import Console
from sekkei.judge.annotations import Row, build_table, read_rows
from sekkei.judge.cheats import find_cheats
from sekkei.judge.winrate import win_rates

BASELINE = "gpt4_1106_preview"


def published(path: Path) -> dict[str, tuple[float, float]]:
    """(win rate, length-controlled win rate) by model."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row[""]: (float(row["win_rate"]), float(row["length_controlled_winrate"]))
        for row in rows
        if row["length_controlled_winrate"]
    }


def figures_of(rows: list[Row], draws: int) -> dict[str, tuple[float, float]]:
    found = win_rates(build_table(rows, BASELINE), draws=draws)
    return {m.name: (100 * m.win_rate.value, 100 * m.length_controlled.value) for m in found.models}


def differences(ours: dict[str, tuple[float, float]], board: dict[str, tuple[float, float]]) -> dict[str, Any]:
    names = sorted(set(ours) & set(board) - {BASELINE})
    mine, theirs = (np.array([table[name] for name in names]) for table in (ours, board))
    off = np.abs(mine - theirs)
    return {
        "models": len(names),
        "raw_largest_difference": float(off[:, 0].max()),
        "length_controlled_mean_difference": round(float(off[:, 1].mean()), 3),
        "length_controlled_largest_difference": round(float(off[:, 1].max()), 3),
        "furthest": names[int(off[:, 1].argmax())],
        "spearman": round(float(spearmanr(mine[:, 1], theirs[:, 1]).statistic), 4),
        "raw_spearman_with_published_length_controlled": round(
            float(spearmanr(theirs[:, 0], theirs[:, 1]).statistic), 4
        ),
    }


def run(folder: Path, draws: int) -> dict[str, Any]:
    board = published(folder / "leaderboard.csv")
    rows: list[Row] = []
    alone: dict[str, tuple[float, float]] = {}
    suspicious: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    paths = sorted(folder.glob("*.json"))
    with Console().bar("models", len(paths)) as bar:
        for done, path in enumerate(paths, start=1):
            own = read_rows([path])
            sizes[own[0].names[1] or path.stem] = len(own)
            rows += own
            alone |= figures_of(own, 2)
            data = json.loads(path.read_text(encoding="utf-8"))
            cheats = find_cheats([row["instruction"] for row in data], [row["output_2"] or "" for row in data])
            if cheats.suspicious:
                suspicious[path.stem] = cheats.suspicious
            bar.update(done)
    together = figures_of(rows, draws)
    return {
        "together": differences(together, board),
        "together, models with all 805 rows": differences(
            {name: pair for name, pair in together.items() if sizes[name] == max(sizes.values())}, board
        ),
        "alone": differences(alone, board),
        "suspicious": suspicious,
        "files": len(paths),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    figures = run(chosen.folder, chosen.draws)
    print(json.dumps(figures, indent=2))
    if chosen.out:
        atomic.write_json(chosen.out, figures)
