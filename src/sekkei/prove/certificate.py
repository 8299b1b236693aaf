"""`sekkei prove`: every layout computes what one process computes, and every planted fault is noticed.

Rows of one world size share one set of processes. The certificate is a list of findings; it holds if every layout is
within the limits and every fault is outside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sekkei.core.errors import ConfigError, UserError
from sekkei.model.config import ModelConfig
from sekkei.parallel.layout import CHUNKS, Layout
from sekkei.prove import case
from sekkei.prove.faults import FAULTS
from sekkei.prove.objectives import OBJECTIVES, TOKENS
from sekkei.prove.worker import Row, run_rows

NAMED = (  # every axis, every stage of ZeRO, every schedule, and pairs of axes
    *(Layout(dp=2, zero=zero) for zero in range(4)),
    Layout(tp=2),
    Layout(cp=2),
    *(Layout(pp=2, schedule=schedule) for schedule in CHUNKS),
    Layout(dp=2, ep=2),
    *(Layout(dp=4, zero=zero) for zero in range(4)),
    Layout(dp=4, replicate=2, zero=3),
    Layout(tp=4),
    Layout(cp=4),
    Layout(pp=4),
    Layout(dp=2, tp=2),
    Layout(dp=2, cp=2, zero=1),
    Layout(cp=2, tp=2, sequence_parallel=True),
    Layout(pp=2, tp=2),
    Layout(pp=2, dp=2, zero=3, schedule="interleaved"),
    Layout(dp=2, tp=2, zero=3, recompute="full"),
    Layout(dp=4, ep=2, zero=2),
    Layout(dp=2, zero=3, offload=True),
)
MORE = (  # in `--all` beside the product: what the product leaves out
    Layout(dp=2, cp=2, zero=3, recompute="full"),
    Layout(pp=2, cp=2, schedule="interleaved", recompute="full"),
    Layout(cp=2, tp=2, recompute="selective"),
    Layout(tp=2, sequence_parallel=True, compile=True),
    Layout(cp=2, ep=2, zero=1),
    *(Layout(dp=4, ep=2, zero=zero) for zero in (0, 1, 3)),
    Layout(dp=4, ep=4),
    Layout(dp=2, cp=2, ep=2, recompute="full"),
    Layout(dp=2, cp=2, ep=4, zero=2),
    Layout(pp=2, dp=2, ep=2, zero=1),
    Layout(pp=2, dp=2, ep=2, schedule="zero_bubble"),
)
EIGHT = (
    *(Layout(dp=2, cp=2, tp=2, zero=zero) for zero in range(4)),
    Layout(dp=2, cp=2, tp=2, zero=3, sequence_parallel=True),
    Layout(dp=4, replicate=2, cp=2, zero=3),
    Layout(dp=4, replicate=2, tp=2, zero=3),
    Layout(pp=2, dp=2, tp=2, zero=1),
    Layout(pp=2, dp=2, tp=2, zero=3, sequence_parallel=True),
    Layout(pp=2, cp=2, tp=2, schedule="interleaved"),
    Layout(pp=2, dp=2, cp=2, zero=2, schedule="zero_bubble"),
    Layout(pp=2, dp=4, replicate=2, zero=3, schedule="gpipe"),
    Layout(dp=4, cp=2, ep=4, zero=2),
    Layout(pp=2, dp=2, cp=2, ep=4, zero=3),
)
MUON = (Layout(dp=4, zero=2), Layout(dp=2, tp=2, zero=3), Layout(pp=2, tp=2), Layout(dp=4, ep=2, zero=2))
FLOAT32 = (Layout(cp=2, tp=2), Layout(dp=4, zero=3), Layout(pp=2, dp=2, zero=1))
ADAPTERS = (
    Layout(dp=2, tp=2, zero=3),
    *(Layout(dp=2, zero=zero) for zero in range(4)),
    Layout(tp=2),
    Layout(tp=2, sequence_parallel=True),
    Layout(cp=2),
    Layout(pp=2),
    Layout(dp=2, zero=3, recompute="full"),
)
"""The first of each of these is a named row; `--all` has all of them."""
OWN = (  # of a recipe that names no layout: one of each kind
    Layout(dp=2, zero=2),
    Layout(dp=2, zero=3),
    Layout(tp=2, sequence_parallel=True),
    Layout(cp=2),
    Layout(pp=2),
)
SPREAD = (Layout(dp=2), Layout(tp=2), Layout(cp=2), Layout(pp=2))
BLOCKS = tuple(itertools.product(("none", "selective", "full"), (False, True)))  # how a block runs: recompute, compile
PREFERENCES = (*SPREAD, Layout(cp=4), Layout(dp=2, cp=2, zero=2))
OTHERS = tuple(name for name in OBJECTIVES if name not in ("tokens", "dpo"))


@dataclass(frozen=True)
class Certificate:
    """Findings about layouts, and (fault, finding) pairs."""

    rows: list[dict[str, Any]]
    faults: list[tuple[str, dict[str, Any]]]

    @property
    def holds(self) -> bool:
        return all(row["passed"] for row in self.rows) and not any(row["passed"] for _, row in self.faults)


def rows_for(nproc: int, everything: bool, compiler: bool = True) -> list[Row]:
    """The rows of a certificate on up to `nproc` processes.

    Args:
        compiler: whether this machine can compile blocks.
    Raises:
        UserError: nproc is not 2, 4 or 8.
    """
    if nproc not in (2, 4, 8):
        raise UserError(f"--nproc={nproc}: must be 2, 4 or 8")
    layouts = [*NAMED, *(EIGHT if nproc == 8 else ())]
    layouts += [*MORE, *_product(nproc)] if everything else []
    rows = [Row(layout) for layout in layouts if compiler or not layout.compile]
    rows += [Row(layout, kind="muon") for layout in (MUON if everything else MUON[:1])]
    rows += [Row(layout, dtype="fp32") for layout in (FLOAT32 if everything else FLOAT32[:1])]
    rows += [Row(layout, lora=True) for layout in (ADAPTERS if everything else ADAPTERS[:1])]
    rows += [Row(Layout(pp=2, cp=2) if nproc >= 4 else Layout(cp=2), name) for name in OBJECTIVES if name != "tokens"]
    if everything:
        rows += [Row(layout, "dpo") for layout in PREFERENCES]
        rows += [Row(layout, name) for name in OTHERS for layout in SPREAD]
        rows += [Row(layout, name, dtype="fp32") for name in ("tokens", "dpo", "grpo") for layout in SPREAD]
    return list(dict.fromkeys(row for row in rows if row.nproc <= nproc))


def rows_of(model: ModelConfig, layout: Layout, nproc: int) -> list[Row]:
    """The rows of a recipe: its own layout, or one of each kind that its model allows.

    A proof has its own micro-batches, and weights and sums in its own dtype: those keys of the layout are left out.

    Args:
        model: with its vocabulary.
    Raises:
        ConfigError: the layout does not fit the model, or the rows of a proof. UserError: it needs more processes.
    """
    if layout.world > nproc:
        raise UserError(f"the recipe's layout {layout.name} needs --nproc {layout.world} or more, got {nproc}")
    if layout.world > 1:
        layout.check(model, tokens=TOKENS)
        layout.check_micro_batches(case.MICRO_BATCHES // layout.dp)
        return [Row(replace(layout, microbatches=0, weights="fp32", reduce="fp32"), model=model)]
    rows = []
    for own in OWN:
        try:
            own.check(model, tokens=TOKENS)
        except ConfigError:
            continue
        rows.append(Row(own, model=model))
    return rows


def prove(rows: Sequence[Row], nproc: int, progress: Callable[[int, str], None], faults: bool = True) -> Certificate:
    """Compute rows and the planted faults that `nproc` processes can show."""
    planned = [Row(f.layout, f.objective, i) for i, f in enumerate(FAULTS) if f.layout.world <= nproc]  # type: ignore[arg-type]
    planted = planned if faults else []
    wanted = [*rows, *planted]
    found: dict[int, dict[str, Any]] = {}
    for size in sorted({row.nproc for row in wanted}):
        here = [i for i, row in enumerate(wanted) if row.nproc == size]
        progress(len(found), f"{len(here)} rows on {size} processes")
        found.update(zip(here, run_rows([wanted[i] for i in here], size), strict=True))
    progress(len(found), "done")
    count = len(rows)
    named = [(FAULTS[row.fault].name, found[count + i]) for i, row in enumerate(planted) if row.fault is not None]
    return Certificate([found[i] for i in range(count)], named)


def _product(nproc: int) -> list[Layout]:
    """All layouts of at most `nproc` processes that fit the tiny model."""
    found: dict[Layout, None] = {}
    sizes = [size for size in (1, 2, 4, 8) if size <= nproc]
    for pp, dp, cp, tp in itertools.product(sizes, repeat=4):
        if not 1 < pp * dp * cp * tp <= nproc or dp > case.MICRO_BATCHES:
            continue
        for zero, sequence, reshard, replicate, context, schedule, again in itertools.product(
            range(4), (False, True), (True, False), (1, 2), ("ring", "gather"), CHUNKS, BLOCKS
        ):
            if ((not reshard or replicate > 1) and zero != 3) or (pp == 1 and schedule != "1f1b"):
                continue
            if again != BLOCKS[0] and (sequence, reshard, replicate, context) != (False, True, 1, "ring"):
                continue  # a block runs one way or another whatever these are: not multiplied with them
            try:
                layout = Layout(
                    pp=pp,
                    dp=dp,
                    replicate=replicate,
                    cp=cp,
                    tp=tp,
                    zero=zero,
                    reshard=reshard,
                    context=context,  # type: ignore[arg-type]
                    sequence_parallel=sequence,
                    schedule=schedule,
                    recompute=again[0],  # type: ignore[arg-type]
                    compile=again[1],
                )
                layout.check(case.DEEP if pp > 1 else case.CONFIG, tokens=TOKENS)
                layout.check_micro_batches(case.MICRO_BATCHES // dp)
            except ConfigError:
                continue
            found[layout] = None
    return list(found)
