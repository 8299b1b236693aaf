"""Charts over training steps: pretraining on one token axis, instruction tuning, DPO and GRPO.

Each function returns one SVG, or None where the run has no such records.
"""

from __future__ import annotations

from sekkei.report.folder import RunFolder, Series
from sekkei.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Chart, legend_above, line, styled


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
    """GRPO and its relatives: reward, written steps, length and entropy; PPO: what its critic explains."""
    panels: tuple[tuple[str, str, str], ...] = (
        ("reward", "reward", GREEN),
        ("steps_written", "results written while thinking", PURPLE),
        ("completion_tokens", "tokens per answer", BLUE),
        ("entropy", "entropy, nats per token", ORANGE),
    )
    if run.series(stage, "explained_variance"):
        panels += (
            ("explained_variance", "of the returns, explained by the critic", RED),
            ("kl", "KL to the reference, nats per token", GREY),
        )
    return _panels(run, stage, f"{stage}: reward, written steps, length, entropy", panels, rows=len(panels) // 2)


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


def _panels(run: RunFolder, stage: str, title: str, panels: tuple[tuple[str, str, str], ...], rows: int) -> str | None:
    found = [(label, color, run.series(stage, name)) for name, label, color in panels]
    if not any(series for *_, series in found):
        return None
    chart = Chart(stage, title, rows=rows, columns=-(-len(panels) // rows), height=2.3)
    for axes, (label, color, series) in zip(chart.axes, found, strict=True):
        axes.set_title(label)
        axes.set_xlabel("step")
        if series:
            line(axes, series.steps, series.values, color)
            axes.set_ylim(bottom=min(0.0, *series.values))
        else:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
    return chart.svg()


def _tokens(series: Series, offset: float, unit: float) -> list[float]:
    return [(offset + tokens) / unit for tokens in series.tokens]
