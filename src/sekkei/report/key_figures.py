"""The few figures that say most about a stage, for its line on the console and its row in the report.

    pretrain.general   ->  tokens 1,843,200 · passes over docs 0.431 · over code 0.132
    eval.grpo          ->  greedy 96.9% · sampled 89.4% · majority of 8 95.0% · …

One table, in the order of importance. What a stage has that the table does not name is in results.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sekkei.report import words

# stage pattern -> (figure, what it is called); {0} is what the pattern's group caught
_TABLE: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        r"data",
        (
            ("data.pages", "pages"),
            ("data.kept", "kept"),
            ("data.bytes.docs", "bytes of docs"),
            ("data.bytes.code", "of code"),
            ("data.bytes.math", "of maths"),
        ),
    ),
    (r"tokenizer", (("tokenizer.vocab_size", "vocabulary"),)),
    (r"imported", (("imported.parameters", "parameters"), ("imported.added_tokens", "tokens added"))),
    (
        r"tokens",
        (
            ("tokens.docs.train", "tokens of docs"),
            ("tokens.code.train", "of code"),
            ("tokens.math.train", "of maths"),
            ("tokenizer.bytes_per_token.docs", "bytes per token of docs"),
        ),
    ),
    (
        r"pretrain\.(.+)",
        (
            ("pretrain.{0}.tokens", "tokens"),
            ("pretrain.{0}.epochs.docs", "passes over docs"),
            ("pretrain.{0}.epochs.code", "over code"),
        ),
    ),
    (
        r"eval\.pretrain\.(.+)",
        (
            ("pretrain.{0}.bpb.docs", "held-out bits per byte: docs"),
            ("pretrain.{0}.bpb.code", "code"),
            ("pretrain.{0}.bpb.math", "maths"),
            ("pretrain.{0}.bpb.beyond_context", "beyond the first context"),
            ("pretrain.{0}.control.bpb.beyond_context", "there, untrained"),
        ),
    ),
    (r"sft", (("sft.steps", "steps"), ("sft.gate.pass1_sampled", "gate: sampled right"))),
    (
        r"preferences",
        (
            ("preferences.train.right", "training pairs: right before wrong"),
            ("preferences.train.ended", "ended before rambling"),
            ("preferences.train.refusal_harmful", "refusals"),
            ("preferences.test.right", "held-out pairs"),
        ),
    ),
    (
        r"dpo",
        (
            ("dpo.preference_accuracy.start", "held-out pairs: preferred by reward at start"),
            ("dpo.preference_accuracy.end", "at end"),
            ("dpo.ranking_accuracy.start", "by probability at start"),
            ("dpo.ranking_accuracy.end", "at end"),
        ),
    ),
    (r"grpo", (("grpo.rollouts", "rollouts"),)),
    (
        r"agent",
        (
            ("agent.calculator.success", "sums right with the calculator"),
            ("agent.calculator.without", "without"),
            ("agent.calculator.called", "runs that called it"),
        ),
    ),
    (
        r"inference\.(.+)",
        (
            ("inference.{0}.direct.shots0.accuracy", "direct"),
            ("inference.{0}.cot.shots0.accuracy", "thinking"),
            ("inference.{0}.cot.shots8.accuracy", "with 8 examples"),
            ("inference.{0}.tot.bfs.accuracy", "tree of thoughts"),
        ),
    ),
    (
        r"eval\.(.+)",
        (
            ("reasoning.{0}.pass1_greedy", "chains right: greedy"),
            ("reasoning.{0}.pass1_sampled", "sampled"),
            ("reasoning.{0}.maj8", "majority of 8"),
            ("reasoning.{0}.steps", "steps written"),
            ("chat.{0}.answered", "turns answered"),
            ("icl.{0}.shots8", "8-shot symbols"),
        ),
    ),
)


def key_figures(stage: str, figures: Mapping[str, float]) -> str:
    """In one line; a stage that the table does not know shows its first four figures."""
    for pattern, entries in _TABLE:
        match = re.fullmatch(pattern, stage)
        if match:
            named = [(name.format(*match.groups()), label) for name, label in entries]
            break
    else:
        named = [(name, name.removeprefix(f"{stage}.").replace("_", " ")) for name in list(figures)[:4]]
    return " · ".join(f"{label} {words.figure(name, figures[name])}" for name, label in named if name in figures)
