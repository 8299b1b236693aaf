"""A small reward model on preferences of people, beside two rules that read nothing.

    python benchmarks/hh_reward.py ../shared/data/hh_rlhf_harmless_test.jsonl.gz [--passes 2] [--seed 0]

The pairs (Bai et al. 2022, the harmless side's test file) are halved by a hash of the prompt's first turn, so that no
dialogue stands on both sides. The model (0.9M parameters, random at the start, a tokenizer learned on the training
half) reads the last 256 tokens of prompt and answer. Beside it on the held-out half: "the shorter answer is better",
and logistic regression on differences of word counts. Writes benchmarks/results/hh_reward.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from sekkei.core.seed import derive_seed
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.preference import Pair
from sekkei.objectives.preference_data import TextPair, read_pairs
from sekkei.objectives.reward import RewardConfig, RewardModelling, calibration, pair_gaps
from sekkei.parallel.ops import LocalOps
from sekkei.text.tokenizer import TokenizerConfig, train_tokenizer
from sekkei.train.objective import Context
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

WINDOW, ANSWER = 256, 160
CPU = torch.device("cpu")


def halves(pairs: Sequence[TextPair], seed: int) -> tuple[list[TextPair], list[TextPair]]:
    sides: tuple[list[TextPair], list[TextPair]] = ([], [])
    for pair in pairs:
        sides[derive_seed("hh", seed, pair.prompt[0]["content"]) % 2].append(pair)
    return sides


def cut(pair: Pair) -> Pair:
    """The last tokens of the prompt, and answers whose *ends* stay: the reward is read there."""
    chosen, rejected = pair.chosen[-ANSWER:], pair.rejected[-ANSWER:]
    return Pair(pair.prompt[-(WINDOW - ANSWER) :], chosen, rejected)


def interval(share: float, count: int) -> float:
    """Half of a 95% interval (normal approximation)."""
    return 1.96 * math.sqrt(share * (1 - share) / count)


def bag_of_words(train: Sequence[TextPair], test: Sequence[TextPair]) -> float:
    """Accuracy of logistic regression on differences of word counts, L2 chosen on a fifth of the training half."""

    def words(text: str) -> Counter[str]:
        return Counter(re.findall(r"[a-z']+", text.lower()))

    seen = Counter(word for pair in train for side in (pair.chosen, pair.rejected) for word in set(words(side)))
    index = {word: i for i, (word, n) in enumerate(seen.most_common()) if n >= 5}

    def features(pairs: Sequence[TextPair]) -> torch.Tensor:
        x = torch.zeros(len(pairs), len(index))
        for row, pair in enumerate(pairs):
            for side, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
                for word, n in words(side).items():
                    if word in index:
                        x[row, index[word]] += sign * n
        return x

    def fit(x: torch.Tensor, penalty: float) -> torch.Tensor:
        weights = torch.zeros(x.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = -torch.nn.functional.logsigmoid(x @ weights).mean() + penalty * (weights**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        return weights.detach()

    def right(x: torch.Tensor, weights: torch.Tensor) -> float:
        gap = x @ weights
        return float(((gap > 0).float() + 0.5 * (gap == 0).float()).mean())

    x = features(train)
    fifth = len(train) // 5
    penalties = (1e-3, 1e-2, 1e-1)
    best = max(penalties, key=lambda p: right(x[:fifth], fit(x[fifth:], p)))
    return right(features(test), fit(x, best))


def trained(pairs: Sequence[Pair], options: argparse.Namespace) -> tuple[Transformer, Context, list[float]]:
    """The model, how to run it, and its accuracy on each training batch."""
    sizes = ModelConfig(
        hidden_size=128,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=384,
        vocab_size=2048,
        qk_norm=True,
        max_context=WINDOW,
    )
    model = build(sizes, options.seed, heads=("reward",))
    models = {"policy": model}
    step = PlainStep(models, LocalOps(), CPU, None)
    ctx = Context(models=models, ops=LocalOps(), device=CPU, seed=options.seed, score=step.score)
    steps = options.passes * len(pairs) // 32
    config = RewardConfig(steps=steps, center=0.01)
    objective = RewardModelling(pairs, config, longest=2 * WINDOW)
    optimizer = Optimizer(model, OptimConfig(lr=options.lr, weight_decay=0.1, schedule="cosine", warmup=0.1), steps)
    curve = []
    for number in range(steps):
        ctx.step = number
        (update,) = objective.next_step(ctx)
        metrics = step.backward(update)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(number)
        curve.append(float(metrics["accuracy"].total / metrics["accuracy"].weight))
        if number % 10 == 9:
            print(f"step {number + 1}/{steps}  accuracy on the batch {sum(curve[-10:]) / 10:.2f}", flush=True)
    model.requires_grad_(False)
    return model, ctx, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    pairs, counts = read_pairs(options.data)
    train, test = halves(pairs, options.seed)
    texts = [message["content"] for pair in train for message in pair.prompt]
    texts += [side for pair in train for side in (pair.chosen, pair.rejected)]
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=2048))
    encoded = [[cut(pair.encode(tokenizer)) for pair in side] for side in (train, test)]
    began = time.monotonic()
    model, ctx, curve = trained(encoded[0], options)
    seconds = time.monotonic() - began
    held_out = calibration(pair_gaps(ctx, encoded[1], 8192))
    shorter = sum((len(p.chosen) < len(p.rejected)) + 0.5 * (len(p.chosen) == len(p.rejected)) for p in test)
    rules = {"shorter answer": shorter / len(test), "bag of words": bag_of_words(train, test)}
    found = {
        "counts": counts,
        "pairs": {"train": len(train), "test": len(test)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(curve),
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "reward model": held_out,
        "accuracy ± (95%)": interval(held_out["accuracy"], len(test)),
        "rules": rules,
        "accuracy on the last training batches": sum(curve[-10:]) / 10,
    }
    print(json.dumps(found, indent=2))
    out = Path(__file__).with_name("results") / "hh_reward.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
