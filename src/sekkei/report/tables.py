"""The tables of the report: stages, bits per byte by domain, conversations, text samples, every figure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sekkei.report import words
from sekkei.report.folder import RunFolder, SampleSet
from sekkei.report.key_figures import key_figures
from sekkei.text.chat import parse_reply
from sekkei.text.tokenizer import END, THINK

_TURN = re.compile(r"<\|(bos|system|user|assistant|tool|end|pad)\|>")
STOPPED = " ■"
MAX_COLUMNS = 4  # of text samples side by side
MAX_ASKED = 24
_DOMAINS = ("docs", "code", "math")  # come first where bits per byte are shown


@dataclass(frozen=True)
class Cell:
    """One field of a table. `heat`: None or 0 … 1, drawn as the strength of a background."""

    text: str
    heat: float | None = None
    number: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; `caption` may be empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Said:
    """What the model wrote, its think block apart (None where it wrote none)."""

    text: str
    reasoning: str | None = None


@dataclass(frozen=True)
class SampleTable:
    """Prompts down, moments of learning across; None where a moment lacks the prompt."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Said | None]]]
    folded: bool = False


def stages(run: RunFolder) -> Table:
    """Every finished stage: what it did, how long it took, its key figures."""
    rows = []
    for name in run.finished:
        done = run.done[name]
        seconds, peak = done.get("seconds"), done.get("peak_gib")
        rows.append(
            [
                Cell(name),
                Cell(words.deed(run, name)),
                Cell(words.duration(seconds) if isinstance(seconds, int | float) else "", number=True),
                Cell(_speed(run, name), number=True),
                Cell(f"{peak:.2f}" if isinstance(peak, int | float) else "", number=True),
                Cell(key_figures(name, done.get("figures") or {})),
            ]
        )
    return Table(("stage", "what it did", "time", "tokens/s · MFU", "peak GiB", "key figures"), rows)


def bits_by_domain(run: RunFolder) -> Table | None:
    """Held-out bits per byte, a row per pretraining stage; the darker, the fewer bits in that column."""
    by_stage = {key: run.under(f"pretrain.{key}.bpb") for key in run.pretrain_keys}
    found = {name for bits in by_stage.values() for name in bits if "positions" not in name}
    domains = sorted(found, key=lambda name: (_DOMAINS.index(name) if name in _DOMAINS else len(_DOMAINS), name))
    if not domains:
        return None
    rows = []
    for key in run.pretrain_keys:
        row = [Cell(f"after {key}")]
        for domain in domains:
            column = [bits[domain] for bits in by_stage.values() if domain in bits]
            value = by_stage[key].get(domain)
            if value is None:
                row.append(Cell("—", number=True))
                continue
            spread = max(column) - min(column)
            heat = (max(column) - value) / spread if spread > 0 else 0.0
            row.append(Cell(f"{value:.3f}", heat=heat, number=True))
        rows.append(row)
    return Table(("", *(domain.replace("_", " ") for domain in domains)), rows)


def conversations(run: RunFolder) -> Table | None:
    """Everyday turns answered in format and requests refused, a row per checkpoint."""
    columns = ("answered", "refused", "refused_harmless")
    rows = []
    for label in run.labels:
        figures = run.under(f"chat.{label}")
        if figures:
            cells = []
            for name in columns:
                value = figures.get(name)
                shown = "—" if value is None else f"{value:.0%}"
                # Where more is worse nothing is coloured: a strong colour would read as praise.
                heat = None if value is None or name == "refused_harmless" else min(max(value, 0.0), 1.0)
                cells.append(Cell(shown, heat, number=True))
            rows.append([Cell(words.LABELS.get(label, label)), *cells])
    if not rows:
        return None
    return Table(("", "everyday turns answered in format", "harmful requests refused", "harmless ones refused"), rows)


