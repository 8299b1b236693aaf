"""report.html: one page about one run, drawn offline from what the run wrote.

    recipe.yaml + metrics.jsonl + results.json + */done.json  ->  report.html

The page is a single file without scripts or outside assets, and the same run gives the same bytes (no date,
no host name). Every text goes through the template's escaping; the charts are SVG of our own making. A part
that the run does not have is said to be absent. The page measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import jinja2

from sekkei.core import atomic
from sekkei.report import bars, curves, tables, words
from sekkei.report.closing import abilities, closing_screen
from sekkei.report.folder import RunFolder, read_run, total
from sekkei.report.tables import SampleTable, Table

__all__ = ["closing_screen", "render"]

PAGE = "report.html"
BARS = 5  # checkpoints in one chart of reasoning
PREFERENCES = ("reward", "dpo", "kto", "online_dpo")
REINFORCED = ("grpo", "ppo", "online_dpo")
T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; `absent` is said where nothing does."""

    title: str
    about: str
    absent: str
    charts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[SampleTable] = ()
    folded: bool = False

    @property
    def empty(self) -> bool:
        return not (self.charts or self.tables or self.samples)


def render(folder: Path) -> Path:
    """Draw the report of a run and write it atomically as `<folder>/report.html`.

    Returns:
        The page's path.
    Raises:
        UserError: the folder holds no run, one of its files is damaged, or the disk is full.
    """
    path = folder / PAGE
    atomic.write_text(path, page(read_run(folder)))
    return path


