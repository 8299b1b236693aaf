"""Charts over training steps: pretraining on one token axis, instruction tuning, DPO and GRPO.

Each function returns one SVG, or None where the run has no such records.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from sekkei.report.folder import RunFolder, Series
from sekkei.report.style import BLUE, GREEN, GREY, ORANGE, PALETTE, PURPLE, RED, Chart, legend_above, line, styled

Panel = tuple[str, Sequence[tuple[str, str]]]
"""A title, and (logged figure, label) of its lines; one line alone needs no label."""


@styled
def pretraining(run: RunFolder) -> str | None:
    """Loss and bits per byte over the tokens of all pretraining stages, boundaries marked."""
    stages = [key for key in run.pretrain_keys if run.series(f"pretrain.{key}", "loss")]
    if not stages:
        return None
    chart = Chart("pretraining", "Pretraining: loss and bits per byte over tokens", columns=2)
    loss_axes, bits_axes = chart.axes
    read = sum(run.series(f"pretrain.{key}", "loss").tokens[-1] for key in stages)
    unit, unit_name = (1e6, "million") if read >= 1e6 else (1e3, "thousand")
    offset, held_out_named = 0.0, False
    for number, key in enumerate(stages):
        color = (BLUE, ORANGE, GREEN, PURPLE, RED)[number % 5]
        loss = run.series(f"pretrain.{key}", "loss")
        line(loss_axes, _tokens(loss, offset, unit), loss.values, color)
        bits = run.series(f"pretrain.{key}", "bpb")
        if bits:
            line(bits_axes, _tokens(bits, offset, unit), bits.values, color)
        held_out = run.series(f"pretrain.{key}", "heldout_bpb")
        if held_out:
            mixture = (run.recipe["pretrain"][key].get("mixture") or {}).items()
            label = f"{key}: held-out {max(mixture, key=lambda item: item[1])[0]}" if mixture else f"{key}: held out"
            held_out_named = True
            bits_axes.plot(
                _tokens(held_out, offset, unit), held_out.values, "o", markersize=4.5, color=color, label=label,
                markeredgecolor="white", markeredgewidth=0.6, zorder=5,
            )  # fmt: skip
        end = offset + loss.tokens[-1]
        for axes in chart.axes:
            if number:
                axes.axvline(offset / unit, color=GREY, linewidth=1, linestyle=(0, (3, 3)))
            middle = (offset + end) / 2 / unit
            height = 1.0 if number % 2 == 0 else 1.055  # neighbours on two heights: a short stage's name is wider
            axes.text(middle, height, key, color=color, ha="center", va="bottom", transform=axes.get_xaxis_transform())
        offset = end
    loss_axes.set_ylabel("training loss, nats per token")
    bits_axes.set_ylabel("bits per byte")
    if held_out_named:
        legend_above(bits_axes, offset=1.11)
    for axes in chart.axes:
        axes.set_xlabel(f"{unit_name} tokens read")
        axes.set_xlim(0, max(offset / unit, 1e-9))
    return chart.svg()


@styled
def instruction_tuning(run: RunFolder, stage: str) -> str | None:
    """SFT's loss on the assistant's tokens."""
    loss = run.series(stage, "loss")
    if not loss:
        return None
    chart = Chart(stage, f"{stage}: loss of instruction tuning over steps", height=2.3)
    (axes,) = chart.axes
    line(axes, loss.steps, loss.values, BLUE)
    axes.set_ylabel("loss, nats per answer token")
    axes.set_xlabel("step")
    return chart.svg()


@styled
def reinforcement(run: RunFolder, stage: str) -> str | None:
    """GRPO, PPO and their relatives in small multiples; a panel, or a line of one, is there if the run logged it."""
    named = {name for record in run.records if record.get("stage") == stage for name in record}
    functions = sorted(name for name in named if name.startswith("rewards/") and f"{name}/std" in named)
    panels: tuple[Panel, ...] = (
        ("reward", (("reward", "mean"), ("reward_std", "std within groups"))),
        ("reward by function", tuple((name, name.removeprefix("rewards/")) for name in functions)),
        ("std by function", tuple((f"{name}/std", name.removeprefix("rewards/")) for name in functions)),
        ("results written while thinking", (("steps_written", ""),)),
        ("tokens per answer", (("completion_tokens", ""),)),
        ("share of answers, of groups", (("ended", "ended (the rest was cut)"), ("zero_spread", "no spread"))),
        ("entropy, nats per token", (("entropy", ""),)),
        ("KL", (("kl", "to the reference"), ("approx_kl", "to the rollout's policy"))),
        ("clipped share", (("clip_fraction/low", "low"), ("clip_fraction/high", "high"),
                           ("critic/value_clip_fraction", "values"))),
        ("gap of engine and trainer, nats", (("engine_gap", ""),)),
        ("of the returns, explained by the critic", (("explained_variance", ""),)),
        ("value loss", (("critic/loss", "loss"), ("critic/value_error", "squared error"))),
    )  # fmt: skip
    return _panels(run, stage, f"{stage}: reward, lengths, divergence and health of reinforcement learning", panels)


@styled
def preferences(run: RunFolder, stage: str) -> str | None:
    """DPO and its relatives, and reward models: margin and rewards, log-probabilities, accuracies."""
    if not run.series(stage, "rewards/chosen"):
        return None
    chart = Chart(stage, f"{stage}: margins, log-probabilities, accuracies", columns=3)
    groups = (
        ("reward; of a policy: β·log(π/π_ref)", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"),
                                            ("rewards/margins", "margin"))),
        ("log-probability of the answer, nats", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
        ("accuracy on the batch's pairs", (("rewards/accuracies", "reward is higher"),
                                           ("logps/accuracies", "is more probable"), ("accuracy", "scores higher"))),
    )  # fmt: skip
    for axes, (title, names) in zip(chart.axes, groups, strict=True):
        for (name, label), color in zip(names, (GREEN, RED, BLUE)):
            series = run.series(stage, name)
            if series:
                line(axes, series.steps, series.values, color, label)
        axes.set_title(title, pad=20)
        axes.set_xlabel("step")
        if axes.get_legend_handles_labels()[1]:
            legend_above(axes)
    chart.axes[2].set_ylim(-0.04, 1.04)
    return chart.svg()


def _panels(run: RunFolder, stage: str, title: str, panels: Sequence[Panel]) -> str | None:
    """Up to three panels a row, of those with something to draw."""
    drawn = []
    for name, lines in panels:
        found = [(label, run.series(stage, key)) for key, label in lines]
        if kept := [(label, series) for label, series in found if series]:
            drawn.append((name, kept))
    if not drawn:
        return None
    columns = min(3, len(drawn))
    chart = Chart(stage, title, rows=-(-len(drawn) // columns), columns=columns, height=2.1)
    for axes, (name, kept) in zip(chart.axes, drawn):
        axes.set_title(name, pad=20 if kept[0][0] else None)
        axes.set_xlabel("step")
        for (label, series), color in zip(kept, cycle(PALETTE)):
            line(axes, series.steps, series.values, color, label or None)
        axes.set_ylim(bottom=min(0.0, *(value for _, series in kept for value in series.values)))
        if kept[0][0]:
            legend_above(axes)
    for axes in chart.axes[len(drawn) :]:
        axes.set_visible(False)
    return chart.svg()


def _tokens(series: Series, offset: float, unit: float) -> list[float]:
    return [(offset + tokens) / unit for tokens in series.tokens]
