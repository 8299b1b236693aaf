"""Our own model as a backend, against the engine and the model themselves: a tiny one with random weights."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request, Sampling
from sekkei.llm import LLM, LLMError, Message, Settings, Usage, assistant, system, user
from sekkei.llm.engine import EngineBackend
from sekkei.llm.protocol import Call
from sekkei.llm.words import Words, read
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig
from sekkei.model.init import build
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import SPECIAL, THINK, THINK_END, Tokenizer, TokenizerConfig, train_tokenizer

TALK: list[Message] = [system("be brief"), user("add one and two, then say so")]
TEXT = "add one and two, then say so. the sum of one and two is three; say it at once. " * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    least = 256 + len(SPECIAL)
    return train_tokenizer([TEXT], TokenizerConfig(vocab_size=least + 24))


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    config = ModelConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        vocab_size=tokenizer.vocab_size,
        max_context=160,
        qk_norm=True,
    )
    return Engine(build(config, seed=3), max_batch=8)


@pytest.fixture
def llm(engine: Engine, tokenizer: Tokenizer) -> LLM:
    return LLM(EngineBackend(engine, tokenizer, name="tiny"))


def naive(engine: Engine, prompt: list[int], ids: list[int]) -> tuple[float, bool]:
    """Log-likelihood of `ids` behind `prompt` with one plain forward pass, token by token."""
    total, greedy, line = 0.0, True, list(prompt)
    for token in ids:
        row = torch.tensor([line])
        with torch.no_grad():
            hidden = engine.model.hidden(row, torch.arange(len(line))[None], DenseAttend(None))
            scores = engine.model.logits(hidden)[0, -1].double().log_softmax(-1)
        total += float(scores[token])
        greedy = greedy and int(scores.argmax()) == token
        line.append(token)
    return total, greedy


def test_replies_are_the_engines(llm: LLM, engine: Engine, tokenizer: Tokenizer) -> None:
    settings = Settings(temperature=1.0, top_p=0.9, max_tokens=20, seed=7, n=3, logprobs=True)
    replies = llm.sample(TALK, settings)
    prompt = encode_prompt(tokenizer, TALK)
    sampling = Sampling(temperature=1.0, top_p=0.9, max_tokens=20, stop_tokens=(tokenizer.end_id,))
    (completions,) = engine.generate([Request(prompt_ids=tuple(prompt), sampling=sampling, n=3, seed=7)])
    for i, (reply, completion) in enumerate(zip(replies, completions)):
        text, thinking, _ = read(tokenizer, completion.token_ids, (), False)
        assert (reply.text, reply.thinking) == (text, thinking)
        assert reply.finish_reason == completion.finish_reason
        assert reply.usage == Usage(0 if i else len(prompt), len(completion.token_ids))
        assert reply.logprobs is not None
        assert [value for _, value in reply.logprobs] == list(completion.logprobs)
    assert len({reply.text for reply in replies}) == 3
    assert llm.name == f"tiny@{engine.weights_hash}"


def test_thinking_switched_off_is_another_prompt(llm: LLM, tokenizer: Tokenizer) -> None:
    on, off = (llm.chat(TALK, Settings(max_tokens=4, thinking=flag)).usage.prompt_tokens for flag in (True, False))
    assert off == on + 2


def test_a_stream_adds_up_to_the_reply(llm: LLM) -> None:
    for seed in range(5):
        settings = Settings(temperature=1.0, max_tokens=40, seed=seed, stop=("e", "ab"))
        pieces = list(llm.stream(TALK, settings))
        reply = llm.chat(TALK, settings)
        assert "".join(piece.text for piece in pieces) == reply.text
        streamed = pieces[-1].reply
        assert streamed is not None
        assert (streamed.text, streamed.finish_reason) == (reply.text, reply.finish_reason)
        assert streamed.usage.completion_tokens <= reply.usage.completion_tokens


def test_stop_texts_end_a_reply_and_are_not_part_of_it(llm: LLM) -> None:
    free = llm.chat(TALK, Settings(temperature=1.0, max_tokens=60, seed=1)).text
    for stop in {free[10], free[12:15], free[20:26]}:
        reply = llm.chat(TALK, Settings(temperature=1.0, max_tokens=60, seed=1, stop=(stop,)))
        assert reply.text == free[: free.index(stop)]
        assert reply.finish_reason == "stop"


def test_a_single_token_stop_saves_the_tokens_behind_it(llm: LLM, tokenizer: Tokenizer) -> None:
    settings = Settings(temperature=1.0, max_tokens=100, seed=1, logprobs=True)
    tokens = llm.chat(TALK, settings).logprobs
    assert tokens is not None
    place, piece = next((i, text) for i, (text, _) in enumerate(tokens) if tokenizer.id_of(text) and len(text) == 1)
    reply = llm.chat(TALK, Settings(temperature=1.0, max_tokens=100, seed=1, stop=(piece,)))
    assert reply.usage.completion_tokens <= place + 1 < len(tokens)


def test_log_likelihood_against_a_naive_forward_pass(llm: LLM, engine: Engine, tokenizer: Tokenizer) -> None:
    texts = [" three", "the sum of one and two", "x", " say it at once"]
    prompt = encode_prompt(tokenizer, TALK)
    for score, text in zip(llm.loglikelihood(TALK, texts), texts):
        ids = tokenizer.encode(text)
        total, greedy = naive(engine, prompt, ids)
        assert score.logprob == pytest.approx(total, abs=1e-4)
        assert (score.tokens, score.greedy) == (len(ids), greedy)
    best = llm.chat(TALK, Settings(max_tokens=1))
    assert llm.loglikelihood(TALK, [best.text])[0].greedy


def test_an_assistants_last_message_is_continued(llm: LLM, engine: Engine, tokenizer: Tokenizer) -> None:
    prompt = encode_prompt(tokenizer, TALK)
    visible = prompt + tokenizer.encode("three")
    thinking = [*prompt, *tokenizer.encode_trusted(THINK), *tokenizer.encode(" one and two")]
    closed = [*thinking, *tokenizer.encode_trusted(THINK_END), *tokenizer.encode("three")]
    cases = [
        ({"role": "assistant", "content": "three"}, visible),
        ({"role": "assistant", "content": "", "reasoning_content": " one and two"}, thinking),
        ({"role": "assistant", "content": "three", "reasoning_content": " one and two"}, closed),
    ]
    sampling = Sampling(temperature=0.0, max_tokens=6, stop_tokens=(tokenizer.end_id,))
    for message, ids in cases:
        reply = llm.chat([*TALK, message], Settings(max_tokens=6))
        ((completion,),) = engine.generate([Request(prompt_ids=tuple(ids), sampling=sampling)])
        inside = message["content"] == ""
        text, thought, _ = read(tokenizer, completion.token_ids, (), inside)
        assert reply.usage.prompt_tokens == len(ids)
        assert (reply.text, reply.thinking) == (text, thought)
        assert (reply.thinking is None) == (not inside)


def test_a_base_model_continues_plain_text(engine: Engine, tokenizer: Tokenizer) -> None:
    llm = LLM(EngineBackend(engine, tokenizer, base=True))
    reply = llm.chat([user("one and"), user("two")], Settings(max_tokens=5))
    assert reply.usage.prompt_tokens == 1 + len(tokenizer.encode("one and\ntwo"))


def test_calls_made_at_once_share_batches_and_get_their_own_replies(
    engine: Engine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = EngineBackend(engine, tokenizer)
    batches: list[int] = []
    generate = engine.generate

    def counted(requests: list[Request]) -> object:
        batches.append(len(requests))
        return generate(requests)

    monkeypatch.setattr(engine, "generate", counted)
    llm = LLM(backend)
    talks = [[user(f"say {'so ' * i}")] for i in range(12)]
    together = llm.chat_many(talks, Settings(max_tokens=8))
    assert sum(batches) == 12
    assert len(batches) <= 2, batches
    monkeypatch.undo()
    assert [reply.text for reply in together] == [llm.chat(talk, Settings(max_tokens=8)).text for talk in talks]


def test_a_call_that_was_given_up_does_not_harm_the_others(llm: LLM) -> None:
    async def both() -> str:
        first = asyncio.create_task(llm.achat(TALK, Settings(max_tokens=100)))
        second = asyncio.create_task(llm.achat([user("x")], Settings(max_tokens=5)))
        await asyncio.sleep(0)
        first.cancel()
        return (await second).text

    assert asyncio.run(both()) == llm.chat([user("x")], Settings(max_tokens=5)).text


def test_what_it_cannot_do_is_refused_and_harms_nobody(llm: LLM) -> None:
    with pytest.raises(LLMError, match="tool schemas"):
        llm.chat(TALK, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(LLMError, match="response_format"):
        llm.chat(TALK, Settings(response_format={"type": "json_object"}))
    with pytest.raises(LLMError, match="max_context=160"):
        llm.chat_many([TALK, [user("so " * 300)]], Settings(max_tokens=3))
    with pytest.raises(LLMError, match="max_context=160"):
        llm.loglikelihood(TALK, ["so " * 300])
    with pytest.raises(LLMError, match="is empty"):
        llm.loglikelihood(TALK, [""])
    assert llm.chat(TALK, Settings(max_tokens=3)).usage.completion_tokens == 3


def test_words_hold_back_half_characters_and_half_stops(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_trusted("<think>né</think>日本 say STOP it<|end|>")
    words = Words(tokenizer, ("STOP",), False)
    pieces = [piece for token in ids for piece in words.add(token, 0.0)]
    pieces += words.close()
    assert all("\ufffd" not in piece.text + piece.thinking for piece in pieces)
    assert "".join(piece.thinking for piece in pieces) == "né"
    assert "".join(piece.text for piece in pieces) == "日本 say "
    assert words.stopped
    assert read(tokenizer, ids, ("STOP",), False) == ("日本 say ", "né", True)


def test_nothing_is_lost_when_a_reply_ends_inside_a_possible_stop(tokenizer: Tokenizer) -> None:
    words = Words(tokenizer, ("so that",), False)
    pieces = [piece for token in tokenizer.encode("say so th") for piece in words.add(token, 0.0)]
    assert "".join(piece.text for piece in pieces) == "say "
    pieces += words.close()
    assert "".join(piece.text for piece in pieces) == "say so th"


def test_assistant_is_a_message() -> None:
    assert assistant("x") == {"role": "assistant", "content": "x"}


def test_the_same_program_forms_the_same_batches(
    engine: Engine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of unequal length that ask, score and ask again: who stands together is no matter of the clock."""

    def batches(seed: int) -> tuple[list[list[tuple[int, ...]]], list[str]]:
        draw, seen = random.Random(seed), list[list[tuple[int, ...]]]()

        class Slow(EngineBackend):
            def _score(self, prompt: list[int], rows: list[list[int]]) -> list[tuple[float, bool]]:
                time.sleep(draw.random() / 100)
                return super()._score(prompt, rows)

        def generate(requests: Sequence[Request]) -> list[list[Completion]]:
            seen.append([request.prompt_ids for request in requests])
            time.sleep(draw.random() / 50)
            return Engine.generate(engine, requests)

        monkeypatch.setattr(engine, "generate", generate)
        llm = LLM(Slow(engine, tokenizer))

        async def one(number: int) -> str:
            said = ""
            for turn in range(1 + number % 3):
                asked = [user(f"add {number} and {turn}" + said)]
                if (number + turn) % 2:
                    await llm.aloglikelihood(asked, [" one", " two"])
                reply = await llm.achat(asked, Settings(temperature=1.0, max_tokens=6, seed=number))
                said += reply.text
            return said

        async def everybody() -> list[str]:
            return list(await asyncio.gather(*(one(number) for number in range(9))))

        return seen, asyncio.run(everybody())

    first, again = batches(1), batches(2)
    assert first == again
    assert max(map(len, first[0])) > 3


def test_closing_lets_nobody_wait_for_ever(engine: Engine, tokenizer: Tokenizer) -> None:
    backend = EngineBackend(engine, tokenizer)
    call = Call(messages=(user("add"),), settings=Settings(max_tokens=4))

    async def closed_under_way() -> list[Any]:
        waiting = [asyncio.ensure_future(backend.answer(call)) for _ in range(3)]
        await asyncio.sleep(0)
        await backend.close()
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)

    assert all(isinstance(found, BaseException) for found in asyncio.run(closed_under_way()))
