"""A layout that does not fit is refused before any process starts, with the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sekkei.core.errors import ConfigError
from sekkei.model.config import ModelConfig
from sekkei.parallel.layout import Layout

MODEL = ModelConfig(
    hidden_size=96, num_layers=2, num_heads=12, num_kv_heads=4, intermediate_size=96, vocab_size=96, head_dim=8
)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"dp": 0}, "dp: got 0, must be >= 1"),
        ({"zero": 4}, "zero: got 4, must be 0, 1, 2 or 3"),
        ({"dp": 4, "replicate": 3, "zero": 3}, "replicate: replicate=3 must divide dp=4"),
        ({"tp": 2, "zero": 1}, "zero: zero=1 divides state between data ranks: dp·cp = 1·1 has one"),
        ({"dp": 4, "replicate": 2, "zero": 1}, "replicate: replicate=2 is a form of zero=3, got zero=1"),
        (
            {"pp": 2, "dp": 2, "zero": 3, "schedule": "zero_bubble"},
            "schedule: zero_bubble puts weight gradients off, where zero=3 does not see them: zero <= 2",
        ),
        (
            {"pp": 2, "schedule": "zero_bubble", "recompute": "full"},
            "recompute: full would compute a block again for its input and once more for every matrix of it, as "
            "zero_bubble takes these gradients apart: none, selective, or schedule=interleaved",
        ),
        ({"context": "gather"}, "context: 'gather' is a way to share a row over cp, and cp=1"),
        ({"sequence_parallel": True}, "sequence_parallel: cuts the sequence over tp, and tp=1"),
    ],
)
def test_keys_that_contradict_each_other(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Layout(**keys)
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("layout", "model", "rest", "told"),
    [
        (Layout(dp=2, tp=2), MODEL, {"world": 8}, "layout: pp·dp·cp·tp = 1·2·1·2 = 4, and there are 8 processes"),
        (Layout(tp=3), MODEL, {}, "layout.tp: tp=3 must divide model.num_kv_heads=4"),
        (Layout(tp=8), MODEL, {}, "layout.tp: tp=8 must divide model.num_heads=12"),
        (Layout(tp=2), replace(MODEL, tied_embeddings=True), {}, "layout.tp: tp=2 cannot cut tied embeddings"),
        (Layout(pp=2), replace(MODEL, tied_embeddings=True), {}, "layout.pp: pp=2 puts tied embeddings on two ranks"),
        (Layout(pp=4), MODEL, {}, "layout.pp: pp·1 = 4 stages of 1f1b must divide model.num_layers=2"),
        (
            Layout(pp=2, schedule="interleaved"),
            MODEL,
            {},
            "layout.pp: pp·2 = 4 stages of interleaved must divide model.num_layers=2",
        ),
        (Layout(tp=2), replace(MODEL, vocab_size=97), {}, "layout.tp: tp=2 must divide model.vocab_size=97"),
        (Layout(cp=2), MODEL, {"tokens": 30}, "layout.cp: 2·cp = 2·2 = 4 must divide the row length: 30 = 7·4 + 2"),
        (
            Layout(cp=2, tp=4, sequence_parallel=True),
            MODEL,
            {"tokens": 12},
            "layout.sequence_parallel: tp=4 must divide a rank's 12/2 tokens",
        ),
    ],
)
def test_layouts_that_do_not_fit(layout: Layout, model: ModelConfig, rest: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        layout.check(model, **rest)
    assert str(error.value).startswith(told)


def test_micro_batches_that_a_schedule_cannot_run() -> None:
    Layout(pp=4).check_micro_batches(4)
    Layout(pp=4, schedule="gpipe").check_micro_batches(2)
    Layout(dp=4).check_micro_batches(1)
    with pytest.raises(ConfigError) as error:
        Layout(pp=4).check_micro_batches(2)
    assert str(error.value) == "layout.pp: 1f1b needs pp=4 micro-batches per data rank, an update has 2"
    with pytest.raises(ConfigError) as error:
        Layout(pp=4, schedule="zero_bubble").check_micro_batches(6)
    assert str(error.value) == "layout.schedule: zero_bubble goes in rounds: pp=4 must divide 6 micro-batches"


def test_fitting_layouts_pass_and_have_short_names() -> None:
    layout = Layout(pp=2, dp=4, replicate=2, cp=2, tp=2, zero=3, reshard=False, sequence_parallel=True)
    layout.check(MODEL, world=32, tokens=32)
    assert (layout.world, layout.stages) == (32, 2)
    assert layout.name == "pp2·dp4·cp2·tp2 1f1b zero3 replicate2 keep sp"
    assert Layout().name == "single"