def reasoning_details(run: RunFolder) -> Table | None:
    """What the bars do not show: written steps, answers that end, answer length, longer problems."""
    rows = []
    for label in run.labels:
        figures = run.under(f"reasoning.{label}")
        if not figures:
            continue
        longer = {name: value for name, value in figures.items() if re.fullmatch(r"operations[0-9]+\..*", name)}
        steps, ended, tokens = (figures.get(name) for name in ("steps", "ended", "tokens"))
        rows.append(
            [
                Cell(words.LABELS.get(label, label)),
                Cell("—" if steps is None else f"{steps:.2f}", number=True),
                Cell("—" if tokens is None else f"{tokens:.0f}", number=True),
                Cell("—" if ended is None else f"{ended:.0%}", number=True),
                Cell(", ".join(f"{_operations(name)}: {value:.0%}" for name, value in sorted(longer.items())) or "—"),
            ]
        )
    if not rows:
        return None
    return Table(("", "steps written", "tokens per answer", "answers that end", "problems longer than trained"), rows)


def study(name: str, rows: Sequence[Mapping]) -> Table:
    """Strategies at inference time on one stage's model."""
    shown = []
    for row in rows:
        interval = f"{row['accuracy']:.0%} ({row['low']:.0%}–{row['high']:.0%})"
        four = [Cell(f"{row[key]:.0%}", number=True) for key in ("any_of", "top1", "majority", "mean")]
        tokens, calls = Cell(f"{row['tokens']:,.0f}", number=True), Cell(f"{row['calls']:.1f}", number=True)
        shown.append([Cell(str(row["name"])), Cell(interval, heat=row["accuracy"]), tokens, calls, *four])
    header = ("strategy", "accuracy (95%)", "tokens", "calls", "any candidate", "top 1", "majority", "mean")
    return Table(header, shown, f"{name}: {rows[0]['problems']} held-out problems" if rows else name)


def thinking(name: str, rows: Sequence[Mapping]) -> Table:
    """Accuracy against thinking that is stopped, or made to go on."""
    shown = []
    for row in rows:
        often = f"{row['budget']:.0f} tokens" + (
            f", made to go on × {row['extensions']:.0f}" if row["extensions"] else ""
        )
        interval = f"{row['accuracy']:.0%} ({row['low']:.0%}–{row['high']:.0%})"
        numbers = [f"{row['thinking_tokens']:.1f}", f"{row['steps']:.1f}", f"{row['forced']:.0%}"]
        shown.append([Cell(often), Cell(interval, heat=row["accuracy"]), *(Cell(n, number=True) for n in numbers)])
    return Table(("at most", "accuracy (95%)", "tokens of thinking", "steps written", "stopped"), shown, name)


def tools(run: RunFolder) -> Table | None:
    """How often sums come out right with the calculator, and without."""
    figures = run.under("agent.calculator")
    if not figures:
        return None
    named = {"success": "right, with the calculator", "without": "right, at once", "called": "runs that called it"}
    kinds = {name: name.removeprefix("success.") for name in figures if re.fullmatch(r"success\.(?!low|high).*", name)}
    rows = [
        [Cell(shown), Cell(f"{figures[name]:.0%}", heat=figures[name], number=True)]
        for name, shown in {**named, **{name: f"right, kind: {kind}" for name, kind in kinds.items()}}.items()
        if name in figures
    ]
    return Table(("", "share of held-out sums"), rows)


def rollouts(run: RunFolder) -> list[SampleTable]:
    """Some answers of every reinforcement stage's first and last logged rollout, with their rewards."""
    found = []
    for stage in run.tuned_by("grpo", "ppo", "online_dpo"):
        for moment in _ends(run.rollouts(stage)):
            rows = []
            for sample in moment.samples:
                prompt = _readable(str(sample.get("prompt", ""))).strip()
                rows.append((f"{prompt} · reward {sample.get('reward', 0):.2f}", [said(str(sample.get("text", "")))]))
            drawn = sorted({str(sample["weights_hash"])[:12] for sample in moment.samples if "weights_hash" in sample})
            by = f", drawn by weights {', '.join(drawn)}" if drawn else ""
            title = f"{stage}: a rollout of step {moment.step:,}{by}"
            found.append(SampleTable(title, ("answer",), rows, folded=True))
    return found