def page(run: RunFolder) -> str:
    """The whole page."""
    source = resources.files("sekkei.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    versions = run.results.get("versions") or {}
    return environment.from_string(source).render(
        title=f"{run.name}: the life of a model",
        subtitle=f"recipe {run.name} · seed {run.recipe.get('seed', 0)} · "
        + " · ".join(f"{name} {version}" for name, version in versions.items()),
        cards=cards(run),
        abilities=abilities(run),
        sections=sections(run),
        footer=f"Drawn by sekkei report from {run.name}'s own files. Bits per byte: fewer are better. "
        "Intervals are Wilson's, at 95%.",
    )


def cards(run: RunFolder) -> list[tuple[str, str]]:
    """(value, name) of what one wants to know first."""
    model = run.recipe.get("model") or {}
    found = []
    if run.parameters is not None:
        found.append((words.count(run.parameters), "parameters"))
    if "num_layers" in model and "hidden_size" in model:
        found.append((f"{model['num_layers']} × {model['hidden_size']}", "layers × width"))
    read = total(run.figures.get(f"pretrain.{key}.tokens") for key in run.pretrain_keys)
    if read:
        found.append((words.count(read), "tokens of pretraining"))
    if run.figures.get("run.seconds"):
        found.append((words.duration(run.figures["run.seconds"]), "in all stages"))
    if run.figures.get("run.peak_gib"):
        found.append((f"{run.figures['run.peak_gib']:.2f} GiB", "memory at its peak"))
    trained = [name for name in run.planned if name in run.done]
    found.append((f"{len(trained)} of {len(run.planned)}", "training stages finished"))
    return found


def sections(run: RunFolder) -> list[Section]:
    """All parts of the page, in the order of a life."""
    return [
        Section(
            "Stages",
            "What happened, in order. Speeds are medians over steps; MFU is the share of this machine's peak.",
            "No stage is finished yet.",
            tables=[tables.stages(run)] if run.finished else [],
        ),
        *_data_and_pretraining(run),
        *_after_pretraining(run),
        *_measured(run),
        Section(
            "What it wrote as it learned",
            "Greedy continuations of fixed prompts by number of steps; ■ is the stop token, italics are thinking.",
            "No text samples were logged (eval.samples_every=0, or the stages have not run).",
            samples=[*tables.learning_samples(run), *filter(None, [tables.asked_samples(run)])],
        ),
        Section(
            "Every figure",
            "All of results.json; docs/figures.md says how each is measured.",
            "results.json holds no figures yet.",
            tables=_some(tables.all_figures(run)),
            folded=True,
        ),
    ]


def _data_and_pretraining(run: RunFolder) -> list[Section]:
    shares = [run.figures.get(f"pretrain.{key}.token_share") for key in run.pretrain_keys]
    last = f" The last stage read {shares[-1]:.1%} of all tokens." if shares and shares[-1] is not None else ""
    return [
        Section(
            "Data: from pages to text",
            "Each page is kept, or dropped by the first rule that it breaks; rules by how much they drop.",
            "The stage data is not finished.",
            charts=_some(bars.data_waterfall(run)),
        ),
        Section(
            "Pretraining",
            "The stages on one axis of tokens. Lines are running means; dots are held-out text.",
            "No pretraining steps were logged.",
            charts=_some(curves.pretraining(run)),
        ),
        Section(
            "Held-out bits per byte",
            "How many bits the model needs for a byte that it never saw; the best of a column is the darkest.",
            "Bits per byte were not measured.",
            tables=_some(tables.bits_by_domain(run)),
        ),
        Section(
            "Long context",
            "Bits per byte by position in long documents. If context beyond the first window helps, later "
            f"positions cost fewer bits.{last}",
            "Not measured: all stages read rows of one length, or no held-out document fills a row.",
            charts=_some(bars.long_context(run)),
        ),
    ]


def _after_pretraining(run: RunFolder) -> list[Section]:
    return [
        Section(
            "Instruction tuning",
            "The loss on the assistant's own tokens.",
            "This run has no SFT steps.",
            charts=[c for name in run.tuned_by("sft") for c in _some(curves.instruction_tuning(run, name))],
        ),
        Section(
            "Preference optimisation",
            "A growing margin says that chosen answers gain on rejected ones. Watch the log-probability of the chosen "
            "ones: it may fall all the same.",
            "This run has no steps of preference optimisation.",
            charts=[c for name in run.tuned_by(*PREFERENCES) for c in _some(curves.preferences(run, name))],
        ),
        Section(
            "Reinforcement learning",
            "Nothing rewards written steps or length: where they rise, the model found that they help.",
            "This run has no steps of reinforcement learning.",
            charts=[c for name in run.tuned_by(*REINFORCED) for c in _some(curves.reinforcement(run, name))],
            samples=tables.rollouts(run),
        ),
    ]


def _measured(run: RunFolder) -> list[Section]:
    return [
        Section(
            "Reasoning over the life",
            "Accuracy on held-out chains of arithmetic that no stage has seen.",
            "No checkpoint was asked the reasoning problems.",
            charts=[
                chart
                for first in range(0, len(run.labels), BARS)
                for chart in _some(bars.reasoning(run, run.labels[first : first + BARS]))
            ],
            tables=_some(tables.reasoning_details(run)),
        ),
        Section(
            "Conversation and refusals",
            "Held-out wordings. Answered means: in format, ended, and about the question; it is no test of knowledge.",
            "No checkpoint was asked everyday turns.",
            tables=_some(tables.conversations(run)),
        ),
        Section(
            "In-context learning",
            "Symbol mappings drawn anew for each prompt: only the examples in it can tell the answer.",
            "No checkpoint was probed with symbol patterns.",
            charts=_some(bars.in_context(run)),
        ),
        Section(
            "More tokens at inference time",
            "One trained model, every strategy: accuracy against tokens read and written per problem.",
            "The recipe asks for no study (inference: …).",
            charts=[picture for _, picture in run.studies],
            tables=[
                *(tables.study(name, rows) for name, rows in run.study_rows("rows.json")),
                *(tables.thinking(name, rows) for name, rows in run.study_rows("budget.json")),
            ],
        ),
        Section(
            "Tools",
            "Held-out sums, worked through with the calculator. Without: the model had to answer at once.",
            "No stage taught the calculator (sft.tools).",
            tables=_some(tables.tools(run)),
        ),
    ]


def _some(value: T | None) -> list[T]:
    return [] if value is None else [value]
