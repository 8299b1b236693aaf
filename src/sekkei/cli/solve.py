"""`sekkei solve`: one question, one strategy of reasoning at inference time, and its trace."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekkei.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from sekkei.prompting.best_of_n import Scorer
    from sekkei.prompting.few_shot import Example, Similarity
    from sekkei.prompting.solution import Solution

STRATEGIES = ("direct", "cot", "self-consistency", "best-of-n", "tot")
USED_BY: dict[str, tuple[str, ...]] = {
    "samples": ("self-consistency", "best-of-n"),
    "choose_by": ("best-of-n",),
    "examples": STRATEGIES[:-1],
    **dict.fromkeys(("algorithm", "generate", "evaluate", "beam", "candidates", "depth", "threshold"), ("tot",)),
}
ABOUT_EXAMPLES = ("shots", "select", "order", "similarity", "balance")


def command(
    question: Annotated[str, typer.Argument(help="what to solve; '4 9 10 13' is a Game of 24")],
    model: Annotated[
        str | None, typer.Option(help="who answers: runs/NAME, runs/NAME#STAGE, https://HOST/v1#MODEL or env")
    ] = None,
    strategy: Annotated[str, typer.Option(help="direct, cot, self-consistency, best-of-n or tot")] = "cot",
    trace: Annotated[Path | None, typer.Option(help="write the tree to FILE.html, or everything to FILE.json")] = None,
    samples: Annotated[int | None, typer.Option(help="of self-consistency and best-of-n [default: 16]")] = None,
    choose_by: Annotated[
        str | None, typer.Option(help="best-of-n: likelihood [default], judge, or a reward model as RUN#STAGE")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="tot: bfs [default] or dfs")] = None,
    generate: Annotated[str | None, typer.Option(help="tot: propose, sample or auto [default]")] = None,
    evaluate: Annotated[str | None, typer.Option(help="tot: value, vote, likely or auto [default]")] = None,
    beam: Annotated[int | None, typer.Option(help="tot bfs: states kept per step [default: 5]")] = None,
    candidates: Annotated[int | None, typer.Option(help="tot: thoughts asked for per state [default: 5]")] = None,
    depth: Annotated[int | None, typer.Option(help="tot: most thoughts on a path [default: the task's]")] = None,
    threshold: Annotated[float | None, typer.Option(help="tot dfs: a state must be valued above it")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="tot: the exact solver of the Game of 24, no model")] = False,
    examples: Annotated[Path | None, typer.Option(help="JSONL of question, answer, reasoning, label")] = None,
    shots: Annotated[int | None, typer.Option(help="examples to show [default: 4]")] = None,
    select: Annotated[str | None, typer.Option(help="examples: random, nearest [default] or diverse")] = None,
    order: Annotated[str | None, typer.Option(help="examples: best_last [default], best_first, shuffled")] = None,
    similarity: Annotated[str | None, typer.Option(help="bm25 [default], minilm, hash, https://HOST/v1#MODEL")] = None,
    balance: Annotated[bool, typer.Option("--balance", help="as many examples of each label")] = False,
    temperature: Annotated[float, typer.Option(help="of what is sampled")] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="of one reply")] = 512,
    budget: Annotated[int | None, typer.Option(help="most tokens in all")] = None,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> int:
    """Solve a question by prompting alone: chains of thought, votes, the best of n, or a search (Tree of Thoughts).

    Problems that a program can check (Game of 24, modular chains) are checked; a wrong or missing answer gives exit
    code 1. Without --model, SEKKEI_LLM_URL and SEKKEI_LLM_MODEL are used where they are set.

    \b
    Examples:
      sekkei solve "4 9 10 13" --strategy tot --exact --trace tree.html
      sekkei solve "start at 7, add 3, times 4, minus 5, modulo 23" --model runs/laptop --strategy tot --trace tree.html
      sekkei solve "How many minutes are in 3 days?" --model https://HOST/v1#MODEL --strategy self-consistency
    """
    from sekkei.core.config import from_mapping
    from sekkei.prompting.build import StrategyConfig, build, checked, kind_of
    from sekkei.prompting.solution import solve_with

    options = {
        "strategy": strategy, "samples": samples, "choose_by": choose_by, "algorithm": algorithm, "generate": generate,
        "evaluate": evaluate, "beam": beam, "candidates": candidates, "depth": depth, "threshold": threshold,
        "exact": exact, "shots": shots, "select": select, "order": order, "balance": balance or None,
        "temperature": temperature, "max_tokens": max_tokens, "seed": seed,
    }  # fmt: skip
    check_used({**options, "similarity": similarity, "examples": examples})
    pool = read_examples(examples) if examples else ()
    scorer = _reward(choose_by) if choose_by else None
    options |= {"choose_by": "reward" if scorer else choose_by, "shots": 4 if pool and shots is None else shots}
    config = from_mapping(StrategyConfig, {k: value for k, value in options.items() if value is not None}, "solve")
    check_trace(trace)
    with _open(model, exact, budget) as llm:
        kind = kind_of(question)
        chosen = build(config, llm.capabilities, question, pool, kind, scorer, _similarity(similarity))
        solution = solve_with(chosen, llm, question)
        name = "exact solver" if exact else llm.name
    right = checked(kind, question, solution.answer)
    found = as_mapping(question, chosen.name, name, solution, right)
    if trace is not None:
        _write(trace, question, chosen.name, name, solution, found)
    print(json.dumps(found, ensure_ascii=False, indent=1) if as_json else shown(solution, right, trace))
    return 1 if right is False or (solution.answer is None and not solution.reply) else 0


def check_used(options: Mapping[str, Any]) -> None:
    """Refuse options that the chosen strategy would not look at, and those about examples where there are none.

    Raises:
        ConfigError
    """
    strategy = options["strategy"]
    for key, strategies in USED_BY.items():
        if options[key] is not None and strategy in STRATEGIES and strategy not in strategies:
            raise ConfigError(key, f"is for the strategy {' or '.join(strategies)}, not for {strategy}; leave it out")
    about = [key for key in ABOUT_EXAMPLES if options[key] is not None]
    if about and options["examples"] is None:
        raise ConfigError(about[0], "is about examples, and there are none; name a file with --examples FILE")


def check_trace(path: Path | None) -> None:
    """Refuse a trace of an unknown form before anything is asked.

    Raises:
        UserError
    """
    if path is not None and path.suffix not in (".html", ".json"):
        raise UserError(f"trace: {path} must end in .html (the tree, drawn) or .json (everything)")


def _similarity(name: str | None) -> Similarity:
    """BM25, or the cosine of what an embedder of rag/embed.py says."""
    from sekkei.prompting.few_shot import BM25, Cosine

    if name in (None, "bm25"):
        return BM25()
    from sekkei.rag.embed import find_embedder

    embedder = find_embedder(str(name))
    return Cosine(lambda texts: embedder.embed(texts).tolist())


def _open(model: str | None, exact: bool, budget: int | None) -> Any:
    from sekkei.llm import LLM
    from sekkei.llm.budget import BudgetConfig
    from sekkei.llm.open import LLMConfig, open_llm
    from sekkei.llm.scripted import Scripted

    if exact:
        return LLM(Scripted([]))  # nobody is asked; a call would raise
    model = model or ("env" if os.environ.get("SEKKEI_LLM_URL") else None)
    if model is None:
        raise UserError("model: nobody to ask; name one with --model (runs/laptop, https://HOST/v1#MODEL)")
    return open_llm(LLMConfig(spec=model, budget=BudgetConfig(tokens=budget)))


def _reward(choose_by: str) -> Scorer | None:
    """The scorer of RUN#STAGE, None where something else is named."""
    from sekkei.llm.reward import is_reward_spec, open_reward
    from sekkei.prompting import scorers

    if not is_reward_spec(choose_by):
        return None
    run, _, stage = choose_by.partition("#")
    return scorers.reward(open_reward(Path(run), stage).score_reply)


