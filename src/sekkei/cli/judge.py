"""`sekkei judge ACTION`: ask judges, and make figures of judgements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def winrate(
    annotations: Annotated[list[Path], typer.Argument(help="files in AlpacaEval's annotation format")],
    baseline: Annotated[str, typer.Option(help="name of the model that all others are compared with")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
    html: Annotated[Path | None, typer.Option(help="draw them into this page")] = None,
    draws: Annotated[int, typer.Option(help="resamples of instructions for the intervals")] = 500,
    seed: Annotated[int, typer.Option(help="of the resamples and the folds of cross-validation")] = 0,
    length_slope: Annotated[float, typer.Option(help="where the shared length slope is weakly pulled")] = 1.6,
) -> None:
    """Win rates and length-controlled win rates against a baseline, with 95% intervals.

    Rows hold instruction, output_1, output_2, generator_2, preference (1 = output_1 is better, 2 = output_2, null =
    unreadable) and perhaps generator_1. Rows are matched by instruction; files may hold one or many models. The
    more models share the instructions, the better their difficulty is known.

    \b
    Examples:
      sekkei judge winrate annotations.json --baseline gpt4_1106_preview --json winrates.json
      sekkei judge winrate results/*/annotations.json --baseline gpt4_1106_preview --html winrates.html
    """
    from sekkei.core import atomic
    from sekkei.core.progress import Console
    from sekkei.judge.annotations import build_table, read_rows
    from sekkei.judge.winrate import win_rates

    table = build_table(read_rows(annotations), baseline)
    with Console().bar("winrate", draws) as bar:
        found = win_rates(table, draws, seed, length_slope, bar.update)
    width = max(len("model"), *(len(model.name) for model in found.models))
    print(f"{'model':<{width}}  {'win rate':>20}  {'length-controlled':>20}  {'discrete':>8}  {'n':>5}  {'length':>6}")
    for model in found.models:
        raw, corrected = model.win_rate.scaled(100), model.length_controlled.scaled(100)
        print(
            f"{model.name:<{width}}  {raw.value:6.2f} [{raw.low:5.1f}, {raw.high:5.1f}]  "
            f"{corrected.value:6.2f} [{corrected.low:5.1f}, {corrected.high:5.1f}]  {100 * model.discrete:8.2f}  "
            f"{model.wins + model.losses + model.ties:>5}  {model.mean_length:6.0f}"
        )
    for note in found.notes:
        print(f"note: {note}")
    if json_file is not None:
        atomic.write_json(json_file, found.as_json())
        print(f"figures: {json_file}")
    if html is not None:
        from sekkei.judge.page import winrate_section, write_page

        print(f"page: {write_page(html, f'Win rates against {baseline}', [winrate_section(found)])}")


def agreement(
    ratings: Annotated[Path, typer.Argument(help="a JSON list (or JSON lines) of rated items")],
    raters: Annotated[str, typer.Option(help="keys that hold the raters' labels, comma-separated")],
    level: Annotated[str, typer.Option(help="of alpha: nominal, ordinal, interval or ratio")] = "nominal",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures to this file")] = None,
    draws: Annotated[int, typer.Option(help="resamples of items for the intervals")] = 1000,
    seed: Annotated[int, typer.Option(help="of the resamples")] = 0,
) -> None:
    """How far raters agree beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, with 95% intervals.

    A rater's key may be missing or null in a row. Cohen uses items that both rated, Fleiss those that all rated.

    \b
    Examples:
      sekkei judge agreement pandalm_testset.json --raters annotator1,annotator2,annotator3
    """
    from sekkei.core import atomic
    from sekkei.judge.agreement import agreement_report, read_ratings

    names = [name.strip() for name in raters.split(",") if name.strip()]
    found = agreement_report(read_ratings(ratings, names), names, level, draws, seed)
    width = max(len(name) for name in found)
    for name, estimate in found.items():
        print(f"{name:<{width}}  {estimate.value:6.3f}  [{estimate.low:.3f}, {estimate.high:.3f}]")
    if json_file is not None:
        atomic.write_json(json_file, {name: estimate.as_json() for name, estimate in found.items()})
        print(f"figures: {json_file}")


def rank(
    annotations: Annotated[list[Path], typer.Argument(help="files in AlpacaEval's annotation format")],
    baseline: Annotated[str | None, typer.Option(help="name of output_1's model where generator_1 is missing")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
    draws: Annotated[int, typer.Option(help="resamples of questions for the intervals")] = 1000,
    seed: Annotated[int, typer.Option(help="of the resamples")] = 0,
    family: Annotated[list[str] | None, typer.Option(help="PREFIX=FAMILY of models' names")] = None,
) -> None:
    """Rank many models (Bradley-Terry), and measure each judge's pull to the first place, length and its own family.

    \b
    Examples:
      sekkei judge rank judging/annotations.json --json ranking.json
      sekkei judge rank judging/annotations.json --family gpt=openai --family o3=openai
    """
    from sekkei.core import atomic
    from sekkei.judge.annotations import read_rows
    from sekkei.judge.bias import family_of
    from sekkei.judge.compare import compare as compare_rows
    from sekkei.judge.pairs import to_pairs

    rows, known = read_rows(annotations), _families(family)
    pairs = to_pairs(rows, baseline)
    found = compare_rows(
        rows,
        baseline,
        [family_of(name, known) for name in pairs.judges],
        [family_of(name, known) for name in pairs.candidates],
        draws,
        seed,
    )
    _print_comparison(found)
    if json_file is not None:
        atomic.write_json(json_file, found.as_json())
        print(f"figures: {json_file}")


def jury(
    annotations: Annotated[list[Path], typer.Argument(help="several judges' verdicts, told apart by annotator")],
    anchors: Annotated[Path, typer.Option(help="people's verdicts on some of the same pairs, in the same format")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write weights and accuracies to this file")] = None,
    out: Annotated[Path | None, typer.Option(help="write the jury's verdicts here, in the same format")] = None,
    seed: Annotated[int, typer.Option(help="of the folds of cross-validation")] = 0,
) -> None:
    """Combine judges by weights learnt from a few answers that people labelled; 80 anchors are a good number.

    \b
    Examples:
      sekkei judge jury judging/annotations.json --anchors people.json --out jury.json
    """
    from sekkei.core import atomic
    from sekkei.judge.annotations import read_rows, with_texts
    from sekkei.judge.jury import convene
    from sekkei.judge.pairs import to_pairs

    found = convene(to_pairs(read_rows(annotations)), to_pairs(read_rows([anchors])), seed)
    print(f"{found.jury.anchors} anchors; weights and accuracy on them:")
    for name, weight in zip(found.jury.judges, found.jury.weights):
        print(f"  {name:<32} {weight:6.3f}  {found.accuracies[name]:.3f}")
    for way in ("majority", "mean", "calibrated, held out"):
        print(f"  {way:<32}         {found.accuracies[way]:.3f}")
    for note in found.jury.notes:
        print(f"note: {note}")
    if json_file is not None:
        atomic.write_json(json_file, found.as_json())
        print(f"figures: {json_file}")
    if out is not None:
        atomic.write_json(out, with_texts(found.rows, annotations))
        print(f"verdicts: {out}")


Answers = Annotated[list[Path], typer.Argument(help="one file of answers per model: instruction, output")]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", help="who judges: https://HOST/v1#MODEL, runs/NAME, runs/NAME#reward (a reward model), …"),
]
RubricFile = Annotated[Path | None, typer.Option("--rubric", help="criteria in YAML; the blueprint's five if left out")]
Concurrency = Annotated[int, typer.Option(help="requests under way at once, per judge")]
PricePrompt = Annotated[float | None, typer.Option(help="of a million prompt tokens, for the estimate of costs")]
PriceCompletion = Annotated[float | None, typer.Option(help="of a million written tokens")]
Families = Annotated[list[str] | None, typer.Option("--family", help="PREFIX=FAMILY of models' names")]
OwnFamily = Annotated[str, typer.Option(help="a judge of a model's own family: flag, leave-out or refuse")]
DryRun = Annotated[bool, typer.Option(help="say what would be asked and what it would cost, and stop")]


def run(
    answers: Answers,
    out: Annotated[Path, typer.Option(help="folder of judgements and scorecards; the same again goes on in it")],
    judge: Judges = None,
    rubric: RubricFile = None,
    concurrency: Concurrency = 16,
    price_prompt: PricePrompt = None,
    price_completion: PriceCompletion = None,
    family: Families = None,
    own_family: OwnFamily = "flag",
    dry_run: DryRun = False,
) -> int:
    """Score every answer by a rubric, and write scorecards.json and scorecards.html.

    Answers are JSON lines with instruction and output, one file per model. A run that is cut off goes on when the
    same command is given again; nothing is asked or paid twice. What a program has found out (a row's key "verified":
    {"accuracy": true}) stands in place of judges; without --judge only that and reward models are filled in.

    \b
    Examples:
      sekkei judge run answers.jsonl --judge https://api.openai.com/v1#gpt-5 --out judged --dry-run
      sekkei judge run a.jsonl b.jsonl --judge runs/laptop#reward --out judged --rubric mine.yaml
    """
    from sekkei.judge.command import Costs, Order, score

    costs = Costs(prompt=price_prompt, completion=price_completion)
    order = Order(answers, judge or (), _families(family), own_family, concurrency, costs, dry_run)
    return score(order, rubric, out)


def compare(
    answers: Answers,
    out: Annotated[Path, typer.Option(help="the report; judgements are kept beside it in NAME.judging/")],
    judge: Judges = None,
    rubric: RubricFile = None,
    scorecards: Annotated[bool, typer.Option(help="also score by the rubric, not only pair by pair")] = True,
    concurrency: Concurrency = 16,
    price_prompt: PricePrompt = None,
    price_completion: PriceCompletion = None,
    family: Families = None,
    own_family: OwnFamily = "flag",
    dry_run: DryRun = False,
) -> int:
    """Compare models pair by pair in both orders: ranking, win rates, the judges' biases, the most disputed answers.

    \b
    Examples:
      sekkei judge compare a.jsonl b.jsonl --judge https://HOST/v1#MODEL --out report.html
      sekkei judge compare *.jsonl --judge URL1#M1 --judge URL2#M2 --own-family leave-out --out report.html
    """
    from sekkei.judge.command import Costs, Order, contrast

    costs = Costs(prompt=price_prompt, completion=price_completion)
    order = Order(answers, judge or (), _families(family), own_family, concurrency, costs, dry_run)
    return contrast(order, rubric, out, scorecards)


def _families(given: list[str] | None) -> dict[str, str]:
    from sekkei.core.errors import UserError

    found = {}
    for text in given or []:
        prefix, sign, name = text.partition("=")
        if not (prefix and sign and name):
            raise UserError(f"--family {text}: is written PREFIX=FAMILY, as gpt=openai")
        found[prefix] = name
    return found


def _print_comparison(found: Any) -> None:
    from sekkei.judge.command import comparison_lines

    for line in comparison_lines(found):
        print(line)


COMMANDS = {
    "winrate": winrate,
    "agreement": agreement,
    "rank": rank,
    "jury": jury,
    "run": run,
    "compare": compare,
}
