"""A reward model behind a run folder, against the scoring that training uses (objectives/reward.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sekkei.core import config as loader
from sekkei.core.errors import UserError
from sekkei.llm import Message, Reply, user
from sekkei.llm.reward import RewardModel, is_reward_spec, open_reward
from sekkei.model.config import ModelConfig
from sekkei.model.heads import with_heads
from sekkei.model.init import build
from sekkei.model.transformer import Transformer
from sekkei.objectives.reward import score_answers
from sekkei.parallel.ops import LocalOps
from sekkei.text.chat import encode_prompt
from sekkei.text.tokenizer import SPECIAL, THINK, THINK_END, Tokenizer, TokenizerConfig, train_tokenizer
from sekkei.train.checkpoint import write_sealed
from sekkei.train.objective import Context
from sekkei.train.step import PlainStep

TEXT = "add one and two, then say so. the sum of one and two is three; say it at once. " * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], TokenizerConfig(vocab_size=256 + len(SPECIAL) + 24))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 64}
    model = with_heads(build(ModelConfig(**sizes, vocab_size=tokenizer.vocab_size, max_context=160), 3), ("reward",))
    assert model.reward_head is not None
    with torch.no_grad():
        model.reward_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval()


def answers() -> list[tuple[list[Message], Reply]]:
    asked: list[Message] = [user("add one and two, then say so")]
    return [
        (asked, Reply(text="three")),
        (asked, Reply(text=" answer: three", thinking=" one and two is three")),
        (asked, Reply(text=" three", thinking="")),
        (asked, Reply(text="the sum of one", finish_reason="length")),
        (asked, Reply(text="", thinking=" one and one and", finish_reason="length")),
        (
            [*asked, {"role": "assistant", "content": "three"}, user("say it at once")],
            Reply(text="three; three; three"),
        ),
    ] * 9  # more rows than one batch holds


def test_equals_the_scoring_of_training(model: Transformer, tokenizer: Tokenizer) -> None:
    sequences = []
    for messages, reply in answers():
        thought = "" if reply.thinking is None else THINK + reply.thinking + (THINK_END if reply.text else "")
        end = [] if reply.finish_reason == "length" else [tokenizer.end_id]
        sequences.append([*encode_prompt(tokenizer, messages), *tokenizer.encode_trusted(thought + reply.text), *end])
    step = PlainStep({"reward": model}, LocalOps(), torch.device("cpu"), None)
    ctx = Context({"reward": model}, LocalOps(), torch.device("cpu"), 0, step.score)
    expected = score_answers(ctx, sequences, 2048)
    found = RewardModel(model, tokenizer).score(answers())
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in found}) == 6, "each of the six answers has a score of its own"
    assert RewardModel(model, tokenizer).score_reply("add one and two, then say so", answers()[1][1]) == pytest.approx(
        found[1], abs=1e-5
    )


def test_a_run_folder_is_opened(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = tmp_path / "first"
    tokenizer.save(run / "tokenizer")
    weights = dict(model.named_parameters())
    write_sealed(run / "reward" / "model", weights, {"config": loader.to_mapping(model.config), "heads": ["reward"]})
    opened = open_reward(run)
    assert opened.name == "first:reward"
    assert opened.score(answers()[:6]) == pytest.approx(RewardModel(model, tokenizer).score(answers()[:6]), abs=1e-6)
    with pytest.raises(UserError, match=r"first#judged: no reward model there \(judged/model is missing\)"):
        open_reward(run, "judged")
    plain = build(model.config, 3)
    write_sealed(
        run / "sft" / "model",
        dict(plain.named_parameters()),
        {"config": loader.to_mapping(plain.config), "heads": ["lm"]},
    )
    assert [is_reward_spec(f"{run}#{stage}") for stage in ("reward", "sft", "dpo", "")] == [True, False, False, False]
    assert not is_reward_spec("https://host/v1#reward")
    with pytest.raises(UserError, match="first:sft: this model has no reward head"):
        open_reward(run, "sft")


def test_long_answers_and_broken_weights_are_told(model: Transformer, tokenizer: Tokenizer) -> None:
    judge = RewardModel(model, tokenizer, "judge")
    with pytest.raises(UserError, match=r"judge: an answer with its question has \d+ tokens, its context is 160"):
        judge.score_reply("add", Reply(text="one and " * 200))
    broken = with_heads(model, ("reward",))
    assert broken.reward_head is not None
    with torch.no_grad():
        broken.reward_head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        RewardModel(broken, tokenizer).score_reply("add", Reply(text="one"))
