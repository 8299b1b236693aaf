"""`sekkei judge` as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sekkei.cli import main
from sekkei.judge.simulate import BASELINE, contest

PANDALM = Path(__file__).parents[2].parent / "shared" / "data" / "pandalm_testset.json"


def test_winrate_of_many_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, figures = tmp_path / "annotations.json", tmp_path / "figures.json"
    drawn = contest(0, models=4, items=80)
    annotations.write_text(json.dumps(drawn.rows()))
    call = ["judge", "winrate", str(annotations), "--baseline", BASELINE, "--json", str(figures), "--draws", "20"]
    assert main(call) == 0
    found = json.loads(figures.read_text())
    assert set(found["models"]) == set(drawn.models)
    for name, model in found["models"].items():
        raw = 100 * drawn.win[drawn.models.index(name)].mean()
        assert model["win_rate"] == pytest.approx(raw, abs=1e-5)
        low, high = model["length_controlled_winrate_interval"]
        assert low <= model["length_controlled_winrate"] <= high
        assert model["n_total"] == 80
    assert found["baseline"] == BASELINE


def test_errors_are_one_line_and_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, figures = tmp_path / "annotations.json", tmp_path / "figures.json"
    annotations.write_text(json.dumps(contest(0, models=1, items=5).rows()))
    assert main(["judge", "winrate", str(annotations), "--baseline", "nobody", "--json", str(figures)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --baseline nobody: no row has it")
    assert error.count("\n") == 1
    assert not figures.exists()
    assert main(["judge", "winrate", str(tmp_path / "absent.json"), "--baseline", "b"]) == 2
    assert "absent.json: cannot be read" in capsys.readouterr().err


@pytest.mark.skipif(not PANDALM.exists(), reason="../shared/data/pandalm_testset.json is not there")
def test_agreement_of_pandalm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    raters = "annotator1,annotator2,annotator3"
    assert main(["judge", "agreement", str(PANDALM), "--raters", raters, "--json", str(figures), "--draws", "50"]) == 0
    found = json.loads(figures.read_text())
    assert found["fleiss"]["value"] == pytest.approx(0.864, abs=5e-4)
    assert found["cohen annotator1 annotator3"]["value"] == pytest.approx(0.88, abs=5e-3)
    assert "0.864" in capsys.readouterr().out
