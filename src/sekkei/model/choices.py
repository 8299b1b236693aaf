"""Which of several exact ways a computation goes, by its sizes alone, never by timing.

    attention     T <= 256 in bf16 on a CPU: scores written out      else the fused kernel
    logits        chunk by chunk; kept for the backward pass where they are few, else made again

Without torch, so that what a layout costs can be told at once.
"""

from __future__ import annotations

from typing import Literal

EXPLICIT_MAX_TOKENS = 256  # measured on an AVX-512/AMX CPU, bf16, head widths 32-64
CHUNK_ELEMENTS = 1 << 20  # logits per chunk on a CPU: 4 MiB in float32 stay in its cache (1.1-1.3x faster than 32 MiB)
GPU_CHUNK_ELEMENTS = 1 << 26  # on a GPU, where few large kernels win
KEEP_ELEMENTS = 1 << 25  # keep logits up to 64 MiB in bf16; above that recompute them


def choose_path(device: str, bf16: bool, tokens: int) -> Literal["explicit", "sdpa"]:
    """How queries meet keys (attention.py).

    Args:
        device: its type. bf16: whether that is the queries' dtype. tokens: of a row.
    """
    return "explicit" if device == "cpu" and bf16 and tokens <= EXPLICIT_MAX_TOKENS else "sdpa"
