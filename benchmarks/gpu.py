"""What one GPU does: training and decoding beside what its data sheet allows, memory beside the planner.

    PYTHONPATH=src python benchmarks/gpu.py                         all of it, into results/gpu-<name of the GPU>.json
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --small    the same code, on a CPU, to see that it runs

It needs torch alone (no packages of the suite), and takes about three minutes.

    matmul      bf16 FLOP/s of a square product          copy       bytes/s of a copy in its memory, read and written
    train       tokens/s and MFU of whole steps (forward, backward, AdamW; bf16 autocast over float32 weights), rows of
                one document (no mask: flash attention) and packed rows (a mask); peak bytes beside `rank_bytes`
    decode      tokens/s of the engine at several numbers of rows, with CUDA graphs and without; bytes that a pass must
                read (weights, and keys and values of all rows) over its time, as a share of the copy's speed: the
                roofline of decoding
    ring        one block of attention, forward and backward, by each kernel that takes it

Nothing is compared with a peer here: what peers publish is measured on other models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sekkei.core import hardware
from sekkei.data.batch import Batch
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.flops import flops_per_token
from sekkei.model.init import build
from sekkei.objectives.pretrain import TokenLoss
from sekkei.parallel import kernels
from sekkei.parallel.layout import Layout
from sekkei.parallel.memory import Job
from sekkei.parallel.ops import LocalOps
from sekkei.parallel.peak import rank_bytes
from sekkei.train.objective import Update
from sekkei.train.optim import OptimConfig, Optimizer
from sekkei.train.step import PlainStep

RESULTS = Path(__file__).parent / "results"


def model_of(width: int, layers: int, vocabulary: int, context: int) -> ModelConfig:
    """A Llama of that width: heads of 64, a quarter as many of keys and values."""
    heads = width // 64
    inner = 64 * round(width * 8 / 3 / 64)
    return ModelConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=max(1, heads // 4),
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_context=context,
    )


MODELS = {"124M": model_of(768, 12, 32768, 2048), "1.1B": model_of(2048, 20, 32768, 2048)}
SMALL = {"tiny": model_of(128, 2, 512, 256)}


def timed(run: Callable[[], Any], device: torch.device, times: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    run()
    found = []
    for _ in range(times):
        hardware.synchronize(device)
        began = time.perf_counter()
        run()
        hardware.synchronize(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def copied_per_second(device: torch.device, megabytes: int) -> float:
    """Bytes read and written by a copy inside the device's memory."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source), device, 10)


def batch_of(config: ModelConfig, rows: int, documents: int) -> Batch:
    """Random rows of so many equal documents."""
    context = config.max_context
    ids = torch.randint(0, config.vocab_size, (rows, context + 1))
    place = torch.arange(context).expand(rows, context)
    each = context // documents
    return Batch(
        ids=ids[:, :-1].contiguous(),
        labels=ids[:, 1:].contiguous(),
        mask=torch.ones(rows, context),
        positions=(place % each).contiguous(),
        segments=(place // each).contiguous(),
    )


def train(config: ModelConfig, device: torch.device, rows: int, peak: float, times: int) -> dict[str, Any]:
    """Whole steps of two micro-batches."""
    cuda = device.type == "cuda"
    base = torch.cuda.memory_allocated() if cuda else 0
    model = build(config, 0).to(device)
    optimizer = Optimizer(model, OptimConfig(kind="adamw", schedule="constant", warmup=0.0), 1000)
    step = PlainStep({"policy": model}, LocalOps(), device, torch.bfloat16)
    tokens = 2 * rows * config.max_context
    flops = tokens * flops_per_token(config, config.max_context)
    found: dict[str, Any] = {"rows": rows, "context": config.max_context}

    def packed_step() -> None:
        step.backward(Update("policy", [packed, packed], TokenLoss()))
        optimizer.step(1)

    def plain_step() -> None:
        for _ in range(2):
            with torch.autocast(device.type, torch.bfloat16):
                out = model(whole.ids, whole.positions, DenseAttend(None), whole.labels, frozenset({"logprobs"}), 1.0)
            (-out.logprobs.mean()).backward()
        optimizer.step(1)

    packed, whole = batch_of(config, rows, 4), batch_of(config, rows, 1).to(device)
    for name, run in (("packed", packed_step), ("one_document", plain_step)):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(run, device, times)
        found[name] = {"tokens_per_second": round(tokens / seconds), "mfu": round(flops / seconds / peak, 3)}
        if cuda:
            found[name]["peak_bytes"] = torch.cuda.max_memory_allocated() - base
    job = Job(model=config, context=config.max_context, rows=2 * rows, micro_rows=rows, weights="fp32")
    found["planned_bytes"] = sum(rank_bytes(job, Layout(), 0, "cuda" if cuda else "cpu").values())
    return found


def decode(
    config: ModelConfig, device: torch.device, rows: int, copy: float, tokens: int, graphs: bool
) -> dict[str, Any]:
    """Tokens per second of `rows` answers, and what share of the memory's speed that is."""
    dtype = torch.bfloat16 if device.type == "cuda" else None
    model = build(config, 0).to(device)
    if dtype is not None:
        model = model.to(dtype)
    engine = Engine(model, max_batch=max(rows, 2), graphs=graphs)
    prompt = 64
    requests = [
        Request(prompt_ids=tuple(range(1, prompt + 1)), sampling=Sampling(max_tokens=tokens, temperature=1.0), seed=i)
        for i in range(rows)
    ]
    seconds = timed(lambda: engine.generate(requests), device, 3)
    width = 2 if dtype is not None else 4
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("embed")) * width
    kept = 2 * config.num_layers * config.num_kv_heads * config.head_size * width * (prompt + tokens / 2) * rows
    return {
        "rows": rows,
        "graphs": graphs,
        "tokens_per_second": round(rows * tokens / seconds),
        "milliseconds_per_pass": round(1000 * seconds / tokens, 3),
        "share_of_memory_speed": round((weights + kept) / (seconds / tokens) / copy, 3),
    }