def _ends(sets: Sequence[SampleSet]) -> list[SampleSet]:
    return [*sets[:1], *sets[1:][-1:]]


def all_figures(run: RunFolder) -> Table | None:
    """Every figure of results.json, by name; the exact value."""
    if not run.figures:
        return None
    rows = [
        [Cell(name), Cell(words.figure(name, value), number=True), Cell(repr(value), number=True)]
        for name, value in sorted(run.figures.items())
    ]
    return Table(("figure", "value", "exact"), rows)


def learning_samples(run: RunFolder) -> list[SampleTable]:
    """What each training stage wrote to its fixed prompts, side by side by step."""
    found = []
    for stage in run.planned:
        sets = run.samples(stage)
        if sets:
            chosen = _spread(sets)
            columns = [f"step {chosen_set.step:,}" for chosen_set in chosen]
            found.append(_side_by_side(stage, columns, [chosen_set.samples for chosen_set in chosen], MAX_ASKED))
    return found


def asked_samples(run: RunFolder) -> SampleTable | None:
    """The same held-out everyday questions to every checkpoint."""
    sets = [(label, run.samples(f"eval.{label}")) for label in run.labels]
    sets = [(label, found) for label, found in sets if found]
    if not sets:
        return None
    columns = [words.LABELS.get(label, label) for label, _ in sets]
    table = _side_by_side("held-out everyday turns", columns, [found[-1].samples for _, found in sets], MAX_ASKED)
    return SampleTable(table.title, table.columns, table.rows, folded=True)


def said(text: str) -> Said:
    """A model's text for reading: the stop token as a mark, a leading think block apart."""
    if text.lstrip().startswith(THINK):
        reply = parse_reply(text.lstrip())
        return Said(
            _readable(reply.content).strip() + (STOPPED if reply.ended else ""), _readable(reply.reasoning or "")
        )
    ended = text.endswith(END)
    return Said(_readable(text.removesuffix(END)).strip("\n") + (STOPPED if ended else ""))


def _readable(text: str) -> str:
    """Without marks of turns, and with one blank line where there were many."""
    return re.sub(r"\n\s*\n\s*\n", "\n\n", _TURN.sub(" ", text))


def _side_by_side(title: str, columns: Sequence[str], moments: Sequence[Sequence[Mapping]], most: int) -> SampleTable:
    prompts: dict[str, None] = dict.fromkeys(str(s.get("prompt", "")) for samples in moments for s in samples)
    texts = [{str(s.get("prompt", "")): s for s in samples} for samples in moments]
    rows = []
    for prompt in list(prompts)[:most]:
        cells = [said(str(by[prompt].get("text", ""))) if prompt in by else None for by in texts]
        rows.append((_readable(prompt).strip(), cells))
    return SampleTable(title, columns, rows)


def _spread(sets: Sequence[SampleSet]) -> list[SampleSet]:
    """At most MAX_COLUMNS of them, first and last among them, evenly spaced."""
    if len(sets) <= MAX_COLUMNS:
        return list(sets)
    return [sets[round(i * (len(sets) - 1) / (MAX_COLUMNS - 1))] for i in range(MAX_COLUMNS)]


def _speed(run: RunFolder, stage: str) -> str:
    rates = run.series(stage, "tokens_per_second", machine=True).values
    if not rates:
        return ""
    used = run.series(stage, "mfu", machine=True).values
    shown = words.count(statistics.median(rates))
    return f"{shown} · {statistics.median(used):.0%}" if used else shown


def _operations(name: str) -> str:
    return name.partition(".")[0].removeprefix("operations") + " operations"
