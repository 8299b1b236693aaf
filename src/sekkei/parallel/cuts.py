"""Which parameter is cut along which dim, by its name, and how many travel together: without torch, for who counts."""

from __future__ import annotations

BUCKET_ELEMENTS = 1 << 23  # 32 MiB of float32: large enough for a link's full speed, small beside a model
CUTS = {  # dim of the weight that is cut
    "q_proj": 0,
    "k_proj": 0,
    "v_proj": 0,
    "gate_proj": 0,
    "up_proj": 0,
    "o_proj": 1,
    "down_proj": 1,
    "embed": 0,
    "lm_head": 0,
}
ADAPTER_SIDES = {"lora_a": 1, "lora_b": 0}


def cut_dim(name: str) -> int | None:
    """The dim along which tensor parallelism cuts the parameter called `name`; None: every rank has all of it.

    Of an adapter's pair (model/lora.py) only the side that meets the cut: B [out, r] where outputs are cut, A [r, in]
    where inputs are.
    """
    if "." not in name:
        return None
    *_, module, last = name.split(".")
    dim = CUTS.get(module)
    if last in ADAPTER_SIDES and dim != ADAPTER_SIDES[last]:
        return None
    return dim


def is_expert(name: str) -> bool:
    """Whether the parameter called `name` is a stack of experts, cut over `ep` along its first dim."""
    return ".experts." in name
