"""`sekkei plan`: what a model costs on a cluster, layout by layout, before anything is rented.

The figures are closed forms (parallel/memory.py, parallel/peak.py, parallel/cost.py); nothing is built or run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sekkei.model.config import ModelConfig
    from sekkei.parallel.cost import Gpu
    from sekkei.parallel.memory import Job
    from sekkei.parallel.search import Found, Plan

CONTEXT, ROWS = 8192, 1024  # where neither a recipe nor an option says: 8M tokens a step, as large runs take
WALL = ("1b", "7b", "70b", "405b")
COLUMNS = ("params", "grads", "optimizer", "activations", "logits", "gathered", "buckets")


def command(
    model: Annotated[str | None, typer.Argument(help="a recipe, or a Hugging Face config.json")] = None,
    params: Annotated[str | None, typer.Option(help="instead of a model: about so many parameters, as 70b")] = None,
    gpus: Annotated[int, typer.Option(help="all GPUs")] = 8,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200 or b200")] = "h100",
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of one machine")] = 8,
    interconnect: Annotated[float | None, typer.Option(help="GB/s per GPU between machines, one way")] = None,
    context: Annotated[int | None, typer.Option(help="tokens of a row")] = None,
    rows: Annotated[int | None, typer.Option(help="rows of the global batch")] = None,
    micro_rows: Annotated[int, typer.Option(help="rows per data rank and forward pass")] = 1,
    weights: Annotated[
        str | None, typer.Option(help="bf16 (with fp32 master), fp32 or fp64; a recipe's are fp32, else bf16")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="share of the peak reached while computing")] = 0.5,
    layout: Annotated[str | None, typer.Option(help="price this one only, as dp=8,tp=8,zero=1,recompute=full")] = None,
    top: Annotated[int, typer.Option(help="how many layouts to show")] = 8,
    html: Annotated[Path | None, typer.Option(help="draw who holds what into this file")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="with --layout: run one rank's step on tensors without values, and count")
    ] = False,
    wall: Annotated[bool, typer.Option("--wall", help="16 bytes per parameter against one device")] = False,
) -> int:
    """Price every layout of a model on a cluster: bytes per rank by component, and the time of a step.

    Layouts that fit come first, the fastest at the top; then the fastest that do not fit, with what they lack.
    Parameters, gradients and optimizer are counted; the rest and the times are estimates for comparing layouts. The
    exit code is 1 if nothing fits.

    \b
    Examples:
      sekkei plan --params 70b --gpus 64 --gpu h100 --html plan.html
      sekkei plan --params 70b --gpus 64 --layout dp=8,tp=8,zero=1,recompute=full
      sekkei plan --params 1b --gpus 16 --layout dp=8,tp=2,zero=3 --trace
      sekkei plan laptop --gpus 2 --gpu a100
      sekkei plan --wall
    """

    from dataclasses import replace

    from sekkei.core.errors import UserError
    from sekkei.parallel.cost import Cluster, find_gpu
    from sekkei.parallel.search import parse_layout, price, search

    device = find_gpu(gpu)
    if wall:
        print("\n".join(wall_lines(device)))
        return 0
    job, words = job_of(model, params, context, rows, micro_rows, weights)
    rate = None if interconnect is None else interconnect * 1e9
    cluster = Cluster(gpu=device, gpus=gpus, gpus_per_node=gpus_per_node, network=rate, utilisation=utilisation)
    head = [
        f"{words}; {gpus} x {device.name}, {gpus_per_node} per node",
        f"a step: {job.rows} rows of {job.context} tokens, {micro_rows} per pass; {job.weights} weights",
        "GiB of the rank that holds most",
        "",
    ]
    if trace and layout is None:
        raise UserError("--trace follows one layout: give it with --layout")
    if layout is None:
        found = search(job, cluster)
        print("\n".join([*head, *search_lines(found, max(1, top))]))
        draw(html, head, [*found.fitting[:top], *found.others[: max(3, top // 2)]])
        return 0 if found.fitting else 1
    chosen = parse_layout(layout, job.weights)
    if chosen.world > 1 and job.weights != "fp64":
        job = replace(job, weights=chosen.weights)
        head[1] = f"a step: {job.rows} rows of {job.context} tokens, {micro_rows} per pass; {job.weights} weights"
    plan = price(job, chosen, cluster)
    print("\n".join([*head, *table([plan]), "", *detail_lines(plan)]))
    if trace:
        print("\n".join(trace_lines(plan)))
    draw(html, head, [plan])
    return 0 if plan.fits else 1


def draw(path: Path | None, words: Sequence[str], plans: Sequence[Plan]) -> None:
    """Write the page of some plans, where one is wanted and there is something to draw."""
    if path is None or not plans:
        return
    from sekkei.core import atomic
    from sekkei.report.layouts import page

    atomic.write_text(path, page(words, plans))
    print(f"picture: {path}")


def job_of(
    model: str | None,
    params: str | None,
    context: int | None = None,
    rows: int | None = None,
    micro_rows: int = 1,
    weights: str | None = None,
) -> tuple[Job, str]:
    """What is to be trained, and the words that name it.

    Raises:
        UserError: no model, or two of them. ConfigError: a value that does not fit.
    """
    from sekkei.core.errors import ConfigError, UserError
    from sekkei.model.flops import count_parameters
    from sekkei.model.shapes import shape_of
    from sekkei.parallel.memory import WEIGHT_BYTES, Job

    if weights is not None and weights not in WEIGHT_BYTES:
        raise ConfigError("--weights", f"got {weights!r}, must be one of {', '.join(WEIGHT_BYTES)}")
    if (model is None) == (params is None):
        raise UserError("plan: give either a model (a recipe or a config.json) or --params, as --params 70b")
    usual, usual_weights = (CONTEXT, ROWS), "bf16"
    if params is not None:
        config, source = shape_of(params)
        source = f"{params}: {source}"
    else:
        assert model is not None
        config, usual, usual_weights, source = _read(model)
    job = Job(
        model=config,
        context=usual[0] if context is None else context,
        rows=usual[1] if rows is None else rows,
        micro_rows=micro_rows,
        weights=weights or usual_weights,  # type: ignore[arg-type]
    )
    return job, f"{source}, {_count(sum(count_parameters(config).values()))} parameters"


def _read(name: str) -> tuple[ModelConfig, tuple[int, int], str, str]:
    """A model by file or recipe: its config, (context, rows) of the longest stage, dtype of weights, and its name."""
    import json
    from dataclasses import replace

    from sekkei.core.errors import UserError
    from sekkei.model.hf import config_from_hf
    from sekkei.recipes.recipe import load

    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix != ".json":
        recipe = load(name)
        longest = max(recipe.pretrain.values(), key=lambda stage: stage.context, default=None)
        size = (longest.context, longest.rows) if longest else (min(CONTEXT, recipe.model.max_context), ROWS)
        config = replace(recipe.model, vocab_size=recipe.tokenizer.vocab_size)
        return config, size, recipe.layout.weights, f"recipe {recipe.name}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a model's config.json") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a JSON object, as a model's config.json")
    config = config_from_hf(data)
    return config, (min(CONTEXT, config.max_context), ROWS), "bf16", str(path)


def table(plans: Sequence[Plan]) -> list[str]:
    """One line per plan, with a head."""
    from sekkei.core.hardware import GIB
    from sekkei.parallel.search import RESERVE

    width = max(len("layout"), *(len(plan.name) for plan in plans))
    names = (*COLUMNS, "reserve")
    head = f"{'layout':<{width}}  {'step':>8}  {'mfu':>4}  {'GiB':>6} ="
    lines = [head + "".join(f"  {name:>6}" for name in names)]
    for plan in plans:
        parts = dict(plan.memory)
        parts["optimizer"] = parts.pop("master") + parts.pop("moments")
        parts["activations"] += parts.pop("casts")
        figures = [_gib(size / GIB) for size in (*(parts[name] for name in COLUMNS), RESERVE)]
        step = f"{plan.step:.1f} s" if plan.step >= 1 else f"{1000 * plan.step:.1f} ms"
        line = f"{plan.name:<{width}}  {step:>8}  {plan.utilisation:>4.0%}  {plan.peak / GIB:>6.1f}  "
        lines.append(line + "".join(f"  {figure:>{max(6, len(name))}}" for name, figure in zip(names, figures)))
    return lines


def search_lines(found: Found, top: int) -> list[str]:
    """What the search brought."""
    lines = []
    if found.fitting:
        lines += table(found.fitting[:top])
        lines.append(f"{len(found.fitting)} layouts fit; the first {min(top, len(found.fitting))} by step time")
    elif found.others:
        least = min(found.others, key=lambda plan: plan.peak)
        lines.append(f"none of {len(found.others)} layouts fits; the smallest is {least.name}: {least.reason}")
        lines.append("more GPUs (--gpus), larger ones (--gpu), or shorter rows (--context) would help")
    if found.others:
        lines += ["", f"{len(found.others)} do not fit; the fastest would be"]
        for plan in found.others[: max(3, top // 2)]:
            lines.append(f"  {plan.name:<32} {plan.step:>8.1f} s  {plan.reason}")
    if found.refused:
        counts = ", ".join(f"{key} {count}" for key, count in sorted(found.refused.items()))
        lines += ["", f"{sum(found.refused.values())} do not divide the model or the batch: {counts}"]
    shown = found.fitting[:top] + found.others[: max(3, top // 2)]
    lines += sorted({f"warning: {plan.warning}" for plan in shown if plan.warning})
    return [*lines, *assumptions()]


def detail_lines(plan: Plan) -> list[str]:
    """Of one layout: where the time goes, the exact bytes, and whether it fits."""
    parts = "   ".join(f"{name} {seconds:.3g} s" for name, seconds in plan.seconds.items())
    exact = "   ".join(f"{name} {plan.memory[name]:,}" for name in ("params", "grads", "master", "moments"))
    lines = [f"step     {parts}", f"bytes    {exact}   (rank {plan.rank})"]
    lines.append(f"fits     {plan.peak / plan.cluster.gpu.memory:.0%} of a GPU" if plan.fits else plan.reason)
    if plan.warning:
        lines.append(f"warning: {plan.warning}")
    return [*lines, *assumptions()]


def trace_lines(plan: Plan) -> list[str]:
    """What a dry run of the plan's rank counts, beside the closed form."""
    import time

    from sekkei.parallel.memory import state_bytes
    from sekkei.parallel.peak import rank_bytes, standing_bytes
    from sekkei.prove.repeated import foretell

    began = time.perf_counter()
    found, run = foretell(plan.job, plan.layout, plan.rank)
    held = sum(state_bytes(plan.job.model, plan.layout, plan.job.weights, plan.rank).values())
    if plan.layout.pp > 1:
        held += standing_bytes(plan.job, plan.layout, plan.rank * plan.layout.pp // plan.layout.world)
    peak = sum(rank_bytes(plan.job, plan.layout, plan.rank, "cpu").values())
    words = "; ".join(
        f"{job.model.num_layers} layers, {job.passes(plan.layout)} micro-batches" for job in run if len(run) > 1
    )
    return [
        "",
        *([f"run with {words}: more of them repeat these (prove/repeated.py)"] if words else []),
        f"dry run of rank {plan.rank} with a CPU's kernels and weights, {time.perf_counter() - began:.0f} s",
        f"held     {found.held:,} bytes after the backward pass; closed form {held:,} ({found.held / held - 1:+.2%})",
        f"peak     {found.peak:,} bytes; closed form for a CPU {peak:,} ({found.peak / peak - 1:+.2%})",
    ]


def assumptions() -> list[str]:
    """What the estimates rest on."""
    from sekkei.parallel.cost import COLLECTIVE_SECONDS, LINK_SHARE

    return [
        "",
        "params, grads and optimizer are counted, not estimated (bf16: with a fp32 master in every stage); the rest",
        "is estimated, for packed rows under autocast, and so is time: data-sheet peaks and links, "
        f"{LINK_SHARE:.0%} of a link's rate, {1e6 * COLLECTIVE_SECONDS:.0f} µs per collective",
    ]


def wall_lines(device: Gpu) -> list[str]:
    """Why one device is not enough: bf16 weights 2 + gradients 2 + fp32 master 4 + Adam's moments 8 bytes."""
    from sekkei.core.hardware import GIB
    from sekkei.model.shapes import parse_count

    lines = [
        f"16 bytes per parameter (weights 2, gradients 2, master 4, moments 8) against one {device.name}, "
        f"{device.memory / GIB:.0f} GiB",
        "",
        f"{'model':<6}  {'GiB':>8}  {'devices':>7}",
    ]
    for name in WALL:
        held = 16 * parse_count(name)
        share = held / device.memory
        devices = math.ceil(share)
        verdict = "fits, before any activation" if devices == 1 else f"at least {devices} for the state alone"
        lines.append(f"{name:<6}  {held / GIB:>8.1f}  {share:>7.1f}  {'#' * min(60, max(1, round(share)))}  {verdict}")
    return lines


def _gib(size: float) -> str:
    return f"{size:.1f}" if size >= 0.05 or not size else f"{size:.3f}"


def _count(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return str(parameters)
