"""Seconds and memory of a DPO step and a GRPO step, here and in TRL: same model, data, lengths, dtype and threads.

    python benchmarks/alignment.py --trl PYTHON      PYTHON: an interpreter with trl==1.16.*, torch and transformers

A Llama of 1.5M parameters (width 128, 4 layers, vocabulary 4096), float32, one thread; both sides open one checkpoint.
DPO: 8 pairs of 32 + 64 tokens, the reference's log-probabilities computed before. GRPO: 8 prompts, 8 answers to each,
temperature 1, no reference; generating and learning.

    grpo         prompts of 32 tokens, answers of at most 64, by random weights: nearly all run to the limit, the best
                 case of a padded batch
    grpo_mixed   prompts of 16 to 48, answers of at most 192 that end with probability 1/48 at each token (END's row of
                 the checkpoint's head is set for it), so lengths are geometric, as those of real answers differ
    grpo_ahead   "ours, ahead": grpo with `off_by: 1`, generating in a second thread

Sides take turns, each in a process of its own; medians of the steps after the first three, then of the rounds. Seconds
are those of the clock and, beside them, those of the processor that the process was given, which other programs on the
machine disturb less; "times" are shares of both. Memory: the peak of the resident set while stepping, above what it was
before the first step. Writes benchmarks/results/alignment.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

VOCAB, PAD, END = 4096, 0, 1
WIDTH, LAYERS, HEADS, INNER = 128, 4, 4, 384
PAIRS, PROMPTS, SAMPLES, PROMPT, ANSWER = 8, 8, 8, 32, 64
MIXED_PROMPT, MIXED_MEAN, MIXED_ANSWER = (16, 48), 48, 192
WARM, STEPS = 3, 12


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1]) / 1024
    raise RuntimeError(field)


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2, VOCAB) for _ in range(count)]


def pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    rng = random.Random(1)
    return [(words(rng, PROMPT), [*words(rng, ANSWER - 1), END], [*words(rng, ANSWER - 1), END]) for _ in range(count)]


def prompts(what: str, count: int) -> list[list[int]]:
    rng = random.Random(2)
    shortest, longest = MIXED_PROMPT if what == "grpo_mixed" else (PROMPT, PROMPT)
    return [words(rng, rng.randint(shortest, longest)) for _ in range(count)]


def most_tokens(what: str) -> int:
    return MIXED_ANSWER if what == "grpo_mixed" else ANSWER


LENGTHS: list[int] = []
"""Tokens of every answer that this process has scored."""


def reward(ids: list[int]) -> float:
    LENGTHS.append(len(ids))
    return sum(i % 2 == 0 for i in ids) / max(len(ids), 1)


class Clock:
    """Times of steps, and the memory that they needed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def __call__(self, step: Callable[[], Any]) -> None:
        self.begin()
        step()
        self.end()

    def begin(self) -> None:
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.cpu_seconds.append(time.process_time() - self.cpu_began)

    def figures(self) -> dict[str, float]:
        return {
            "seconds": statistics.median(self.seconds[WARM:]),
            "cpu_seconds": statistics.median(self.cpu_seconds[WARM:]),
            "peak_mib": resident("VmHWM") - self.before,
            "answer_tokens": statistics.fmean(LENGTHS or [0]),
        }


def own_model(what: str) -> Any:
    """The model of both sides, in our code."""
    from sekkei.model.config import ModelConfig
    from sekkei.model.init import build

    sizes = ModelConfig(
        hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, intermediate_size=INNER,
        vocab_size=VOCAB, max_context=512,
    )  # fmt: skip
    model = build(sizes, 0)
    if what == "grpo_mixed":
        end_at_times(model, 1 / MIXED_MEAN)
    return model


def end_at_times(model: Any, share: float) -> None:
    """Make END as probable as that on average: all embeddings get a common part, which END's scores read."""
    import torch

    common = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    common /= common.norm()
    rng = random.Random(3)
    ids = torch.tensor([words(rng, PROMPT) for _ in range(64)])
    low, high = 0.0, 8.0
    with torch.no_grad():
        model.embed.weight += 3 * common
        for _ in range(20):
            middle = (low + high) / 2
            model.lm_head.weight[END] = middle * common
            found = naive_shares(model, ids)
            low, high = (middle, high) if found < share else (low, middle)


def naive_shares(model: Any, ids: Any) -> float:
    """Mean probability of END after the tokens of ids [B, T]."""
    import torch

    from sekkei.model.attention import DenseAttend

    labels, attend = torch.full_like(ids, END), DenseAttend(None)
    out = model(ids, torch.arange(ids.shape[1]).expand_as(ids), attend, labels, frozenset({"logprobs"}), 1.0)
    return float(out.logprobs.exp().mean())


