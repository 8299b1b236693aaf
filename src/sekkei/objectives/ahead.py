"""Rollouts one step ahead: step t's answers are drawn by the weights before step t - 1, while step t - 1 trains.

    main thread      take W0 │ train on rollout 0, W0 → W1 │ take W1 │ train on rollout 1, W1 → W2 │ take W2 │ …
    engine's thread           └ draws rollout 1 with W0 ────┘         └ draws rollout 2 with W1 ────┘

The engine owns a copy of the weights, which is brought up to date between two rollouts only. So an answer is stale by
exactly one step, never by more or less, however long either side takes: the same recipe gives the same bits. What the
answers' own weights were stands in their hash, and the loss corrects for the difference (policy_loss.py; Noukhovitch et
al. 2024, "Asynchronous RLHF", section 3). A rollout that is under way is waited for and kept in the checkpoint, since
the weights that drew it are gone after a resume.

Under a layout each rank draws its share in its own thread; the copy is gathered, and the answers are exchanged, by the
main thread, so no two threads use the process group. It costs one more copy of the weights, and does not handle
staleness beyond one step, or weights that change while an answer is being drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import torch

from sekkei.core import dist
from sekkei.engine.engine import Engine
from sekkei.engine.request import Completion, Request
from sekkei.model.transformer import Transformer
from sekkei.objectives.tool_use import Played
from sekkei.parallel.apply import Sharded
from sekkei.parallel.pipeline import Pipelined
from sekkei.train.gathered import gathered, refresh

Play = Callable[[Callable[[list[Request]], list[list[Completion]]], list[Request]], list[list[Completion]]]
"""Answers requests with a generator; `plainly` asks it once, `tool_use.play` as often as tools are called."""


def plainly(
    generate: Callable[[list[Request]], list[list[Completion]]], requests: list[Request]
) -> list[list[Completion]]:
    """Every request is answered once."""
    return generate(requests)


@runtime_checkable
class Ahead(Protocol):
    """What `ctx.generate` has to offer for `off_by: 1`."""

    def __call__(self, requests: list[Request]) -> list[list[Completion]]:
        """Answers by the weights of now."""
        ...

    def take(self) -> str:
        """Copy the weights of now; returns their hash."""
        ...

    def begin(self, requests: list[Request], play: Play = plainly) -> Callable[[], list[list[Completion]]]:
        """Answer in the background with the weights taken last; the result is called for all answers, and waits."""
        ...


class OwnCopy:
    """An engine with its own copy of a policy's weights.

    Args:
        policy: the model that is trained, or what a layout made of it. device: to generate on.
        autocast: compute dtype of forward passes; None: the weights' own.
    """

    def __init__(
        self, policy: Transformer | Sharded | Pipelined, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        self.policy, self.device, self.autocast = policy, device, autocast
        self._engine: Engine | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="rollout")

    def __call__(self, requests: list[Request]) -> list[list[Completion]]:
        self.take()
        return self.begin(requests)()

    def take(self) -> str:
        """All ranks take part. RuntimeError: answers are still being drawn."""
        if self._engine is None:
            self._engine = Engine(self._copied(), dtype=self.autocast)
        elif isinstance(self.policy, Transformer):
            self._engine.refresh({name: p.detach() for name, p in self.policy.named_parameters()})
        else:
            self._engine.refresh(None)  # refuses while answers are being drawn
            refresh(self._engine.model, self.policy)
        return self._engine.weights_hash

    def begin(self, requests: list[Request], play: Play = plainly) -> Callable[[], list[list[Completion]]]:
        assert self._engine is not None, "take the weights first"
        rank, world = dist.rank(), dist.world_size()
        own = self._threads.submit(play, self._engine.generate, list(requests[rank::world]))
        return lambda: _exchanged(own, len(requests))

    def _copied(self) -> Transformer:
        if isinstance(self.policy, Transformer):
            return copy.deepcopy(self.policy).requires_grad_(False)
        return gathered(self.policy, self.device)


class Pending:
    """A rollout under way, or waited for.

    Args:
        step: that it is for. first_prompt: index of its first prompt. answers: gives all answers, and waits for them.
    """

    def __init__(self, step: int, first_prompt: int, answers: Callable[[], list[list[Completion]]]) -> None:
        self.step, self.first_prompt = step, first_prompt
        self._wait = answers
        self._answers: list[list[Completion]] | None = None

    def answers(self) -> list[list[Completion]]:
        if self._answers is None:
            self._answers = self._wait()
        return self._answers

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {"step": self.step, "first_prompt": self.first_prompt, "answers": to_json(self.answers())}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Pending:
        """What `state_dict` has kept."""
        answers = from_json(state["answers"])
        return cls(state["step"], state["first_prompt"], lambda: answers)


def _exchanged(own: Future[list[list[Completion]]], count: int) -> list[list[Completion]]:
    """Every rank's answers, in the order of the requests."""
    world = dist.world_size()
    if world == 1:
        return own.result()
    parts = dist.gather_json(to_json(own.result()))
    return from_json([parts[i % world][i // world] for i in range(count)])


def to_json(answered: Sequence[Sequence[Completion]]) -> list[list[dict[str, Any]]]:
    """Answers as JSON values; `from_json` gives them back to the bit."""
    return [[asdict(completion) for completion in group] for group in answered]


def from_json(answered: Sequence[Sequence[dict[str, Any]]]) -> list[list[Completion]]:
    """What `to_json` made JSON of."""
    made: list[list[Completion]] = []
    for group in answered:
        plain = [{key: _tuples(value) for key, value in record.items()} for record in group]
        made.append([Played(**record) if "own" in record else Completion(**record) for record in plain])
    return made


def _tuples(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
