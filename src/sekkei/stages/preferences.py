"""Preference pairs from the model's own answers, judged by the verifier.

Of a problem's sampled answers, a right one is preferred to a wrong one *of the same length*, and an answer
that ended to one that rambled on to the length limit. Matching lengths keeps DPO from learning "longer is
better" in place of "right is better" (Park et al. 2024, "Disentangling Length from Quality in DPO"). Pairs
of other lengths are kept apart (kind "unmatched"): a reward model may ask for them, since one that never saw an
answer beside a longer one says nothing about how much thinking is worth. Pairs of a refusal before compliance
(and of an answer before a needless refusal) join in: they are written, not sampled.

    preferences/pairs.jsonl     {"split", "kind", "prompt", "chosen", "rejected"}, token ids

A file of the user's own takes the place of all that (objectives/preference_data.py). One of single answers that are
liked or not is for KTO alone:

    preferences/feedback.jsonl  {"split", "prompt", "answer", "desirable"}
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sekkei.core import atomic
from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.core.stage_names import PAIRED
from sekkei.data.tasks import Split, chain, held_out, refusals
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion
from sekkei.evals.reasoning import Exam
from sekkei.objectives.kto import Feedback
from sekkei.objectives.preference import Pair, PairingConfig
from sekkei.objectives.preference_data import TextPair, read_preferences
from sekkei.recipes.recipe import Recipe
from sekkei.stages.model_artifact import load_model
from sekkei.stages.run import Figures, Run
from sekkei.stages.sft import own_file
from sekkei.stages.training import check_length
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import Tokenizer
from sekkei.train.gathered import SharedEngine

PAIRS, FEEDBACK = "pairs.jsonl", "feedback.jsonl"
UNMATCHED = "unmatched"


@dataclass(frozen=True)
class PreferencesStage:
    """Asks the SFT model, lets the verifier judge, and writes pairs; ranks share what is asked."""

    recipe: Recipe
    name: str = "preferences"
    together: bool = True

    @property
    def version(self) -> int:
        return 3 if self.recipe.preferences.path else 2  # 3: prompts are checked, single answers and text in parts read

    @property
    def reads(self) -> tuple[str, ...]:
        return ("tokenizer",) if self.recipe.preferences.path else ("tokenizer", "sft")

    @property
    def config(self) -> Any:
        pairing = self.recipe.preferences
        return {"pairing": pairing, "chain": self.recipe.data.chain, "file": own_file(pairing.path)}

    def run(self, run: Run, out: Path) -> Figures:
        config = self.recipe.preferences
        tokenizer = Tokenizer.load(run.artifact("tokenizer"))
        if config.path is not None:
            return run.ranks.first_does(partial(self._from_file, out, tokenizer, config.path))
        engine = SharedEngine(load_model(run.artifact("sft") / "model").to(run.device))
        lines, figures = [], Counter[str]()
        sizes: tuple[tuple[Split, int], ...] = (("train", config.prompts), ("test", config.held_out_prompts))
        with run.console.bar(self.name, len(sizes)) as bar:
            for number, (split, prompts) in enumerate(sizes, start=1):
                pairs = own_pairs(engine, tokenizer, self.recipe, split, prompts)
                if not pairs:
                    run.console.say(f"  preferences: the model's own answers make no {split} pair")
                matched = sum(pair.kind != UNMATCHED for pair in pairs)
                pairs += refusal_pairs(tokenizer, self.recipe.seed, split, matched, config)
                for pair in pairs:
                    longest = max(len(pair.chosen), len(pair.rejected)) + len(pair.prompt)
                    check_length(longest, "preferences: an answer", self.recipe.model.max_context)
                    lines.append(json.dumps({"split": split, **vars(pair)}))
                    figures[f"preferences.{split}.{pair.kind}"] += 1
                bar.update(number, split)
        if run.ranks.first:
            atomic.write_text(out / PAIRS, "".join(line + "\n" for line in lines))
        return {name: float(count) for name, count in sorted(figures.items())}

    def _from_file(self, out: Path, tokenizer: Tokenizer, path: str) -> Figures:
        """The user's own pairs or single answers, each on one side of the split by a hash of its prompt."""
        pairs, feedback, counts = read_preferences(path)
        if feedback:
            for name, stage in self.recipe.tuning.items():
                refuse_unpaired(self.recipe, name, stage.kind)
        lines, figures = [], {f"preferences.file.{name.replace('/', '_')}": count for name, count in counts.items()}
        for one in (*pairs, *feedback):
            asked = json.dumps(one.prompt, ensure_ascii=False)
            split = "test" if held_out("preferences", asked, self.recipe.preferences.held_out_percent) else "train"
            if isinstance(one, TextPair):
                kind, record = "file", {"margin": one.margin, **vars(one.encode(tokenizer, "file"))}
            else:
                kind, record = "liked" if one.liked else "disliked", vars(one.encode(tokenizer))
            lines.append(json.dumps({"split": split, **record}))
            figures[f"preferences.{split}.{kind}"] = figures.get(f"preferences.{split}.{kind}", 0.0) + 1
        atomic.write_text(out / (FEEDBACK if feedback else PAIRS), "".join(line + "\n" for line in lines))
        return figures


def refuse_unpaired(recipe: Recipe, name: str, kind: str) -> None:
    """Refuse a stage that learns from pairs where `preferences.path` holds single answers.

    Raises:
        UserError
    """
    if kind in PAIRED - {"kto"}:
        key = f"tune.{name}" if name in recipe.tune else name
        raise UserError(
            f"{key}: {kind} learns from pairs, and preferences.path={recipe.preferences.path} holds single answers, "
            f"liked or not, which are for kto; give pairs, or leave the stage out ({key}=null)"
        )


