"""`sekkei data ACTION`: clean a folder of real pages, prove that the result depends on nothing else, look at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekkei.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from sekkei.text.document import Dropped
    from sekkei.text.pipeline.origins import Fate
    from sekkei.text.pipeline.plan import Plan
    from sekkei.text.pipeline.scale import Executor

PathArgument = Annotated[
    Path, typer.Argument(help="folder (or file): WARC, HTML, Parquet, JSONL, text; or hub:OWNER/NAME")
]
BlocksOption = Annotated[Path | None, typer.Option("--blocks", help="YAML with read:, blocks: and executor:")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="BLOCK.KEY=VALUE, read.KEY=VALUE, executor.KEY=VALUE, repeatable")
]
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
    On a cluster the same blocks run as jobs of Slurm or Ray (`executor.kind`), with the same result.

    \b
    Examples:
      sekkei data clean crawl --out cleaned
      sekkei data clean crawl --out cleaned --set executor.kind=slurm --set executor.partition=cpu
      sekkei data clean crawl --out cleaned --set language.keep=[en,ja] --set gopher_quality.min_words=30
      sekkei data clean crawl --out cleaned --without c4 --eval test.jsonl
    """
    from sekkei.core.progress import Console
    from sekkei.text.blocks.decontaminate import overlap
    from sekkei.text.pipeline import local, scale

    count = workers if workers is not None else len(os.sched_getaffinity(0))
    plan, executor = plan_of(path, out / "work", blocks, changes, without, evaluations)
    if executor.kind == "local":
        summary, written = local.run(plan, out, count, Console())
    else:
        found = scale.run(plan, out, executor)
        if found is None:
            print(f"{out}: handed in; `squeue` shows the jobs, the last of them writes summary.json")
            return
        summary, written = found, True
    print("\n".join(told(summary)))
    for name, share in overlap(out).items():
        print(f"{name}: {share:.1%} of its items stood in the pages; what holds them is dropped")
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
        plan, _ = plan_of(path, Path(work), blocks, changes, without, None)
        outcomes = machinery.verify(plan, Console(), counts)
    print(f"{'shards':>6}  {'parts':>6}  {'documents':>9}  {'ledger':>8}  documents' digest  ledger's digest")
    for item in outcomes:
        digests = f"{item.documents_digest[:16]}   {item.ledger_digest[:16]}"
        print(f"{item.shards:>6}  {item.parts:>6,}  {item.documents:>9,}  {item.rows:>8,}  {digests}")
    same = machinery.agree(outcomes)
    print("the same documents and the same ledger" if same else "DIFFERENT: the result depends on how it was cut")
    return 0 if same else 1


def report(
    folder: Annotated[Path, typer.Argument(help="folder that `sekkei data clean` wrote, or a run")],
    samples: Annotated[int, typer.Option(help="texts shown per rule")] = 12,
) -> None:
    """Draw FOLDER/report.html: keep rates as a waterfall, histograms, and samples of kept and dropped texts.

    Of a run it is RUN/data-report.html.

    \b
    Examples:
      sekkei data report cleaned
      sekkei data report runs/laptop
    """
    from sekkei.report.data_report import render

    cleaned, page = cleaned_of(folder)
    print(render(cleaned, page, samples))


def why(
    folder: Annotated[Path, typer.Argument(help="folder that `sekkei data clean` wrote, or a run")],
    query: Annotated[str, typer.Argument(help="a page's URL, a part of it, or its id (FILE or FILE#RECORD)")],
) -> None:
    """Tell what became of a page: kept or dropped, by which rule, and what was removed from it.

    \b
    Examples:
      sekkei data why cleaned https://example.org/about
      sekkei data why cleaned crawl-0001.warc.gz#17
    """
    from sekkei.text.pipeline import origins

    found, count = origins.fates(cleaned_of(folder)[0], query)
    for fate in found:
        print("\n".join(fate_lines(fate)))
    if count > len(found):
        print(f"… and {count - len(found):,} more pages; give more of the URL")


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

    read, items, executor = _declared(file, changes, without, None)
    found = {"read": loader.to_mapping(read), "blocks": declare.declared(declare.parse(items))}
    found["executor"] = loader.to_mapping(executor)
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), end="")


