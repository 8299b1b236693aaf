"""Writes what the pages show of code and results between their markers: captions of files, tables of recorded figures.

    README.md            files: the first sentence of every source file; figures: docs/results/laptop.json
    docs/alignment.md    study: docs/results/laptop-study.json, r1-zero.json and r1.json, as far as they are there;
                         words: docs/results/words-zero.json and words-r1.json
    docs/prompting.md    strategies: docs/results/laptop-study.json
    docs/pretraining.md  pretraining, long: docs/results/laptop.json

python docs/captions.py            rewrite the pages
python docs/captions.py --check    exit 1 if it is out of date (a test does this)
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

from sekkei.recipes.recipe import load

ROOT = Path(__file__).resolve().parent.parent
LOWER = ("core", "text", "text/blocks", "text/pipeline", "text/read", "model", "tools")
MIDDLE = ("parallel", "data", "data/tasks", "engine", "train", "objectives", "llm")
UPPER = ("prompting", "prompting/tasks", "rag", "agent", "evals", "judge", "serve", "prove", "report")
TOP = ("recipes", "stages", "cli")


def caption(path: Path) -> str:
    """The first paragraph of the module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".:")


def captions() -> str:
    lines = []
    for folder in (*LOWER, *MIDDLE, *UPPER, *TOP):
        lines += ["", f"**{folder}/**", "", "| file | what it is |", "|---|---|"]
        for path in sorted((ROOT / "src" / "sekkei" / folder).glob("*.py")):
            text = caption(path)
            if text:
                lines.append(f"| `{path.name}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines).strip() + "\n"


def figures() -> str:
    """Two small tables of what `sekkei run laptop` measured."""
    run = json.loads((ROOT / "docs" / "results" / "laptop.json").read_text(encoding="utf-8"))
    found, machine = run["figures"], run["machine"]
    lines = [
        "What `sekkei run laptop` measured on its own held-out data ("
        f"seed {run['seed']}, torch "
        f"{run['versions']['torch']}, {machine['cores']} cores in {machine['fast_dtype']}, "
        f"{found['run.seconds'] / 60:.0f} minutes, "
        f"{found['run.peak_gib']:.1f} GiB; all figures in "
        "[docs/results/laptop.json](docs/results/laptop.json)):",
        "",
        "| bits per byte after | docs | code | maths | beyond the old context |",
        "|---|---|---|---|---|",
    ]
    for stage in ("general", "reasoning", "long"):
        values = [found[f"pretrain.{stage}.bpb.{name}"] for name in ("docs", "code", "math", "beyond_context")]
        lines.append(f"| `{stage}` | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    control = found["pretrain.long.control.bpb.beyond_context"]
    lines += [
        f"| control: positions rescaled, not trained | | | | {control:.3f} |",
        "",
        "| six operations, held out | greedy | sampled | majority of 8 | best of 8 | steps written | everyday turns |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in ("base", "sft", "dpo", "grpo"):
        names = ("pass1_greedy", "pass1_sampled", "maj8", "pass8")
        values = [f"{found[f'reasoning.{label}.{name}']:.0%}" for name in names]
        values += [f"{found[f'reasoning.{label}.steps']:.1f}", f"{found[f'chat.{label}.answered']:.0%}"]
        lines.append(f"| `{label}` | " + " | ".join(values) + " |")
    silent = found["reasoning.grpo.no_thinking.pass1_greedy"]
    lines.append(f"| `grpo`, thinking switched off | {silent:.0%} | | | | 0 | |")
    sums = {name: found[f"agent.calculator.{name}"] for name in ("success", "without")}
    lines += [
        "",
        f"Held-out sums of up to six digits: {sums['success']:.0%} right with the calculator, {sums['without']:.0%} "
        "without it.",
    ]
    return "\n".join(lines) + "\n"


def pretraining() -> str:
    """Held-out bits per byte before and after every stage, and what it read."""
    found = json.loads((ROOT / "docs" / "results" / "laptop.json").read_text(encoding="utf-8"))["figures"]
    lines = [
        "| held-out bits per byte after | tokens read | docs | code | maths | positions 256–1024 of long documents |",
        "|---|--:|---|---|---|---|",
    ]
    for stage in ("start", "general", "reasoning", "long"):
        tokens = f"{found[f'pretrain.{stage}.tokens']:,.0f}" if f"pretrain.{stage}.tokens" in found else "0"
        names = ("docs", "code", "math", "beyond_context")
        values = [found.get(f"pretrain.{stage}.bpb.{name}") for name in names]
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| `{stage}` | {tokens} | " + " | ".join(shown) + " |")
    control = found["pretrain.long.control.bpb.beyond_context"]
    return "\n".join([*lines, f"| positions rescaled, not trained | 0 | | | | {control:.3f} |"]) + "\n"


def long_context() -> str:
    """What the long stage was worth."""
    found = json.loads((ROOT / "docs" / "results" / "laptop.json").read_text(encoding="utf-8"))["figures"]
    trained, control, near = (
        found[f"pretrain.long.{name}"]
        for name in ("bpb.beyond_context", "control.bpb.beyond_context", "bpb.positions_128_256")
    )
    share = found["pretrain.long.token_share"]
    return (
        f"training on {share:.1%} of all tokens takes {1 - trained / control:.1%} off the control there "
        f"({control:.3f} to {trained:.3f}). It is also lower than at positions 128 to 256 ({near:.3f}): "
        "the model uses what stands further back than it could see before.\n"
    )


def study() -> str:
    """Every tuning stage of the recorded studies, side by side."""
    lines = [
        "| recipe | stage | greedy | sampled | thinking off | operations written | training steps | tokens trained "
        "| models | MB | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("laptop-study", "r1-zero", "r1"):
        path = ROOT / "docs" / "results" / f"{name}.json"
        if not path.exists():
            continue
        run = json.loads(path.read_text(encoding="utf-8"))
        found, seconds = run["figures"], run["seconds"]
        for stage in [key.removeprefix("eval.") for key in seconds if key.startswith("eval.")]:
            figures = {key: found.get(f"reasoning.{stage}.{key}") for key in ("pass1_greedy", "pass1_sampled", "steps")}
            if figures["pass1_greedy"] is None:
                continue
            silent = found[f"reasoning.{stage}.no_thinking.pass1_greedy"]
            shown = [f"{figures['pass1_greedy']:.0%}", f"{figures['pass1_sampled']:.0%}", f"{silent:.0%}"]
            shown.append(f"{figures['steps']:.1f}")
            if f"{stage}.tokens" in found:
                steps = found.get(f"{stage}.steps", training_steps(name, stage))
                shown += [f"{steps:.0f}", f"{found[f'{stage}.tokens']:,.0f}", f"{found[f'{stage}.models']:.0f}"]
                shown += [f"{found[f'{stage}.model_bytes'] / 1e6:.1f}", f"{seconds[stage]:,.0f}"]
            else:
                shown += [""] * 5
            lines.append(f"| `{name}` | `{stage}` | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def words() -> str:
    """Every checkpoint of the two recipes on problems in GSM8K's format."""
    lines = [
        "| recipe | checkpoint | greedy (95%) | sampled | majority of 8 | best of 8 | thinking off "
        "| operations written |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("words-zero", "words-r1"):
        found = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))["figures"]
        for label in ("base", "base-document", "zero", "cold", "rl-1", "distilled", "rl-2"):
            key = f"own.{label}.pass1_greedy"
            if key not in found:
                continue
            of = {what: found[f"own.{label}.{what}"] for what in ("pass1_sampled", "maj8", "pass8")}
            shown = [f"{found[key]:.0%} ({found[f'{key}.low']:.0%}–{found[f'{key}.high']:.0%})"]
            shown += [f"{value:.0%}" for value in of.values()]
            shown += [f"{found[f'own.{label}.no_thinking.pass1_greedy']:.0%}", f"{found[f'own.{label}.steps']:.1f}"]
            lines.append(f"| `{name}` | `{label}` | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def training_steps(recipe: str, stage: str) -> int:
    """Optimizer steps that the shipped recipe gives a stage."""
    whole = load(recipe, [])
    if stage not in whole.tune:
        return int(getattr(whole, stage).steps)
    tune = whole.tune[stage]
    kinds = ("sft", "reward", "dpo", "kto", "online_dpo", "ppo", "grpo")
    return next(int(getattr(tune, kind).steps) for kind in kinds if getattr(tune, kind) is not None)


def strategies() -> str:
    """What every strategy at inference time gave, after SFT and after GRPO."""
    found = json.loads((ROOT / "docs" / "results" / "laptop-study.json").read_text(encoding="utf-8"))["figures"]
    lines = [
        "| strategy | SFT | tokens | any of, top-1, majority, mean | GRPO | tokens | any of, top-1, majority, mean |",
        "|---|--:|--:|---|--:|--:|---|",
    ]
    first, second = "inference.sft.", "inference.grpo-0."
    keys = [key[len(first) : -len(".accuracy")] for key in found if key.startswith(first) and key.endswith(".accuracy")]
    for key in keys:
        shown = [f"`{key}`"]
        for stage in (first, second):
            low, high = found[f"{stage}{key}.low"], found[f"{stage}{key}.high"]
            shown.append(f"{found[f'{stage}{key}.accuracy']:.0%} ({low:.0%}–{high:.0%})")
            shown.append(f"{found[f'{stage}{key}.tokens']:,.0f}")
            four = [found.get(f"{stage}{key}.{name}") for name in ("any_of", "top1", "majority", "mean")]
            shown.append(", ".join(f"{value:.0%}" for value in four if value is not None))
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers `name` and `/name`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(start)
    _, tail = rest.split(end)
    return f"{head}{start}\n{content}{end}{tail}"


def main() -> int:
    parts = {
        ROOT / "README.md": {"files": captions(), "figures": figures()},
        ROOT / "docs" / "alignment.md": {"study": study(), "words": words()},
        ROOT / "docs" / "prompting.md": {"strategies": strategies()},
        ROOT / "docs" / "pretraining.md": {"pretraining": pretraining(), "long": long_context()},
    }
    stale = False
    for page, contents in parts.items():
        text = new = page.read_text(encoding="utf-8")
        for name, content in contents.items():
            new = fill(new, name, content)
        stale |= new != text
        if "--check" not in sys.argv:
            page.write_text(new, encoding="utf-8")
    return int(stale and "--check" in sys.argv)


if __name__ == "__main__":
    raise SystemExit(main())
