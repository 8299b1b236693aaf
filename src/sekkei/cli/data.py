"""`sekkei data ACTION`: clean a folder of real pages, prove that the result depends on nothing else, look at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekkei.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from sekkei.text.pipeline.plan import Plan

PathArgument = Annotated[Path, typer.Argument(help="folder (or file): WARC, HTML, Parquet, JSONL, text; .gz, .zst")]
BlocksOption = Annotated[Path | None, typer.Option("--blocks", help="YAML with read: and blocks: [default: built in]")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="BLOCK.KEY=VALUE or read.KEY=VALUE, repeatable")]
WithoutOption = Annotated[list[str] | None, typer.Option("--without", help="leave this block out, repeatable")]
EvalOption = Annotated[
    list[Path] | None, typer.Option("--eval", help="evaluation file that must not be in the result, repeatable")
]


def clean(
    path: PathArgument,
    out: Annotated[Path, typer.Option("--out", help="folder for documents-*.parquet and ledger.parquet")],
    blocks: BlocksOption = None,
    changes: SetOption = None,
    without: WithoutOption = None,
    evaluations: EvalOption = None,
    workers: Annotated[int | None, typer.Option(help="processes [default: one per core]")] = None,
) -> None:
    """Clean pages into documents-*.parquet, with a ledger of what was dropped or removed, and why.

    A run that was killed goes on where it stopped; after a changed option only what depends on it is done again.

    \b
    Examples:
      sekkei data clean crawl --out cleaned
      sekkei data clean crawl --out cleaned --set language.keep=[en,ja] --set gopher_quality.min_words=30
      sekkei data clean crawl --out cleaned --without c4 --eval test.jsonl
    """
    import os

    from sekkei.core.progress import Console
    from sekkei.text.pipeline import local

    count = workers if workers is not None else len(os.sched_getaffinity(0))
    plan = plan_of(path, out / "work", blocks, changes, without, evaluations)
    summary, written = local.run(plan, out, count, Console())
    print("\n".join(told(summary)))
    print(f"{out}: {'written' if written else 'up to date, nothing to do'}; sekkei data report {out} shows why")


def verify(
    path: PathArgument,
    blocks: BlocksOption = None,
    changes: SetOption = None,
    without: WithoutOption = None,
    shards: Annotated[str, typer.Option(help="numbers of shards to compare")] = "1,2,7",
) -> int:
    """Clean the same pages in several ways (1, 2, 7 shards, cut and ordered differently) and compare the results.

    The exit code is 1 if they differ.

    \b
    Examples:
      sekkei data verify crawl
    """
    import tempfile

    from sekkei.core.progress import Console
    from sekkei.text.pipeline import verify as machinery

    try:
        counts = [int(item) for item in shards.split(",")]
    except ValueError:
        counts = []
    if len(counts) < 2 or min(counts) < 1:
        raise UserError(f"--shards={shards}: must be at least two numbers, like 1,2,7")
    with tempfile.TemporaryDirectory(prefix="sekkei-verify-") as work:
        plan = plan_of(path, Path(work), blocks, changes, without, None)
        outcomes = machinery.verify(plan, Console(), counts)
    print(f"{'shards':>6}  {'parts':>6}  {'documents':>9}  {'ledger':>8}  documents' digest  ledger's digest")
    for item in outcomes:
        digests = f"{item.documents_digest[:16]}   {item.ledger_digest[:16]}"
        print(f"{item.shards:>6}  {item.parts:>6,}  {item.documents:>9,}  {item.rows:>8,}  {digests}")
    same = machinery.agree(outcomes)
    print("the same documents and the same ledger" if same else "DIFFERENT: the result depends on how it was cut")
    return 0 if same else 1


def report(
    folder: Annotated[Path, typer.Argument(help="folder that `sekkei data clean` wrote")],
    samples: Annotated[int, typer.Option(help="texts shown per rule")] = 12,
) -> None:
    """Draw FOLDER/report.html: keep rates as a waterfall, histograms, and samples of kept and dropped texts.

    \b
    Examples:
      sekkei data report cleaned
    """
    from sekkei.report.data_report import render

    print(render(folder, samples))


def train_quality(
    good: Annotated[Path, typer.Argument(help="file or folder of good texts (any format of `clean`)")],
    bad: Annotated[Path, typer.Argument(help="file or folder of bad ones")],
    out: Annotated[Path, typer.Option("--out", help="file for the model")] = Path("quality.npz"),
    seed: Annotated[int, typer.Option(help="of the shuffles and the held-out part")] = 0,
) -> None:
    """Train a quality classifier; the block `classifier` then drops what it calls bad.

    \b
    Examples:
      sekkei data train-quality good bad --out quality.npz
      sekkei data clean crawl --out cleaned --blocks with-classifier.yaml
    """
    from sekkei.text.classifier import TrainQuality, train
    from sekkei.text.pipeline.plan import texts_of

    model = train(texts_of(good), texts_of(bad), TrainQuality(seed=seed))
    model.save(out)
    about = model.about
    auc = about.get("held_out_auc")
    measured = f"; on {about['held_out']} held-out texts accuracy {about['held_out_accuracy']:.3f}" if auc else ""
    print(f"{out}: {about['good']} good, {about['bad']} bad{measured}" + (f", AUC {auc:.3f}" if auc else ""))


def blocks(
    file: BlocksOption = None,
    changes: SetOption = None,
    without: WithoutOption = None,
) -> None:
    """Print the block list with every parameter, as YAML that --blocks reads.

    \b
    Examples:
      sekkei data blocks > blocks.yaml
    """
    import yaml

    from sekkei.core import config as loader
    from sekkei.text.pipeline import declare

    read, items = _declared(file, changes, without, None)
    found = {"read": loader.to_mapping(read), "blocks": declare.declared(declare.parse(items))}
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), end="")


COMMANDS = {"clean": clean, "verify": verify, "report": report, "train-quality": train_quality, "blocks": blocks}


def plan_of(
    path: Path,
    work: Path,
    file: Path | None,
    changes: list[str] | None,
    without: list[str] | None,
    evaluations: list[Path] | None,
) -> Plan:
    """The plan that the options ask for."""
    from sekkei.text.pipeline.plan import Plan

    read, items = _declared(file, changes, without, evaluations)
    return Plan(path=str(path), work=str(work), read=read, items=tuple(items))


def told(summary: dict[str, Any]) -> list[str]:
    """The exit summary: a line per block, and under it why documents went."""
    lines = [f"{'block':<18} {'in':>9} {'out':>9}  dropped by rule (and spans removed)"]
    for block in summary["blocks"]:
        why = [f"{rule.removeprefix(block['block'] + '.')} {count:,}" for rule, count in _most(block["rules"])]
        why += [f"[{rule.removeprefix(block['block'] + '.')} {count:,}]" for rule, count in _most(block["spans"])]
        lines.append(f"{block['block']:<18} {block['in']:>9,} {block['out']:>9,}  {', '.join(why)}".rstrip())
    came = summary["blocks"][0]["in"] if summary["blocks"] else 0
    share = f" ({summary['documents'] / came:.1%})" if came else ""
    lines.append(f"{summary['documents']:,} of {came:,} kept{share}, {summary['chars']:,} characters")
    return lines


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _declared(
    file: Path | None, changes: list[str] | None, without: list[str] | None, evaluations: list[Path] | None
) -> tuple[Any, list[Any]]:
    from sekkei.core import config as loader
    from sekkei.text.pipeline import declare
    from sekkei.text.read.files import Read

    data = loader.read_yaml(file) if file else {}
    for key in data:
        if key not in ("read", "blocks"):
            raise ConfigError(str(key), "unknown key; known keys: read, blocks")
    mapping = dict(data.get("read") or {})
    others = []
    for change in changes or []:
        key, equals, value = change.partition("=")
        if key.startswith("read.") and equals:
            mapping[key.removeprefix("read.")] = loader.parse_yaml(value, f"--set {change}")
        else:
            others.append(change)
    items = declare.with_changes(data.get("blocks") or list(declare.DEFAULT), others, without or [])
    if evaluations:
        items.append({"decontaminate": {"files": [str(path) for path in evaluations]}})
    return loader.from_mapping(Read, mapping, "read"), items