COMMANDS = {
    "clean": clean,
    "verify": verify,
    "report": report,
    "why": why,
    "train-quality": train_quality,
    "blocks": blocks,
}
_MOST_SPANS = 12  # of one page that `why` prints


def cleaned_of(folder: Path) -> tuple[Path, Path]:
    """The cleaned corpus that a folder is, or that the data stage of a run left; and where its report belongs.

    A run's artifacts stay as they were written: the report lies beside them.
    """
    stage = folder / "data" if (folder / "data" / "cleaned").is_dir() else folder.resolve().parent
    if stage.name == "data" and (stage / "done.json").is_file():
        return stage / "cleaned", stage.parent / "data-report.html"
    return folder, folder / "report.html"


def plan_of(
    path: Path,
    work: Path,
    file: Path | None,
    changes: list[str] | None,
    without: list[str] | None,
    evaluations: list[Path] | None,
) -> tuple[Plan, Executor]:
    """The plan that the options ask for, and who is to run it."""
    from sekkei.text.pipeline.plan import Plan
    from sekkei.text.read.hub import is_hub

    read, items, executor = _declared(file, changes, without, evaluations)
    source = str(path) if is_hub(str(path)) else os.path.abspath(path)
    # other machines have another folder to begin at, so paths are whole
    return Plan(path=source, work=os.path.abspath(work), read=read, items=tuple(items)), executor


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


def fate_lines(fate: Fate) -> list[str]:
    """What `why` prints of one page: where it is or why it went, then what was removed from it."""
    lines = [f"{fate.doc_id}  {fate.url}".rstrip()]
    spans = fate.rows if fate.kept else fate.rows[:-1]
    if fate.kept:
        lines.append(f"  kept in {fate.kept}")
    else:
        lines += _row_lines("dropped by", fate.rows[-1])
    for row in spans[:_MOST_SPANS]:
        lines += _row_lines("removed by", row)
    if len(spans) > _MOST_SPANS:
        lines.append(f"  … and {len(spans) - _MOST_SPANS:,} spans more, all in ledger.parquet")
    return lines


def _row_lines(verb: str, row: Dropped) -> list[str]:
    place = f", characters {row.start:,}–{row.end:,}" if row.end else ""
    excerpt = " ".join(row.excerpt.split())[:100]
    told = f"  {verb} {row.rule}: value {row.value:.4g}, limit {row.threshold:.4g}{place}"
    return [told, f"    {excerpt}"] if excerpt else [told]


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _declared(
    file: Path | None, changes: list[str] | None, without: list[str] | None, evaluations: list[Path] | None
) -> tuple[Any, list[Any], Executor]:
    from sekkei.core import config as loader
    from sekkei.text.pipeline import declare
    from sekkei.text.pipeline.scale import Executor
    from sekkei.text.read.files import Read

    data = loader.read_yaml(file) if file else {}
    for key in data:
        if key not in ("read", "blocks", "executor"):
            raise ConfigError(str(key), "unknown key; known keys: read, blocks, executor")
    kind = data.get("executor") or {}
    mappings = {
        "read": dict(data.get("read") or {}),
        "executor": {"kind": kind} if isinstance(kind, str) else dict(kind),
    }
    others = []
    for change in changes or []:
        key, equals, value = change.partition("=")
        place, _, name = key.partition(".")
        if place in mappings and name and equals:
            mappings[place][name] = loader.parse_yaml(value, f"--set {change}")
        else:
            others.append(change)
    items = declare.with_changes(data.get("blocks") or list(declare.DEFAULT), others, without or [])
    if evaluations:
        items.append({"decontaminate": {"files": [str(path.resolve()) for path in evaluations]}})
    read = loader.from_mapping(Read, mappings["read"], "read")
    return read, items, loader.from_mapping(Executor, mappings["executor"], "executor")
