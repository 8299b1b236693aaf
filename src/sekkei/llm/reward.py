"""Our own reward model as something that judges: a run's model with a reward head, one number per answer.

    <|user|>question<|end|><|assistant|>(<think>…</think>)answer<|end|>
                                                               └── r = w · h, read at the last token

    model = open_reward(Path("runs/laptop"))            the folder runs/laptop/reward/model
    model.score([(messages, reply), …]) -> [1.31, …]

It is read where objectives/reward.py trains it: at the stop token, or at the last token of an answer that was cut off.
Only differences between answers to one question mean something (Bradley and Terry: sigmoid of the difference is the
chance that the first is preferred); zero is nowhere in particular. It writes nothing, so it is no `Backend`.

It does not handle endpoints that serve reward models (no protocol for them is common), or rewards per step.

Shapes: `B` answers, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sekkei.core.errors import UserError
from sekkei.llm.protocol import Message, Reply, user

if TYPE_CHECKING:
    from sekkei.model.transformer import Transformer
    from sekkei.text.tokenizer import Tokenizer

ROWS = 32  # answers in one forward pass


class RewardModel:
    """Scores answers.

    Args:
        model: with a reward head. tokenizer: the one that it was trained with. name: as reports show it.
    Raises:
        UserError: the model has no reward head.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, name: str = "reward") -> None:
        if model.reward_head is None:
            raise UserError(f"{name}: this model has no reward head; take the folder of a reward stage")
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def score(self, answers: Sequence[tuple[Sequence[Message], Reply]]) -> list[float]:
        """The reward of every (messages up to the answer, answer), in order.

        Answers are scored in batches of like length; in which company one stands moves its last bits only.

        Raises:
            UserError: an answer with its question is longer than the model's context, or a reward is not finite.
        """
        import torch

        from sekkei.model.attention import DenseAttend

        assert self.model.reward_head is not None
        rows = [self._ids(messages, reply) for messages, reply in answers]
        found = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
        device = self.model.reward_head.weight.device
        for begin in range(0, len(order), ROWS):
            places = order[begin : begin + ROWS]
            width = len(rows[places[-1]])
            ids = torch.zeros(len(places), width, dtype=torch.int64, device=device)  # what fills up is never seen
            for line, i in enumerate(places):
                ids[line, : len(rows[i])] = torch.tensor(rows[i])
            last = torch.tensor([len(rows[i]) - 1 for i in places], device=device)
            with torch.no_grad():
                positions = torch.arange(width, device=device).expand(len(places), -1)
                hidden = self.model.hidden(ids, positions, DenseAttend(None))  # [B, T, D]
                rewards = self.model.reward_head(hidden[torch.arange(len(places)), last]).squeeze(-1).float()
            if not bool(torch.isfinite(rewards).all()):
                raise UserError(f"{self.name}: gives a score that is not finite; its weights are broken")
            for i, value in zip(places, rewards.tolist(), strict=True):
                found[i] = value
        return found

    def score_reply(self, question: str, reply: Reply) -> float:
        """One answer to one question; `prompting.scorers.reward` makes a scorer for best-of-n of it."""
        return self.score([([user(question)], reply)])[0]

    def _ids(self, messages: Sequence[Message], reply: Reply) -> list[int]:
        """Prompt and answer as the sampler leaves them: the template's own text up to the answer's last token."""
        from sekkei.text.chat import encode_chat
        from sekkei.text.tokenizer import THINK_END

        said: dict[str, object] = {"role": "assistant", "content": reply.text}
        if reply.thinking is not None:
            said["reasoning_content"] = reply.thinking
        ids = encode_chat(self.tokenizer, [*messages, said]).ids
        end = len(ids) - 1 - ids[::-1].index(self.tokenizer.end_id)  # a template may put a line end behind it
        ids = ids[: end + 1]
        if reply.finish_reason == "length":
            ids.pop()
            if reply.thinking is not None and not reply.text:  # cut off inside its think block
                ids = ids[: -len(self.tokenizer.encode_trusted(THINK_END))]
        if len(ids) > self.model.config.max_context:
            limit = self.model.config.max_context
            raise UserError(f"{self.name}: an answer with its question has {len(ids)} tokens, its context is {limit}")
        return ids


def is_reward_spec(spec: str) -> bool:
    """Whether a spec (as `open_llm` knows them) names a stage of a run whose model has a reward head: RUN#STAGE."""
    place, _, stage = spec.partition("#")
    folder = Path(place) / stage / "model"
    if not stage or not folder.is_dir():
        return False
    from sekkei.train.checkpoint import open_sealed

    return "reward" in open_sealed(folder)[1].get("heads", ())


def open_reward(run_dir: Path, stage: str = "reward") -> RewardModel:
    """The reward model that a run's stage left, on the CPU in float32.

    Raises:
        UserError: the stage has not finished, its model has no reward head, or a file is missing or damaged.
    """
    from sekkei.llm.run_folder import read_model
    from sekkei.text.tokenizer import Tokenizer

    if not (run_dir / stage / "model").is_dir():
        raise UserError(
            f"{run_dir}#{stage}: no reward model there ({stage}/model is missing); run a reward stage first"
        )
    model = read_model(run_dir / stage / "model")
    return RewardModel(model, Tokenizer.load(run_dir / "tokenizer"), f"{run_dir.name}:{stage}")