def own_pairs(engine: Engine, tokenizer: Tokenizer, recipe: Recipe, split: Split, prompts: int) -> list[Pair]:
    """Pairs of the model's own answers to `prompts` problems of one side of the split."""
    config, chains = recipe.preferences, recipe.data.chain
    rng = random.Random(derive_seed("preferences", recipe.seed, split))
    problems = [chain.sample_problem(rng, rng.choice(chains.train_operations), split, chains) for _ in range(prompts)]
    exam = Exam(engine, tokenizer, problems, config.max_tokens)
    groups = exam.ask(config.temperature, config.samples, derive_seed("preferences", recipe.seed, split))
    pairs = []
    for problem, group in zip(problems, groups, strict=True):
        prompt = tuple(encode_prompt(tokenizer, chain.prompt(problem)))
        right = [c for c in group if exam.right(problem, c)]
        rambling = [c for c in group if c.finish_reason == "length"]
        wrong = [c for c in group if c.finish_reason == "stop" and not exam.right(problem, c)]
        made = _match(*_same_length(right, wrong), prompt, "right") + _match(right or wrong, rambling, prompt, "ended")
        pairs += made[: config.per_prompt] + _other_lengths(right, wrong, prompt)[: config.per_prompt]
    return pairs


def _same_length(
    better: Sequence[Completion], worse: Sequence[Completion]
) -> tuple[list[Completion], list[Completion]]:
    """Better and worse answers side by side, each used once, equally many tokens in both."""
    left, right, free = [], [], list(worse)
    for answer in better:
        partner = next((other for other in free if len(other.token_ids) == len(answer.token_ids)), None)
        if partner is not None:
            free.remove(partner)
            left.append(answer)
            right.append(partner)
    return left, right


def _other_lengths(better: Sequence[Completion], worse: Sequence[Completion], prompt: tuple[int, ...]) -> list[Pair]:
    """Pairs of which one answer is longer than the other."""
    unlike = [pair for pair in zip(better, worse, strict=False) if len(pair[0].token_ids) != len(pair[1].token_ids)]
    return [Pair(prompt, a.token_ids, b.token_ids, UNMATCHED) for a, b in unlike]


def _match(better: Sequence[Completion], worse: Sequence[Completion], prompt: tuple[int, ...], kind: str) -> list[Pair]:
    """The i-th better answer against the i-th worse one; equal answers make no pair."""
    return [
        Pair(prompt, a.token_ids, b.token_ids, kind)
        for a, b in zip(better, worse, strict=False)
        if a.token_ids != b.token_ids
    ]


def refusal_pairs(tokenizer: Tokenizer, seed: int, split: Split, own: int, config: PairingConfig) -> list[Pair]:
    """Written pairs, as many as make up `config.refusals` of all; where that is not 0, one at least."""
    wanted = max(round(own * config.refusals / (1 - config.refusals)), config.refusals > 0)
    pairs = []
    for written in refusals.refusal_pairs(split, seed)[:wanted]:
        answers = []
        for messages in (written.chosen, written.rejected):
            answers.append((*tokenizer.encode(messages[0]["content"]), tokenizer.end_id))
        prompt = tuple(encode_prompt(tokenizer, written.prompt))
        pairs.append(Pair(prompt, answers[0], answers[1], f"refusal_{written.kind}"))
    return pairs


def read_margins(folder: Path) -> list[float] | None:
    """How much better the chosen answer of every training pair is, as raters said; None where none said it."""
    lines = (folder / PAIRS).read_text(encoding="utf-8").splitlines()
    margins = [float(record.get("margin", 0.0)) for line in lines if (record := json.loads(line))["split"] == "train"]
    return margins if any(margins) else None


def read_feedback(folder: Path) -> dict[str, list[Feedback]]:
    """Single answers by split.

    Raises:
        UserError: one side of the split lacks answers that are liked, or that are not.
    """
    found: dict[str, list[Feedback]] = {"train": [], "test": []}
    for line in (folder / FEEDBACK).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        one = Feedback(tuple(record["prompt"]), tuple(record["answer"]), record["desirable"])
        found[record["split"]].append(one)
    for split, feedback in found.items():
        liked = sum(one.desirable for one in feedback)
        if not 0 < liked < len(feedback):
            raise UserError(
                f"preferences.path: the {split} side has {liked} liked answers and {len(feedback) - liked} others; it "
                "needs both: give more answers, or set preferences.held_out_percent"
            )
    return found


def read_pairs(folder: Path, unmatched: bool = False) -> dict[str, list[Pair]]:
    """Pairs by split.

    Args:
        unmatched: also those of answers of other lengths.
    Raises:
        UserError: one side of the split is empty.
    """
    found: dict[str, list[Pair]] = {"train": [], "test": []}
    for line in (folder / PAIRS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == UNMATCHED and not unmatched:
            continue
        ids = (tuple(record[name]) for name in ("prompt", "chosen", "rejected"))
        found[record["split"]].append(Pair(*ids, record["kind"]))
    if not found["train"] or not found["test"]:
        raise UserError(
            "preferences: the SFT model's answers are all right or all wrong, no pair can be made; "
            "raise preferences.prompts or preferences.samples, or leave out what learns from pairs"
        )
    return found
