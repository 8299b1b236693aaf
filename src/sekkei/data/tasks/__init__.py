"""Generated tasks: text that a small model can learn from and whose answers can be checked by a program.

    chain      modular chain arithmetic: reasoning with a verifiable answer (SFT, DPO, GRPO, evals)
    patterns   symbol mappings that only the context explains: in-context learning
    maths      short worked problems of the school kind: pretraining text
    everyday   greetings, small talk, questions about documented functions: instruction tuning
    refusals   harmful requests with a refusal, harmless ones with an answer: preference pairs

Conversations are lists of messages as Hugging Face writes them: `role`, `content`, and for an assistant that
thinks `reasoning_content` ("" = an empty think block, key absent = no think block). Everything is a pure function
of the `random.Random` or the seed that the caller hands in. Which side of a train/test split something falls on
is a hash of the thing itself, so the two sides cannot meet, whatever the seeds.
This folder does not place special tokens: that is the chat template's work.
"""

from __future__ import annotations

from typing import Literal

from sekkei.core.seed import derive_seed

Message = dict[str, str]
Split = Literal["train", "test"]


def held_out(kind: str, text: str, percent: int) -> bool:
    """Whether `text` belongs to the test side: true for about `percent` of all texts, and always the same."""
    return derive_seed("held out", kind, text) % 100 < percent
