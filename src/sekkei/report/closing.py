"""The last screen of a run: what the model can do now, in plain words with its measured figures.

Only what was measured is said, and a figure never stands without what it is compared with where there is
something: the checkpoint before, or a blind guess.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from sekkei.report import words
from sekkei.report.folder import RunFolder, read_run, total

PAGE = "report.html"


def closing_screen(folder: Path) -> str:
    """Some lines for the terminal.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    run = read_run(folder)
    missing = [stage for stage in run.planned if stage not in run.done]
    read = total(run.figures.get(f"pretrain.{key}.tokens") for key in run.pretrain_keys)
    size = f", {words.count(run.parameters)} parameters" if run.parameters is not None else ""
    size += f", {words.count(read)} tokens read" if read else ""
    time = run.figures.get("run.seconds")
    size += f", {words.duration(time)}" if time else ""
    head = f"{run.name} stands at {run.finished[-1]}" if missing and run.finished else f"{run.name} is finished"
    if not run.finished:
        head = f"{run.name} has not finished a stage yet"
    lines = [head + size]
    able = abilities(run)
    if able:
        lines += ["", "What the model can do now", *(f"  {line}" for line in able)]
    place = shlex.quote(str(folder))
    tried = []
    if missing:
        recipe = shlex.quote(str(folder / "recipe.yaml"))
        tried.append((f"sekkei run {recipe} --run-dir {place}", f"go on: {', '.join(missing)}"))
    if any(stage in run.done for stage in run.planned):
        tried.append((f"sekkei chat {place}", "talk to it"))
        base = f"pretrain.{run.pretrain_keys[-1]}" if run.pretrain_keys else "imported"
        for stage, why in (("sft", "before alignment"), (base, "the base model, which continues text")):
            if stage in run.done and [stage] != run.line[-1:]:
                tried.append((f"sekkei chat {place} --stage {stage}", why))
    tried.append((f"sekkei report {place}", "draw the report again"))
    width = max(len(command) for command, _ in tried)
    lines += ["", f"The report: {folder / PAGE}" if (folder / PAGE).exists() else "The report is not drawn yet."]
    lines += ["", "Try next", *(f"  {command:<{width}}   {why}" for command, why in tried)]
    return "\n".join(lines)


def abilities(run: RunFolder) -> list[str]:
    """One sentence per ability that was measured, newest checkpoint first compared with earlier ones."""
    return [line for line in (_reads(run), _reasons(run), _talks(run), _refuses(run), _picks_up(run)) if line]


def _reads(run: RunFolder) -> str | None:
    measured = [key for key in run.pretrain_keys if run.under(f"pretrain.{key}.bpb")]
    if not measured:
        return None
    bits = run.under(f"pretrain.{measured[-1]}.bpb")
    shown = [f"{domain} {bits[domain]:.2f}" for domain in ("docs", "code", "math") if domain in bits]
    return f"reads: {', '.join(shown)} bits per byte on held-out text (8 = no idea)" if shown else None


def _reasons(run: RunFolder) -> str | None:
    name = "pass1_greedy"
    found = [(label, run.figures[key]) for label in run.line if (key := f"reasoning.{label}.{name}") in run.figures]
    if not found:
        return None
    chain = (run.recipe.get("data") or {}).get("chain") or {}
    what = f"{chain['held_out_operations']}-step problems" if "held_out_operations" in chain else "problems"
    label, value = found[-1]
    before = ", ".join(f"{older} {share:.0%}" for older, share in found[:-1])
    guess = f"a guess {1 / chain['modulus']:.0%}" if chain.get("modulus") else ""
    beside = "; ".join(part for part in (before, guess) if part)
    return f"reasons: {value:.0%} of held-out {what} right ({label}" + (f"; {beside})" if beside else ")")


def _talks(run: RunFolder) -> str | None:
    found = [(label, run.figures[key]) for label in run.line if (key := f"chat.{label}.answered") in run.figures]
    if not found:
        return None
    label, value = found[-1]
    return f"talks: {value:.0%} of held-out everyday turns answered in format ({label})"


def _refuses(run: RunFolder) -> str | None:
    for label in reversed(run.line):
        figures = run.under(f"chat.{label}")
        if "refused" in figures and "refused_harmless" in figures:
            return (
                f"refuses: {figures['refused']:.0%} of harmful requests, and {figures['refused_harmless']:.0%} of "
                f"harmless ones without need ({label})"
            )
    return None


def _picks_up(run: RunFolder) -> str | None:
    for label in reversed(run.line):
        shots = {int(k.removeprefix("shots")): v for k, v in run.under(f"icl.{label}").items() if k[5:].isdigit()}
        if len(shots) > 1:
            few, many = min(shots), max(shots)
            return (
                f"continues symbol patterns: {shots[few]:.0%} right with {few} examples in the prompt, "
                f"{shots[many]:.0%} with {many} ({label})"
            )
    return None
