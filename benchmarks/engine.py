"""Tokens per second of the engine beside the three ways of transformers, on one checkpoint and the same requests.

    python benchmarks/engine.py [--requests 64] [--threads 1] [--out benchmarks/results/engine.json]

The checkpoint is a random Llama of about 17M parameters, written once and opened by both. Requests have mixed lengths
(stated in the results), are answered greedily and never stop early, so everybody draws the same number of tokens:

    sequential    model.generate, one request after the other
    padded        model.generate on left-padded batches of 16 requests of like length, and on one batch of all; a batch
                  goes on until its longest answer is done, only the tokens that were asked for count
    continuous    transformers' continuous batching manager, with each request's own length

The ways take turns, `--repeats` times, and each one's best run counts; seconds of the clock and of this process' CPU,
which other work on the machine disturbs less, are both shown. Greedy tokens are compared with the sequential ones; a
mismatch is looked at by its gap between the two best scores. The cost of a group is the time until all 16 samples of
one prompt have their first token, over that of one sample. Random weights say nothing about text, and the speed does
not depend on them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from sekkei.core import hardware
from sekkei.core.progress import Console
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.hf import load_hf
from sekkei.model.transformer import Transformer
from sekkei.serve.opened import build_from

CONFIG = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUP, GROUP_PROMPT = 16, 512
Work = list[tuple[list[int], int]]  # prompt, tokens to draw


def mixed(count: int, seed: int) -> Work:
    """Prompts of 16 to 256 tokens, answers of 16 to 128, both log-uniform."""
    rng = random.Random(seed)
    work = []
    for _ in range(count):
        length, tokens = round(16 * 16 ** rng.random()), round(16 * 8 ** rng.random())
        work.append(([rng.randrange(1, CONFIG["vocab_size"]) for _ in range(length)], tokens))
    return work


def sequential(model: Any, work: Work) -> list[list[int]]:
    found = []
    for prompt, tokens in work:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
        found.append(out[0, len(prompt) :].tolist())
    return found


def padded(model: Any, work: Work, size: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in work]
    order = sorted(range(len(work)), key=lambda i: (work[i][1], len(work[i][0])))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        width = max(len(work[i][0]) for i in part)
        ids = torch.zeros(len(part), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(part):
            ids[row, width - len(work[i][0]) :] = torch.tensor(work[i][0])
            mask[row, width - len(work[i][0]) :] = 1
        longest = max(work[i][1] for i in part)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False)
        for row, i in enumerate(part):
            found[i] = out[row, width : width + work[i][1]].tolist()
    return found


def continuous(model: Any, work: Work) -> list[list[int]]:
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    generation = transformers.GenerationConfig(do_sample=False, max_new_tokens=128, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(
        generation, ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=2048)
    )
    manager.start()
    try:
        names = [
            manager.add_request(prompt, request_id=str(i), max_new_tokens=tokens, eos_token_id=-1)
            for i, (prompt, tokens) in enumerate(work)
        ]
        done: dict[str, list[int]] = {}
        while len(done) < len(names):
            result = manager.get_result(timeout=60)
            if result is None or result.error:
                raise RuntimeError(f"no result: {result.error if result is not None else 'timeout'}")
            if result.is_finished():
                done[result.request_id] = list(result.generated_tokens)
        return [done[name] for name in names]
    finally:
        manager.stop(block=True)


def ours(model: Transformer, work: Work) -> list[list[int]]:
    requests = [
        Request(prompt_ids=tuple(prompt), sampling=Sampling(temperature=0.0, max_tokens=tokens))
        for prompt, tokens in work
    ]
    return [list(done[0].token_ids) for done in Engine(model, max_batch=64).generate(requests)]


@torch.no_grad()
def compared(model: Transformer, work: Work, reference: list[list[int]], found: list[list[int]]) -> dict[str, Any]:
    """Requests whose tokens differ, and the largest gap between the two best scores where they first do."""
    gaps = []
    for (prompt, _), expected, got in zip(work, reference, found, strict=True):
        assert len(expected) == len(got)
        at = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), None)
        if at is not None:
            ids = torch.tensor([[*prompt, *expected[:at]]])
            best = model.logits(model.hidden(ids, torch.arange(ids.shape[1])[None], DenseAttend(None)))[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
    return {"requests_that_differ": len(gaps), "largest_gap_there": max(gaps, default=0.0)}


def group_cost(model: Transformer, repeats: int) -> dict[str, float]:
    """Seconds until every sample has its first token: one sample, and a group that shares the prompt."""
    seconds: dict[int, float] = {}
    computed: dict[int, int] = {}
    rng = random.Random(3)
    prompt = tuple(rng.randrange(1, CONFIG["vocab_size"]) for _ in range(GROUP_PROMPT))
    for n in (1, GROUP):
        runs = []
        for _ in range(repeats + 1):
            engine = Engine(model)
            engine.submit(Request(prompt_ids=prompt, sampling=Sampling(max_tokens=2), n=n))
            began = time.perf_counter()
            drew = 0
            while drew < n:
                drew += len(engine.step())
            runs.append(time.perf_counter() - began)
            computed[n] = engine.prefilled
        seconds[n] = min(runs)
    return {
        "prompt": GROUP_PROMPT,
        "one_seconds": seconds[1],
        "group_seconds": seconds[GROUP],
        "ratio": seconds[GROUP] / seconds[1],
        "prompt_tokens_computed": computed[GROUP],
    }


def measured(
    ways: dict[str, Callable[[], list[list[int]]]], model: Transformer, work: Work, repeats: int
) -> dict[str, Any]:
    """A row for each way: the best of its runs, which take turns, and how its tokens compare with the first way's."""
    rows: dict[str, Any] = {name: {"all_seconds": [], "all_cpu_seconds": []} for name in ways}
    reference: list[list[int]] = []
    with Console().bar("engine", repeats * len(ways)) as bar, torch.inference_mode():
        for done, (turn, name) in enumerate((turn, name) for turn in range(repeats) for name in ways):
            bar.update(done, name)
            row = rows[name]
            if "error" in row:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                found = ways[name]()
            except Exception as error:  # a way that cannot run here is a row, too
                rows[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
                continue
            row["all_seconds"].append(time.perf_counter() - wall)
            row["all_cpu_seconds"].append(time.process_time() - cpu)
            reference = reference or found
            if not turn:
                row |= compared(model, work, reference, found)
    total = sum(tokens for _, tokens in work)
    for row in rows.values():
        if "error" not in row:
            row["seconds"], row["cpu_seconds"] = min(row["all_seconds"]), min(row["all_cpu_seconds"])
            row["tokens_per_second"] = total / row["seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
        theirs.save_pretrained(folder)
        model = build_from(*load_hf(Path(folder)), torch.float32, torch.device("cpu"))
    work = mixed(options.requests, seed=1)
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "transformers, sequential": lambda: sequential(theirs, work),
        "transformers, padded batches of 16": lambda: padded(theirs, work, 16),
        "transformers, padded, one batch": lambda: padded(theirs, work, len(work)),
        "transformers, continuous batching": lambda: continuous(theirs, work),
        "sekkei engine": lambda: ours(model, work),
    }
    rows = measured(ways, model, work, options.repeats)
    own = rows["sekkei engine"]
    others = [row for name, row in rows.items() if row is not own and "error" not in row]
    record = {
        "requests": options.requests,
        "prompt_tokens": [len(prompt) for prompt, _ in work],
        "answer_tokens": [tokens for _, tokens in work],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": options.threads,
        "machine": hardware.cpu_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
        "speedup_over_the_best_of_transformers": {
            "wall": min(row["seconds"] for row in others) / own["seconds"],
            "cpu": min(row["cpu_seconds"] for row in others) / own["cpu_seconds"],
        },
        "group_of_16": group_cost(model, options.repeats),
    }
    text = json.dumps(record, indent=1)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
