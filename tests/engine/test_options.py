"""What a request may ask for: stop strings, text, log-probabilities, penalties, schemas; beside each other."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.errors import ConfigError, UserError
from sekkei.engine.constrain import ANY_OBJECT, Grammars
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.engine.sampling import draw, penalize
from sekkei.engine.text import GrowingText
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

VOCABULARY = 300


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = ['{"name": "Ada", "age": 36, "likes": ["tea", "sums"]} and so on, hello hello 日本語です'] * 30
    return train_tokenizer(text, TokenizerConfig(vocab_size=VOCABULARY))


@pytest.fixture(scope="module")
def inner(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizer._trusting


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, vocab_size=VOCABULARY + 20,
        max_context=128,
    )  # fmt: skip
    return build(config, seed=2)  # a larger vocabulary than the tokenizer's, as padded checkpoints have


@pytest.fixture
def engine(model: Transformer, inner: tokenizers.Tokenizer) -> Engine:
    return Engine(model, tokenizer=inner, block_size=8)


def one(engine: Engine, prompt: tuple[int, ...], **options: object) -> Completion:
    ((completion,),) = engine.generate([Request(prompt_ids=prompt, sampling=Sampling(**options), seed=5)])  # type: ignore[arg-type]
    return completion


@torch.no_grad()
def scores(model: Transformer, ids: tuple[int, ...]) -> torch.Tensor:
    """[T, V]"""
    return model.logits(model.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], DenseAttend(None)))[0]


def test_stop_strings_cut_the_text_and_end_the_answer(engine: Engine, inner: tokenizers.Tokenizer) -> None:
    whole = one(engine, (9, 10), max_tokens=40, text=True)
    assert whole.text == inner.decode(list(whole.token_ids), skip_special_tokens=False)
    at = len(whole.text) // 2
    stop = whole.text[at : at + 5]
    cut = one(engine, (9, 10), max_tokens=40, stop=("never there", stop))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in inner.decode(list(cut.token_ids), skip_special_tokens=False)


def test_a_stop_token_ends_the_text_too(engine: Engine, inner: tokenizers.Tokenizer) -> None:
    whole = one(engine, (9, 10), max_tokens=30, text=True)
    end = whole.token_ids[12]
    cut = one(engine, (9, 10), max_tokens=30, stop_tokens=(end,), text=True)
    kept = whole.token_ids[: whole.token_ids.index(end)]
    assert (cut.token_ids, cut.finish_reason) == ((*kept, end), "stop")
    assert cut.text == inner.decode(list(kept), skip_special_tokens=False)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("abxy 日本{é"), max_size=30),
    stops=st.lists(st.text(st.sampled_from("abxy 日"), min_size=1, max_size=4), max_size=3),
)
def test_growing_text_is_the_text_before_the_stop_that_is_complete_first(text: str, stops: list[str]) -> None:
    tokenizer = train_tokenizer(["ab xy"], TokenizerConfig(vocab_size=265))
    ids = tokenizer.encode(text)
    growing, shown = GrowingText(tokenizer._trusting, stops), ""
    for token in ids:
        growing.push(token)
        assert growing.settled.startswith(shown), "what was shown has changed"
        shown = growing.settled
        if growing.stopped:
            break
    growing.end(ids)
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert growing.settled.startswith(shown)
    assert growing.settled == (text[: min(ends)[1]] if ends else text)
    assert growing.stopped == bool(ends)


def test_characters_of_several_bytes_are_joined_as_they_grow() -> None:
    tokenizer, text = train_tokenizer(["ab xy"], TokenizerConfig(vocab_size=265)), "né 🙂 猫!"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)  # these characters are split into bytes
    growing, seen = GrowingText(tokenizer._trusting), []
    for token in ids:
        growing.push(token)
        seen.append(growing.settled)
    growing.end(ids)
    assert growing.settled == text
    assert not any("\ufffd" in shown for shown in seen)
    assert len(set(seen)) > 3
    assert "\ufffd" in "".join(tokenizer.decode([token]) for token in ids)  # one by one they are no characters


def test_log_probabilities_of_the_prompt_and_the_best(model: Transformer, engine: Engine) -> None:
    prompt = tuple(range(20, 45))
    completion = one(engine, prompt, temperature=0.7, max_tokens=6, top_logprobs=4, prompt_logprobs=True)
    ids = (*prompt, *completion.token_ids)
    forced = scores(model, ids)
    ahead = forced[: len(prompt) - 1].log_softmax(-1)
    expected = ahead.gather(-1, torch.tensor(prompt[1:])[:, None]).squeeze(-1)
    np.testing.assert_allclose(completion.prompt_logprobs, expected, atol=1e-4)
    own = (forced[len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
    for tops, rows in ((completion.prompt_top_logprobs, ahead), (completion.top_logprobs, own)):
        assert len(tops) == len(rows)
        for top, row in zip(tops, rows):
            best = row.topk(4)
            assert [token for token, _ in top] == best.indices.tolist()
            np.testing.assert_allclose([value for _, value in top], best.values, atol=1e-4)


def test_prompt_log_probabilities_survive_chunks_preemption_and_hits(model: Transformer) -> None:
    sampling = Sampling(max_tokens=30, prompt_logprobs=True, top_logprobs=2, temperature=0.0)
    requests = [Request(prompt_ids=tuple(range(i % 3, 40 + i)), sampling=sampling, n=1 + i % 2) for i in range(8)]
    tight = Engine(model, max_batch=6, block_size=4, blocks=32, prefill_tokens=25)
    roomy = [Engine(model).generate([request])[0][0] for request in requests]
    for group, large in zip(tight.generate(requests), roomy):
        for small in group:
            np.testing.assert_allclose(small.prompt_logprobs, large.prompt_logprobs, atol=1e-4)
            assert len(small.prompt_top_logprobs) == len(small.prompt_logprobs)
            assert small.token_ids == large.token_ids
    assert tight.preemptions > 0


@torch.no_grad()
def test_repetition_penalty_is_kesker_s(model: Transformer, engine: Engine) -> None:
    prompt, penalty = (7, 8, 9, 9), 1.7
    completion = one(engine, prompt, temperature=0.0, max_tokens=12, repetition_penalty=penalty)
    ids = list(prompt)
    for token in completion.token_ids:
        z = scores(model, tuple(ids))[-1]
        for seen in set(ids):
            z[seen] = z[seen] / penalty if z[seen] > 0 else z[seen] * penalty
        assert token == int(z.argmax())
        ids.append(token)
    assert completion.token_ids != one(engine, prompt, temperature=0.0, max_tokens=12).token_ids


def test_min_p_leaves_what_is_near_the_best() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]])).repeat(4000, 1)
    rows = len(logits)
    uniforms = (np.arange(rows) + 0.5) / rows
    ones, zeros = np.ones(rows), np.zeros(rows)
    tokens, logprobs = draw(logits, uniforms, ones, zeros.astype(int), ones, np.full(rows, 0.3))
    shares = torch.bincount(tokens, minlength=5) / rows
    np.testing.assert_allclose(shares, [5 / 9, 2 / 9, 2 / 9, 0, 0], atol=2e-3)
    np.testing.assert_allclose(logprobs, logits.log_softmax(-1)[torch.arange(rows), tokens], atol=1e-6)


def test_a_penalty_changes_only_what_was_seen() -> None:
    values = torch.tensor([2.0, -2.0, 0.0, 5.0])
    penalize(values, torch.tensor([0, 1, 2]), 2.0)
    assert values.tolist() == [1.0, -4.0, 0.0, 5.0]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_model_that_knows_nothing_follows_a_schema(engine: Engine, tokenizer: Tokenizer, temperature: float) -> None:
    grammars = Grammars(tokenizer._trusting.to_str(), engine.model.config.vocab_size, (tokenizer.end_id,))
    sampling = Sampling(temperature=temperature, max_tokens=100, text=True, stop_tokens=(tokenizer.end_id,))
    free = Request(prompt_ids=(5, 6), sampling=sampling, seed=1)
    bound = Request(prompt_ids=(5, 6), sampling=sampling, n=6, seed=1, constraint=grammars.json_schema(SCHEMA))
    alone = engine.generate([free])[0][0].token_ids
    answers = engine.generate([free, bound, free])
    assert answers[0][0].token_ids == answers[2][0].token_ids == alone
    whole = [completion for completion in answers[1] if completion.finish_reason == "stop"]
    assert whole
    for completion in whole:
        jsonschema.validate(json.loads(completion.text), SCHEMA)


def test_an_object_and_a_pattern(engine: Engine, tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer._trusting.to_str(), engine.model.config.vocab_size, (tokenizer.end_id,))
    sampling = Sampling(max_tokens=60, text=True, stop_tokens=(tokenizer.end_id,))
    requests = [
        Request(prompt_ids=(5,), sampling=sampling, n=4, seed=2, constraint=grammars.json_schema(ANY_OBJECT)),
        Request(prompt_ids=(5,), sampling=sampling, n=4, seed=3, constraint=grammars.regex("[0-9]{3}-[ab]+")),
    ]
    objects, codes = engine.generate(requests)
    assert all(completion.text.startswith("{") for completion in objects)
    for completion in codes:
        digits, _, letters = completion.text.partition("-")
        assert len(digits) == 3 and digits.isdigit() and set(letters) <= {"a", "b"}  # noqa: PT018


@pytest.mark.parametrize(
    ("schema", "words"),
    [({"type": "nonsense"}, "nonsense"), ({"type": "string", "pattern": "(?=x)"}, "look-around")],
)
def test_a_schema_that_cannot_be_followed_is_refused(tokenizer: Tokenizer, schema: dict, words: str) -> None:
    grammars = Grammars(tokenizer._trusting.to_str(), VOCABULARY, (tokenizer.end_id,))
    with pytest.raises(UserError, match=words):
        grammars.json_schema(schema)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-320}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty"),
        ({"top_k": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Sampling(**options)


def test_text_needs_a_tokenizer(model: Transformer) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        Engine(model).generate([Request(prompt_ids=(1,), sampling=Sampling(stop=("x",)))])


def test_mixed_options_do_not_touch_each_other(engine: Engine, model: Transformer, inner: tokenizers.Tokenizer) -> None:
    """Every request of a mixed batch draws what it draws alone."""
    rng = random.Random(4)
    choices = [
        {},
        {"temperature": 0.0},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"repetition_penalty": 1.3},
        {"top_logprobs": 3},
        {"stop": ("e",)},
        {"prompt_logprobs": True},
    ]
    requests = [
        Request(
            prompt_ids=tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 30))),
            sampling=Sampling(max_tokens=rng.randint(1, 15), **rng.choice(choices)),  # type: ignore[arg-type]
            n=rng.randint(1, 3),
            seed=i,
        )
        for i in range(24)
    ]
    for request, together in zip(requests, engine.generate(requests)):
        alone = Engine(model, tokenizer=inner).generate([request])[0]
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert [c.text for c in together] == [c.text for c in alone]
