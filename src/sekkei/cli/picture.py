"""`sekkei picture WHAT`: pictures of parallel training, measured on this machine when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="the HTML file to write")]
Ranks = Annotated[int, typer.Option(min=2, max=8, help="processes to measure with")]


def schedules(
    out: Out,
    ranks: Ranks = 4,
    micro_batches: Annotated[int, typer.Option(min=2, help="of a step; a multiple of the ranks")] = 8,
) -> None:
    """Pipeline schedules as Gantt charts, replayed from measured action times, beside the ideal.

    \b
    Examples:
      sekkei picture schedules --out schedules.html
    """
    from sekkei.core import atomic
    from sekkei.core.errors import ConfigError
    from sekkei.core.progress import Console
    from sekkei.prove.gantt import Case, Span, charts, textbook
    from sekkei.report import pictures

    if micro_batches % ranks or micro_batches < ranks:
        raise ConfigError("--micro-batches", f"ranks={ranks} must divide micro_batches={micro_batches}")
    with Console().bar("schedules", 0) as bar:
        bar.update(0, f"4 schedules on {ranks} ranks")
        found = charts(Case(ranks=ranks, micro_batches=micro_batches, layers=4 * ranks))

    def boxes(spans: list[list[Span]]) -> list[list[pictures.Box]]:
        return [[(span.start, span.end, span.kind, span.micro_batch) for span in rank] for rank in spans]

    expected = textbook(ranks, micro_batches)
    drawn = [
        pictures.Gantt(c.schedule, boxes(c.measured), boxes(c.ideal), c.bubble, c.ideal_bubble, c.peak_bytes)
        for c in found
    ]
    words = [
        f"{ranks} ranks, {micro_batches} micro-batches, CPU. Each rank's actions in the order in which torch ran them, "
        "with the least CPU time of each; transfers and waiting for a core are not in it. Right: peak activations.",
        f"(p - 1) / (m + p - 1) = {expected:.1%} for gpipe and 1f1b with equal stages.",
    ]
    atomic.write_text(out, pictures.page("Pipeline schedules", words, pictures.schedules(drawn)))
    print(f"{'schedule':<12}{'idle':>8}{'ideal':>8}  peak activations of the fullest rank (textbook: {expected:.1%})")
    for chart in found:
        peak = max(chart.peak_bytes) / 2**20
        print(f"{chart.schedule:<12}{chart.bubble:>8.1%}{chart.ideal_bubble:>8.1%}  {peak:.1f} MiB")
    print(f"picture: {out}")


def zero3(out: Out, ranks: Ranks = 4) -> None:
    """Bytes alive through one training step: ZeRO-3 gathers parameters when needed and discards them at once.

    \b
    Examples:
      sekkei picture zero3 --out zero3.html
    """
    from sekkei.core import atomic
    from sekkei.core.progress import Console
    from sekkei.prove.timeline import Case, timelines
    from sekkei.report import pictures

    with Console().bar("zero3", 0) as bar:
        bar.update(0, f"two steps on {ranks} ranks")
        found = timelines(Case(ranks=ranks))
    whole = found[0].whole / 2**20
    words = [
        f"Rank 0 of {ranks}, operation by operation, measured. The whole model's parameters are {whole:.1f} MiB.",
        "Orange: parameters that belong to other ranks, gathered for the block that runs.",
    ]
    curves = [pictures.Curve(f.layout, f.live, f.gathered, f.backward, f.optimizer) for f in found]
    atomic.write_text(out, pictures.page("One step, with and without ZeRO-3", words, pictures.timelines(curves)))
    for line in found:
        print(
            f"{line.layout:<12} peak {max(line.live) / 2**20:.2f} MiB, between steps {line.live[0] / 2**20:.2f} MiB, "
            f"gathered at most {max(line.gathered) / line.whole:.0%} of the model"
        )
    print(f"picture: {out}")


def zero(
    out: Out,
    most: Annotated[int, typer.Option(help="largest number of ranks: 2, 4 or 8")] = 8,
    weights: Annotated[str, typer.Option(help="bf16 (with float32 masters) or fp32")] = "bf16",
) -> None:
    """Bytes per parameter of every ZeRO stage, measured on 1, 2, 4 and 8 ranks, beside the formulas.

    \b
    Examples:
      sekkei picture zero --out zero.html
      sekkei picture zero --weights fp32 --most 4 --out zero.html
    """
    from sekkei.core import atomic
    from sekkei.core.errors import ConfigError
    from sekkei.core.progress import Console
    from sekkei.prove.bars import held_bytes
    from sekkei.report import pictures

    if weights not in ("bf16", "fp32"):
        raise ConfigError("--weights", f"got {weights!r}, must be bf16 or fp32")
    if most not in (2, 4, 8):
        raise ConfigError("--most", f"got {most}, must be 2, 4 or 8")
    sizes = [size for size in (1, 2, 4, 8) if size <= most]
    with Console().bar("zero", 0) as bar:
        bar.update(0, f"every stage on {sizes} ranks")
        found = held_bytes(sizes, weights)  # type: ignore[arg-type]
    bars = [pictures.Bar(f.ranks, f.zero, (f.params, f.grads, f.optimizer), f.formula) for f in found]
    words = [
        f"Measured after the backward pass on the fullest of N ranks, {weights} weights (one rank: fp32).",
        "The textbook's 4 times less (stage 1), 8 times less (stage 2) are limits for large N.",
    ]
    atomic.write_text(out, pictures.page("What a ZeRO stage leaves on a rank", words, pictures.stages(bars)))
    for held in found:
        less = f"{16 / held.total:.2f}x less than 16"
        print(f"N={held.ranks} zero {held.zero}  {held.total:7.3f} B/parameter, formula {held.formula:7.3f}  {less}")
    print(f"picture: {out}")


COMMANDS = {"schedules": schedules, "zero3": zero3, "zero": zero}
