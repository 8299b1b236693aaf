"""The report of a whole run, of parts of one, and of damaged ones."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sekkei.cli import main
from sekkei.core.errors import UserError
from sekkei.report.page import closing_screen, render
from sekkei.report.style import running_mean
from sekkei.report.tables import said

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Collects tags, ids and headings, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "action") and not (value or "").startswith("#"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


def read(path: Path) -> tuple[Reader, str]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader, text


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, write_life: Callable[[Path], Path]) -> Path:
    """The page of a whole run, for tests that change nothing."""
    folder = write_life(tmp_path_factory.mktemp("drawn") / "laptop")
    path = render(folder)
    assert path == folder / "report.html"
    return path


def test_the_page_is_whole_and_stands_alone(drawn: Path) -> None:
    reader, text = read(drawn)
    assert reader.loads == []
    assert "script" not in reader.tags
    assert "@import" not in text
    assert "url(http" not in text
    assert reader.tags.count("svg") == 9
    assert len(reader.ids) == len(set(reader.ids)), "two charts share an id"
    assert "absent" not in re.findall(r'class="([a-z]+)"', text)
    assert drawn.stat().st_size < 1_000_000


def test_every_figure_is_on_the_page(drawn: Path) -> None:
    _, text = read(drawn)
    for name, value in json.loads((drawn.parent / "results.json").read_text())["figures"].items():
        assert f"<td>{name}</td>" in text
        assert repr(float(value)) in text


def test_the_same_run_gives_the_same_bytes(life: Path, drawn: Path) -> None:
    assert render(life).read_bytes() == drawn.read_bytes()
    assert list(life.glob(".*")) == [], "nothing is left beside the page"


def test_a_models_text_is_text(drawn: Path) -> None:
    _, text = read(drawn)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "I am &lt;b&gt;sekkei&lt;/b&gt; (grpo)" in text
    assert "the names &amp; values ■" in text
    assert '<span class="think">7 add 3 = 10; 10 times 4 = 100</span>' in text


def test_charts_follow_the_theme(drawn: Path) -> None:
    _, text = read(drawn)
    assert "currentColor" in text
    assert "#010203" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "#000000" not in svg, "black text cannot be read on a dark page"


def test_reinforcement_shows_what_was_logged_and_nothing_else(drawn: Path) -> None:
    _, text = read(drawn)
    grpo = text[text.index("grpo: reward, lengths") : text.index("a rollout of step")]
    for panel in ("no spread", "ended (the rest was cut)", "std within groups", "std by function", "clipped share",
                  "gap of engine and trainer, nats"):  # fmt: skip
        assert panel in grpo
    for absent in ("explained by the critic", "value loss", ">KL<", "not logged"):
        assert absent not in grpo
    assert "drawn by weights 0123456789ab" in text


def test_samples_of_a_long_stage_are_spread(drawn: Path) -> None:
    _, text = read(drawn)
    general = text[text.index("<h3>pretrain.general</h3>") : text.index("<h3>pretrain.reasoning</h3>")]
    assert re.findall(r"<th>step ([0-9]+)</th>", general) == ["100", "200", "400", "500"]


def test_what_is_missing_is_said(life: Path) -> None:
    (life / "metrics.jsonl").unlink()
    (life / "results.json").unlink()
    for done in life.glob("*/done.json"):
        done.unlink()
    reader, text = read(render(life))
    assert reader.tags.count("svg") == 0
    assert text.count('class="absent"') == reader.tags.count("h2") == 15
    assert "0 of 6" in text


def test_a_run_without_alignment(life: Path) -> None:
    recipe = (life / "recipe.yaml").read_text()
    cut = re.sub(r"^(sft|dpo|grpo):\n(?: .*\n)+", r"\1: null\n", recipe, flags=re.MULTILINE)
    assert cut.count(": null") >= 3
    (life / "recipe.yaml").write_text(cut)
    later = ("agent", "inference.grpo")
    for stage in ("sft", "dpo", "grpo", "preferences", "eval.sft", "eval.dpo", "eval.grpo", *later):
        shutil.rmtree(life / stage)
    lines = (life / "metrics.jsonl").read_text().splitlines(keepends=True)
    (life / "metrics.jsonl").write_text("".join(line for line in lines if '"stage": "pretrain' in line))
    _, text = read(render(life))
    assert "This run has no SFT steps." in text
    assert "3 of 3" in text
    assert "laptop is finished" in closing_screen(life)


def test_figures_that_are_no_numbers_are_left_out(life: Path) -> None:
    results = json.loads((life / "results.json").read_text())
    odd = itertools.cycle([float("nan"), float("inf"), None, "many", True])
    results["figures"] = {name: next(odd) for name in results["figures"]} | {"run.seconds": 61.0}
    (life / "results.json").write_text(json.dumps(results))
    (life / "metrics.jsonl").write_text('{"stage": "sft", "step": 1, "loss": null}\n{"stage": "sft", "st')
    (life / "inference.grpo" / "done.json").unlink()
    reader, text = read(render(life))
    assert reader.tags.count("svg") == 0
    assert text.count("<tr><td>run.seconds</td>") == 1
    assert "many" not in text[text.index("Every figure") :]
    assert "reasons:" not in closing_screen(life)


def test_damage_is_named(life: Path, tmp_path: Path) -> None:
    (life / "results.json").write_text('{"figures": ')
    with pytest.raises(UserError, match=r"results\.json: is damaged"):
        render(life)
    with pytest.raises(UserError, match=r"recipe\.yaml is missing"):
        render(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_verb_draws_and_prints_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text("name: just-begun\n")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert "just-begun: the life of a model" in (tmp_path / "report.html").read_text()


def test_the_closing_screen_says_what_was_measured(drawn: Path) -> None:
    life = drawn.parent
    screen = closing_screen(life)
    assert "laptop is finished, 786k parameters, 4.51M tokens read, 20 min 34 s" in screen
    assert "98% of held-out 6-step problems right (grpo; base 0%, sft 17%, dpo 35%; a guess 4%)" in screen
    assert "91% of held-out everyday turns" in screen
    assert f"The report: {life / 'report.html'}" in screen
    assert f"sekkei chat {life} --stage sft" in screen
    assert all(len(line) < 160 for line in screen.replace(str(life), "runs/laptop").splitlines())


def test_the_closing_screen_of_an_unfinished_run_says_how_to_go_on(life: Path) -> None:
    for stage in ("grpo", "eval.grpo", "agent", "inference.grpo"):
        (life / stage / "done.json").unlink()
    screen = closing_screen(life)
    assert screen.startswith("laptop stands at eval.dpo")
    assert re.search(
        rf"sekkei run {re.escape(str(life))}/recipe.yaml --run-dir {re.escape(str(life))} +go on: grpo", screen
    )
    assert "The report is not drawn yet." in screen


def test_running_mean_keeps_the_ends() -> None:
    assert running_mean([1, 2, 3, 4, 5], 3).tolist() == [1, 2, 3, 4, 5]
    assert running_mean([0, 3, 0, 0, 3], 3).tolist() == [0, 1, 1, 1, 3]
    assert running_mean([7.0], 1).tolist() == [7]


@pytest.mark.parametrize(
    ("text", "reasoning", "shown"),
    [
        ("<think> a</think> b<|end|>", " a", "b ■"),
        ("<think></think>b", "", "b"),
        ("<think> never closed", " never closed", ""),
        ("    x = 1\n\n\n\ny", None, "    x = 1\n\ny"),
        ("a<|user|>b<|end|>", None, "a b ■"),
    ],
)
def test_a_models_text_for_reading(text: str, reasoning: str | None, shown: str) -> None:
    assert said(text).reasoning == reasoning
    assert said(text).text == shown
