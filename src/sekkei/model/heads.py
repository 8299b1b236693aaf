"""The same trunk under other heads: a reward model or a critic begins as a language model.

    with_heads(policy, ("reward",))        a reward model: the trunk copied, its head at zero
    with_heads(policy, ("value",))         a critic from the policy's weights
    with_heads(reward_model, ("value",))   a critic from the reward model, its head too (Ouyang et al. 2022)
    with_heads(policy, ("lm", "value"))    one trunk for both (Stiennon et al. 2020 found separate ones better)

It does not handle heads of more than one number per token, or parts of a layout: take whole models.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from sekkei.model.transformer import Head, Transformer


@torch.no_grad()
def with_heads(model: Transformer, heads: Collection[Head]) -> Transformer:
    """A copy of a whole model, with these heads.

    A head that the model has is copied, a value head else starts from a reward head, and what is left at zero.

    Raises:
        ValueError: no head is named; a part of a model; an lm head that the model does not have, or whose weights the
            embedding shares, with a model that has no embedding.
    """
    if not heads:
        raise ValueError("name at least one head")
    if model.embed is None or model.norm is None or len(model.layers) != model.config.num_layers:
        raise ValueError("heads are changed on whole models, not on parts of a pipeline")
    if "lm" in heads and model.lm_head is None:
        raise ValueError("this model has no lm head to keep")
    known = dict(model.named_parameters())
    example = model.embed.weight
    with torch.device("meta"):
        made = Transformer(model.config, heads)
    made = made.to(example.dtype).to_empty(device=example.device)
    if model.config.tied_embeddings and made.lm_head is not None and made.embed is not None:
        made.lm_head.weight = made.embed.weight
    for name, parameter in made.named_parameters():
        source = known.get(name)
        if source is None and name == "value_head.weight":
            source = known.get("reward_head.weight")
        if source is None:
            parameter.zero_()
        else:
            parameter.copy_(source)
    return made
