"""The outcome depends on the input and the blocks alone; nothing is done twice; nothing is left half done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Console
from sekkei.core.seed import derive_seed
from sekkei.text.document import read_documents, read_ledger
from sekkei.text.pipeline import declare, local, verify
from sekkei.text.pipeline.plan import Plan
from sekkei.text.pipeline.store import Entry, Store

pytest.importorskip("ftfy", reason="the extra `data` is not installed")
QUIET = Console(silent=True)
SPOKEN = """the of and to with have that be harbour boat winter quiet engine letter market river stone window garden
evening silver copper paper mountain teacher answer morning question road bridge forest light summer"""
WORDS = tuple(SPOKEN.split())


def prose(seed: int, sentences: int = 14) -> str:
    rng = random.Random(derive_seed("pipeline of the test", seed))
    found = []
    for _ in range(sentences):
        chosen = [rng.choice(WORDS) for _ in range(rng.randint(9, 16))]
        found.append(" ".join(chosen).capitalize() + f" {rng.randrange(10**6)}.")
    return " ".join(found)


def corpus(folder: Path, count: int = 60) -> Path:
    """JSON lines in several files: prose, copies, near copies, boilerplate, an address, too short texts."""
    folder.mkdir(parents=True)
    texts = [prose(i) for i in range(count)]
    texts += [texts[3], texts[4].upper(), texts[5].replace("harbour", "harbor", 1), "too short"]
    tail = "\nShare this article with your friends now\nMail {0}me{0} at {0}@example.org, please."
    texts += [prose(1000 + i) + tail.format(WORDS[i]) for i in range(12)]
    for number in range(4):
        rows = [
            json.dumps({"text": text, "url": f"https://e.org/{i}"}) for i, text in enumerate(texts) if i % 4 == number
        ]
        (folder / f"f{number}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


BLOCKS = (
    "extract", "repair", {"language": {"min_probability": 0.0}}, {"gopher_quality": {"min_stop_words": 0}},
    "exact_duplicates", "near_duplicates", "repeated_lines", "scrub",
)  # fmt: skip


def plan_for(folder: Path, out: Path, items: tuple = BLOCKS, **more: object) -> Plan:
    return Plan(path=str(folder), work=str(out / "work"), items=items, **more)  # type: ignore[arg-type]


def content(out: Path) -> tuple[list, list]:
    documents = [d for path in sorted(out.glob("documents-*.parquet")) for d in read_documents(path)]
    return sorted(documents, key=lambda d: d.id), sorted(read_ledger(out / "ledger.parquet"), key=repr)


def test_every_item_is_kept_or_in_the_ledger(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    summary, written = local.run(plan_for(folder, out), out, 1, QUIET)
    documents, ledger = content(out)
    assert written
    dropped = [row for row in ledger if not row.rule.startswith(("scrub_", "repeated_line"))]
    assert len(documents) + len(dropped) == 76 == summary["blocks"][0]["in"]
    rules = [row.rule for row in ledger]
    assert rules.count("exact_duplicate") == 2
    assert rules.count("near_duplicate") == 1
    assert rules.count("repeated_line") == 12
    assert rules.count("scrub_email") == 12
    assert rules.count("gopher_quality.words") == 1
    assert not any("Share this article" in d.text or "example.org" in d.text for d in documents)
    assert all(d.meta["url"].startswith("https://") for d in documents)


def test_shards_cuts_and_order_change_nothing(tmp_path: Path) -> None:
    outcomes = verify.verify(plan_for(corpus(tmp_path / "in"), tmp_path / "out", part_bytes=160_000), QUIET)
    assert [outcome.shards for outcome in outcomes] == [1, 2, 7]
    assert len({outcome.parts for outcome in outcomes}) > 1
    assert verify.agree(outcomes)
    assert outcomes[0].documents > 60


def test_verification_sees_a_block_that_depends_on_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sekkei.text.blocks.duplicates import ExactDuplicates

    whole = ExactDuplicates.resolve

    def per_part(self: ExactDuplicates, marks: list) -> list:
        return [decision for unit in marks for decision in whole(self, [unit])]

    monkeypatch.setattr(ExactDuplicates, "resolve", per_part)
    plan = plan_for(corpus(tmp_path / "in"), tmp_path / "out", ("extract", "exact_duplicates"), part_bytes=10**6)
    assert not verify.agree(verify.verify(plan, QUIET))


def test_workers_and_file_names_of_equal_content(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in")
    one, two = tmp_path / "one", tmp_path / "two"
    local.run(plan_for(folder, one), one, 1, QUIET)
    local.run(plan_for(folder, two), two, 2, QUIET)
    for name in ("documents-00000.parquet", "ledger.parquet"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        (renamed / f"g{number}.jsonl").write_bytes(path.read_bytes())
    three = tmp_path / "three"
    local.run(plan_for(renamed, three), three, 1, QUIET)
    assert sorted(d.text for d in content(one)[0]) == sorted(d.text for d in content(three)[0])


def test_a_changed_parameter_recomputes_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = corpus(tmp_path / "in", 12), tmp_path / "out"
    made: list[str] = []
    put = Store.put

    def counted(self: Store, key: str, entry: Entry) -> None:
        made.append(str(entry.head.get("block", "")))
        put(self, key, entry)

    monkeypatch.setattr(Store, "put", counted)
    local.run(plan_for(folder, out), out, 1, QUIET)
    assert "extract" in made
    made.clear()
    _, written = local.run(plan_for(folder, out), out, 1, QUIET)
    assert (made, written) == ([], False)
    changed = tuple({"scrub": {"kinds": ["email"]}} if item == "scrub" else item for item in BLOCKS)
    local.run(plan_for(folder, out, changed), out, 1, QUIET)
    assert set(made) == {"scrub"}
    made.clear()
    without_effect = tuple(
        {"gopher_quality": {"min_stop_words": 0, "max_words": 99_999}}
        if isinstance(i, dict) and "gopher_quality" in i
        else i
        for i in changed
    )
    local.run(plan_for(folder, out, without_effect), out, 1, QUIET)
    assert set(made) == {"gopher_quality"}  # what follows is found again: its input is the same
    made.clear()
    (folder / "f9.jsonl").write_text(json.dumps({"text": prose(5000)}) + "\n")
    local.run(plan_for(folder, out, without_effect, part_bytes=3_000), out, 1, QUIET)
    fresh = tmp_path / "fresh"
    local.run(plan_for(folder, fresh, without_effect, part_bytes=3_000), fresh, 1, QUIET)
    assert content(out) == content(fresh)


def test_a_torn_entry_is_made_anew(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    local.run(plan_for(folder, out), out, 1, QUIET)
    before = content(out)
    for path in (out / "work" / "store").glob("??/*"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    (out / "documents-00000.parquet").write_bytes(b"")
    local.run(plan_for(folder, out), out, 1, QUIET)
    assert content(out) == before


def test_kill_and_go_on(tmp_path: Path) -> None:
    folder, out = corpus(tmp_path / "in", count=600), tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from sekkei.core.progress import Console\n"
        "from sekkei.text.pipeline import local; from sekkei.text.pipeline.plan import plan_of\n"
        "if __name__ == '__main__':\n"
        "    plan = plan_of(sys.argv[1]); local.run(plan, Path(sys.argv[2]), 2, Console(silent=True))\n"
    )
    script = tmp_path / "clean.py"
    script.write_text(code)
    plan = plan_for(folder, out, part_bytes=20_000)
    process = subprocess.Popen([sys.executable, str(script), plan.to_json(), str(out)], start_new_session=True)
    began = time.monotonic()
    while time.monotonic() - began < 60 and len(list((out / "work").glob("store/??/*"))) < 20:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)  # the parent alone: its workers must follow
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    assert list(out.glob("*.parquet")) == []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _members(process.pid):
        time.sleep(0.1)
    assert _members(process.pid) == []
    found = len(list((out / "work").glob("store/??/*")))
    assert found >= 20
    local.run(plan, out, 1, QUIET)
    fresh = tmp_path / "fresh"
    local.run(plan_for(folder, fresh, part_bytes=20_000), fresh, 1, QUIET)
    assert (out / "documents-00000.parquet").read_bytes() == (fresh / "documents-00000.parquet").read_bytes()
    assert (out / "ledger.parquet").read_bytes() == (fresh / "ledger.parquet").read_bytes()
    assert [path for path in out.rglob("*.tmp") if "documents" in path.name] == []


def _members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = corpus(tmp_path / "in"), tmp_path / "out"

    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        local.run(plan_for(folder, out), out, 1, QUIET)
    monkeypatch.undo()
    assert list(out.glob("*.parquet")) == []
    local.run(plan_for(folder, out), out, 1, QUIET)
    assert (out / "summary.json").is_file()


def test_an_exception_in_a_block_costs_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sekkei.text.blocks.repair import Repair

    def build(self: Repair) -> object:
        def apply(document: object) -> object:
            if "harbour" in document.text:  # type: ignore[attr-defined]
                raise ValueError("cannot")
            return document, []

        return apply

    monkeypatch.setattr(Repair, "build", build)
    monkeypatch.setattr("sekkei.text.pipeline.part._BUILT", {})
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": "harbour"}) + "\n" + json.dumps({"text": "boat"}) + "\n")
    local.run(plan_for(folder, out, ("extract", "repair")), out, 1, QUIET)
    documents, (row,) = content(out)
    assert [d.text for d in documents] == ["boat"]
    assert (row.rule, row.excerpt) == ("repair.error", "ValueError: cannot")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "must be a list"),
        (["language"], "extract must stand first"),
        (["extract", "extract"], "extract must stand first"),
        (["extract", "langage"], "did you mean 'language'"),
        (["extract", {"language": {"keeep": ["en"]}}], "blocks\\[1\\].language.keeep: unknown key"),
        (["extract", {"near_duplicates": {"bands": 0}}], "bands"),
        (["extract", {"a": 1, "b": 2}], "one name with its parameters"),
    ],
)
def test_lists_that_are_refused(items: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declare.parse(items)


def test_the_declared_list_reads_back() -> None:
    blocks = declare.parse(list(declare.DEFAULT))
    assert declare.parse(declare.declared(blocks)) == blocks
    changed = declare.with_changes(declare.DEFAULT, ["near_duplicates.bands=20"], ["c4"])
    assert {"near_duplicates": {"bands": 20}} in changed
    assert {"c4": {}} not in changed
    with pytest.raises(ConfigError, match=r"BLOCK\.KEY=VALUE"):
        declare.with_changes(declare.DEFAULT, ["nonsense"])


def test_output_inside_the_input_is_refused(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in")
    with pytest.raises(UserError, match="inside the input"):
        plan_for(folder, folder / "out").tasks()
