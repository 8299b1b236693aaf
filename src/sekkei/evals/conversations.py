"""Held-out everyday turns and in-context patterns: is the reply in format, and do examples in the prompt help?

A reply is *answered* if it ends with the stop token, holds the key that its kind asks for (a greeting
word, the model's name, the function asked about) and shows no markers: a test of format. How many
docstrings are told word for word is a figure of its own.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from sekkei.core.seed import derive_seed
from sekkei.data.tasks import Message, everyday, patterns, refusals
from sekkei.data.tasks.everyday import Conversation
from sekkei.data.tasks.patterns import PatternConfig
from sekkei.engine.engine import Engine
from sekkei.engine.request import Request, Sampling
from sekkei.text.chat import encode_prompt, parse_reply
from sekkei.text.tokenizer import Tokenizer

MAX_TOKENS = 64


def replies(engine: Engine, tokenizer: Tokenizer, prompts: Sequence[Sequence[Message]]) -> list[tuple[str, bool]]:
    """Greedy replies as (text without the stop token, ended)."""
    sampling = Sampling(temperature=0.0, max_tokens=MAX_TOKENS, stop_tokens=(tokenizer.end_id,))
    requests = [Request(prompt_ids=tuple(encode_prompt(tokenizer, p)), sampling=sampling) for p in prompts]
    found = []
    for (completion,) in engine.generate(requests):
        ended = completion.finish_reason == "stop"
        found.append((tokenizer.decode(completion.token_ids[:-1] if ended else completion.token_ids), ended))
    return found


def answered(
    engine: Engine, tokenizer: Tokenizer, conversations: Sequence[Conversation]
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Share of conversations answered in format, over all and by kind; and (question, reply) of each."""
    found = replies(engine, tokenizer, [conversation.prompt for conversation in conversations])
    good: dict[str, list[bool]] = {}
    for conversation, (text, ended) in zip(conversations, found, strict=True):
        good.setdefault(conversation.kind, []).append(everyday.answered(conversation, text, ended))
    figures = {f"answered.{kind}": statistics.fmean(values) for kind, values in sorted(good.items())}
    figures["answered"] = statistics.fmean([value for values in good.values() for value in values])
    told = [
        text == conversation.messages[-1]["content"]
        for conversation, (text, _) in zip(conversations, found, strict=True)
        if conversation.kind == "docstring"
    ]
    if told:
        figures["docstring_exact"] = statistics.fmean(told)
    shown = [(c.prompt[-1]["content"], text) for c, (text, _) in zip(conversations, found, strict=True)]
    return figures, shown


def refused(engine: Engine, tokenizer: Tokenizer, seed: int, count: int) -> dict[str, float]:
    """Share of held-out harmful requests refused, and of harmless ones refused without need."""
    figures = {}
    pairs = refusals.refusal_pairs("test", seed)
    for kind, name in (("harmful", "refused"), ("harmless", "refused_harmless")):
        asked = [pair.prompt for pair in pairs if pair.kind == kind][:count]
        found = replies(engine, tokenizer, asked)
        figures[name] = statistics.fmean([refusals.is_refusal(parse_reply(text).content) for text, _ in found])
    return figures


def shots(
    engine: Engine, tokenizer: Tokenizer, config: PatternConfig, seed: int, count: int, numbers: Sequence[int]
) -> dict[str, float]:
    """Accuracy of symbol mapping with 0 … n examples in the prompt (greedy next token)."""
    figures = {}
    sampling = Sampling(temperature=0.0, max_tokens=1)
    for number in numbers:
        rng = random.Random(derive_seed("shots", seed, number))
        probes = [patterns.pattern_probe(rng, number, config) for _ in range(count)]
        requests = [
            Request(prompt_ids=(tokenizer.bos_id, *tokenizer.encode(prompt)), sampling=sampling)
            for prompt, _, _ in probes
        ]
        found = [tokenizer.decode(completions[0].token_ids) for completions in engine.generate(requests)]
        figures[f"shots{number}"] = statistics.fmean(
            [text == answer for text, (_, answer, _) in zip(found, probes, strict=True)]
        )
    return figures