def ring(device: torch.device, tokens: int, times: int) -> list[dict[str, Any]]:
    """Milliseconds of one block of attention, by dtype and kernel."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        chosen = kernels.choose_kernel(device, dtype, False, 64)
        for kernel in dict.fromkeys((chosen, "explicit")):
            found.append({"dtype": str(dtype), "tokens": tokens, "kernel": kernel})
            found[-1] |= block(device, dtype, tokens, kernel, times)
    return found


def block(device: torch.device, dtype: torch.dtype, tokens: int, kernel: Any, times: int) -> dict[str, float]:
    """16 heads of 64 on 4 of keys and values."""
    q, k, v = (torch.randn(1, heads, tokens, 64, dtype=dtype, device=device) for heads in (16, 4, 4))
    out, lse = kernels.block_forward(q, k, v, None, True, kernel)
    forward = timed(lambda: kernels.block_forward(q, k, v, None, True, kernel), device, times)
    backward = timed(lambda: kernels.block_backward(out, q, k, v, out, lse, None, True, kernel), device, times)
    return {"forward_ms": round(1000 * forward, 3), "backward_ms": round(1000 * backward, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, few repetitions")
    parser.add_argument("--out", type=Path, help="default: results/gpu-<name>.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU; --device cpu --small runs the same code on a CPU")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else hardware.cpu_name()
    small = arguments.small
    copy = copied_per_second(device, 64 if small else 4096)
    peak = hardware.dense_bf16_flops(name) or hardware.measure_matmul_flops(torch.bfloat16, device)
    result: dict[str, Any] = {
        "machine": name,
        "torch": torch.__version__,
        "matmul_bf16_flops": hardware.measure_matmul_flops(torch.bfloat16, device),
        "peak_bf16_flops": peak,
        "copied_bytes_per_second": copy,
        "train": {},
        "decode": {},
    }
    path = arguments.out or RESULTS / f"gpu-{'-'.join(name.lower().split())}.json"
    for label, config in (SMALL if small else MODELS).items():
        result["train"][label] = train(config, device, 2 if small else 8, peak, 2 if small else 10)
        print(label, json.dumps(result["train"][label]), flush=True)
        result["decode"][label] = []
        for rows in (1, 4) if small else (1, 16, 64, 256):
            for graphs in (True, False):
                result["decode"][label].append(decode(config, device, rows, copy, 8 if small else 128, graphs))
                print(label, json.dumps(result["decode"][label][-1]), flush=True)
        path.write_text(json.dumps(result, indent=2) + "\n")  # what is measured stays, whatever comes next
    result["ring"] = ring(device, 256 if small else 8192, 2 if small else 10)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