def read_examples(path: Path) -> tuple[Example, ...]:
    """Solved questions, one JSON object a line.

    Raises:
        UserError: the file is missing, a line is no JSON, or a key is unknown or missing.
    """
    from sekkei.core.config import from_mapping
    from sekkei.prompting.few_shot import Example

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"examples: {path} cannot be read ({error})") from None
    made = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise UserError(f"examples: {path}, line {number} is no JSON ({error})") from None
        if not isinstance(data, dict):
            raise UserError(f'examples: {path}, line {number} is no object; write {{"question": …, "answer": …}}')
        made.append(from_mapping(Example, data, f"{path}:{number}"))
    if not made:
        raise UserError(f"examples: {path} is empty")
    return tuple(made)


def shown(solution: Solution, right: bool | None, trace: Path | None) -> str:
    """For people: the answer, whether it is right, what it cost."""
    verdict = {True: "  (checked: right)", False: "  (checked: wrong)", None: ""}[right]
    answer = solution.answer if solution.answer is not None else solution.reply.strip()
    cost = solution.cost
    lines = [f"{answer}{verdict}" if answer else f"no answer{verdict}"]
    if solution.answer is None and answer:
        lines[0] += "  (no answer could be read from this reply)"
    lines.append(f"{cost.calls} calls, {cost.prompt_tokens} tokens read, {cost.completion_tokens} written")
    return "\n".join([*lines, *([f"trace: {trace}"] if trace else [])])


def as_mapping(question: str, strategy: str, model: str, solution: Solution, right: bool | None) -> dict[str, Any]:
    """For programs."""
    from dataclasses import asdict

    data = asdict(solution)
    return {"question": question, "strategy": strategy, "model": model, "right": right, **data}


def _write(path: Path, question: str, strategy: str, model: str, solution: Solution, found: dict[str, Any]) -> None:
    from sekkei.core import atomic
    from sekkei.prompting.drawing import write_page

    if path.suffix == ".json":
        atomic.write_json(path, found)
    else:
        write_page(path, question, strategy, model, solution)