def ours(what: str, steps: int) -> dict[str, float]:
    import torch

    from sekkei.core import hardware
    from sekkei.engine.engine import Engine
    from sekkei.objectives.ahead import OwnCopy
    from sekkei.objectives.grpo import GRPO, GRPOConfig
    from sekkei.objectives.pair_loss import DPOLoss
    from sekkei.objectives.preference import Pair, Preference, reference_logprobs
    from sekkei.objectives.rollout import Prompt
    from sekkei.parallel.ops import LocalOps
    from sekkei.train.objective import Context
    from sekkei.train.optim import OptimConfig, Optimizer
    from sekkei.train.step import PlainStep

    hardware.tune_allocator()  # as `sekkei run` does
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model = own_model(what)
    models = {"policy": model, "reference": own_model(what)} if what == "dpo" else {"policy": model}
    step, engine = PlainStep(models, LocalOps(), device, None), Engine(model)

    def generate(requests: list[Any]) -> list[Any]:
        engine.refresh(None)
        return engine.generate(requests)

    ctx = Context(models=models, ops=LocalOps(), device=device, seed=0, score=step.score, generate=generate)
    objective: Any
    if what == "dpo":
        data = [Pair(*(tuple(part) for part in pair)) for pair in pairs(PAIRS * steps)]
        refs = reference_logprobs(data, ctx, 8192, "start")
        del models["reference"]
        objective = Preference(data, DPOLoss(beta=0.1, nll=0.0), PAIRS, 8192, refs)
    else:
        asked, longest = prompts(what, PROMPTS * steps), most_tokens(what)
        config = GRPOConfig(steps=steps, prompts=PROMPTS, samples=SAMPLES, max_tokens=longest, micro_tokens=2048)
        if what == "grpo_ahead":
            config = replace(config, off_by=1, correction="token_truncate")
            ctx.generate = OwnCopy(model, device, None)
        objective = GRPO(
            lambda i: Prompt(tuple(asked[i]), lambda c: {"reward": reward(list(c.token_ids))}), config, (END,)
        )
    optimizer = Optimizer(model, OptimConfig(lr=1e-5), steps)
    hardware.trim_memory()  # what making the references needed is not the step's
    clock = Clock()

    def once() -> None:
        for update in objective.next_step(ctx):
            step.backward(update)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(ctx.step)

    for number in range(steps):
        ctx.step = number
        clock(once)
    return clock.figures()


def tokenizer_of_ids() -> Any:
    """A tokenizer whose words are its ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, VOCAB)}}, "<pad>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def trl(what: str, steps: int, checkpoint: str) -> dict[str, float]:
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback

    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), tokenizer_of_ids()
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no",
        "gradient_checkpointing": False, "max_steps": steps, "learning_rate": 1e-5, "disable_tqdm": True,
        "logging_steps": 1000,
    }  # fmt: skip

    def text(ids: list[int]) -> str:
        return " ".join("<end>" if i == END else f"w{i}" for i in ids)

    trainer: Any
    if what == "dpo":
        rows = [{"prompt": text(p), "chosen": " " + text(c[:-1]), "rejected": " " + text(r[:-1])}
                for p, c, r in pairs(PAIRS * steps)]  # fmt: skip
        args = trl.DPOConfig(**common, per_device_train_batch_size=PAIRS, precompute_ref_log_probs=True, beta=0.1)
        trainer = trl.DPOTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
    else:
        rows = [{"prompt": text(p)} for p in prompts(what, PROMPTS * steps)]
        args = trl.GRPOConfig(
            **common, per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
            max_completion_length=most_tokens(what), beta=0.0, loss_type="dapo", temperature=1.0,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        )  # fmt: skip
    clock: list[Clock] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not clock:
                clock.append(Clock())
            clock[0].begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock[0].end()

    trainer.add_callback(Watch())
    trainer.train()
    return clock[0].figures()


def save_checkpoint(what: str, folder: Path) -> None:
    """Our model where TRL reads it."""
    from sekkei.model.hf import save_hf

    model = own_model(what)
    save_hf(folder, model.config, model.state_dict(), family="llama", eos_id=END)


def measured(python: str, side: str, what: str, steps: int, checkpoint: Path) -> dict[str, float]:
    command = [python, __file__, "--side", side, "--what", what, "--steps", str(steps), "--checkpoint", str(checkpoint)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{side} {what} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a process, with the first three")
    parser.add_argument("--side", choices=("ours", "trl"))
    parser.add_argument("--what", choices=("dpo", "grpo", "grpo_mixed", "grpo_ahead"))
    parser.add_argument("--checkpoint", help="of --side trl")
    options = parser.parse_args()
    if options.side == "ours":
        print(json.dumps(ours(options.what, options.steps)))
        return
    if options.side == "trl":
        print(json.dumps(trl(options.what, options.steps, options.checkpoint)))
        return
    out = Path(__file__).with_name("results") / "alignment.json"
    found: dict[str, Any] = json.loads(out.read_text()) if options.what else {}
    for what in (options.what,) if options.what else ("dpo", "grpo", "grpo_mixed"):
        with tempfile.TemporaryDirectory() as folder:
            found[what] = compared(what, options, Path(folder) / "model")
        print(what, json.dumps({k: v for k, v in found[what].items() if k != "rounds"}), flush=True)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")


def per_token(side: dict[str, float]) -> float:
    """Sides draw other answers, so they have not equally many tokens to learn (DPO: none of them draws)."""
    return side["cpu_seconds"] / (side["answer_tokens"] or 1)


def compared(what: str, options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Both sides in turns."""
    save_checkpoint(what, checkpoint)
    sides = [("ours", sys.executable, "ours", what), ("trl", options.trl, "trl", what)]
    if what == "grpo":
        sides.append(("ours, ahead", sys.executable, "ours", "grpo_ahead"))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in sides}
    for _ in range(options.rounds):
        for name, python, side, which in sides:
            rounds[name].append(measured(python, side, which, options.steps, checkpoint))
    best = {
        side: {key: statistics.median(one[key] for one in ones) for key in ones[0]} for side, ones in rounds.items()
    }
    return {
        **best,
        "times faster": best["trl"]["seconds"] / best["ours"]["seconds"],
        "times less processor time": best["trl"]["cpu_seconds"] / best["ours"]["cpu_seconds"],
        "least of all rounds, times less processor time": (
            min(one["cpu_seconds"] for one in rounds["trl"]) / min(one["cpu_seconds"] for one in rounds["ours"])
        ),
        "the same, per answer token": per_token(best["trl"]) / per_token(best["ours"]),
        "memory, share of theirs": best["ours"]["peak_mib"] / best["trl"]["peak_mib"],
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
