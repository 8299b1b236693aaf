"""Seconds and memory of a DPO step and a GRPO step, here and in TRL: same model, data, lengths, dtype and threads.

    python benchmarks/alignment.py --trl PYTHON      PYTHON: an interpreter with trl==1.16.*, torch and transformers

A Llama of 1.5M parameters (width 128, 4 layers, vocabulary 4096), float32, one thread. DPO: 8 pairs of 32 + 64 tokens,
the reference's log-probabilities computed before. GRPO: 8 prompts of 32 tokens, 8 answers of at most 64, temperature
1, no reference; generating and learning. "ours, ahead": the same with `off_by: 1`, generating in a second thread.

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


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(2)
    return [words(rng, PROMPT) for _ in range(count)]


def reward(ids: list[int]) -> float:
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
        }


def own_model() -> Any:
    """The model of both sides, in our code."""
    from sekkei.model.config import ModelConfig
    from sekkei.model.init import build

    sizes = ModelConfig(
        hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, intermediate_size=INNER,
        vocab_size=VOCAB, max_context=512,
    )  # fmt: skip
    return build(sizes, 0)


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
    model = own_model()
    models = {"policy": model, "reference": own_model()} if what == "dpo" else {"policy": model}
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
        asked = prompts(PROMPTS * steps)
        config = GRPOConfig(steps=steps, prompts=PROMPTS, samples=SAMPLES, max_tokens=ANSWER, micro_tokens=2048)
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


def llama() -> tuple[Any, Any]:
    """The model and a tokenizer whose words are its ids."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, VOCAB)}}, "<pad>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512,
        tie_word_embeddings=False, pad_token_id=PAD, eos_token_id=END, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def trl(what: str, steps: int) -> dict[str, float]:
    import torch
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    model, tokenizer = llama()
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
        rows = [{"prompt": text(p)} for p in prompts(PROMPTS * steps)]
        args = trl.GRPOConfig(
            **common, per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
            max_completion_length=ANSWER, beta=0.0, loss_type="dapo", temperature=1.0,
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


def measured(python: str, side: str, what: str, steps: int) -> dict[str, float]:
    command = [python, __file__, "--side", side, "--what", what, "--steps", str(steps)]
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
    parser.add_argument("--what", choices=("dpo", "grpo", "grpo_ahead"))
    options = parser.parse_args()
    if options.side:
        print(json.dumps((ours if options.side == "ours" else trl)(options.what, options.steps)))
        return
    found: dict[str, Any] = {}
    for what in ("dpo", "grpo"):
        rounds: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
        for _ in range(options.rounds):
            rounds["ours"].append(measured(sys.executable, "ours", what, options.steps))
            rounds["trl"].append(measured(options.trl, "trl", what, options.steps))
            if what == "grpo":
                rounds.setdefault("ours, ahead", []).append(
                    measured(sys.executable, "ours", "grpo_ahead", options.steps)
                )
        best = {
            side: {key: statistics.median(one[key] for one in ones) for key in ones[0]} for side, ones in rounds.items()
        }
        found[what] = {
            **best,
            "times faster": best["trl"]["seconds"] / best["ours"]["seconds"],
            "times less processor time": best["trl"]["cpu_seconds"] / best["ours"]["cpu_seconds"],
            "memory, share of theirs": best["ours"]["peak_mib"] / best["trl"]["peak_mib"],
            "rounds": rounds,
        }
        print(what, json.dumps({k: v for k, v in found[what].items() if k != "rounds"}), flush=True)
    out = Path(__file__).with_name("results") / "alignment.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
