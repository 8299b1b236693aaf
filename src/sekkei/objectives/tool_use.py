"""A tool inside a rollout: the model calls it in its turn, reads the result, and goes on in the next.

    the policy's turn   <tool> calculator : 347 * 28 </tool><|end|>                        sampled, learned
    the tool's          <|tool|><result> 9716 </result><|end|><|assistant|>                read, not learned
    the policy's turn   answer: 9716<|end|>                                                sampled, learned

Generation stops where a turn ends; if the turn holds calls, the results are appended as the chat template writes them
and the policy goes on, until a turn without a call, or until `max_calls` or the tokens are spent (then the answer
counts as cut off). What the policy wrote stays token for token as it was sampled: nothing is decoded and encoded
again. The tool's tokens weigh 0 and carry no log-probability: they are no choice of the policy (Search-R1, Jin et al.
2025, section 3.1; ReTool, Feng et al. 2025, section 3.2).

Calls are written as the agent's "trained" protocol writes them (data/tasks/calculator.py), after the think block. It
does not handle tools that change anything, or other engines' own tool calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sekkei.core.errors import ConfigError
from sekkei.core.seed import derive_seed
from sekkei.data.tasks import calculator
from sekkei.engine.request import Completion, Request
from sekkei.text.chat import encode_prompt, parse_reply, render
from sekkei.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Played(Completion):
    """An answer in which a tool has written, too: `logprobs` is 0 there.

    own: per token, whether the policy wrote it. calls: of the tool; failed: those of them that were told an error.
    """

    own: tuple[bool, ...]
    calls: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Told:
    """What a turn's calls came to: the tokens that follow the turn, and how many calls there were and failed."""

    ids: tuple[int, ...]
    calls: int
    failed: int


class Tool(Protocol):
    """Reads a turn, as the policy wrote it with its stop token; None: it holds no call, so it is the answer."""

    max_calls: int

    def __call__(self, turn: Sequence[int]) -> Told | None: ...


class CalculatorTool:
    """The calculator, for a policy that answers in the turns of the chat template.

    Args:
        max_calls: of one answer.
    """

    def __init__(self, tokenizer: Tokenizer, max_calls: int) -> None:
        if max_calls < 1:
            raise ConfigError("max_calls", f"got {max_calls}, must be >= 1")
        self.tokenizer, self.max_calls = tokenizer, max_calls

    def __call__(self, turn: Sequence[int]) -> Told | None:
        said = parse_reply(self.tokenizer.decode(turn)).content
        results = calculator.respond(said)
        if not results:
            return None
        failed = sum(result.startswith(calculator.ERROR) for result in results)
        return Told(self._message(calculator.results_text(results)), len(results), failed)

    def _message(self, content: str) -> tuple[int, ...]:
        """Tokens from the end of the assistant's turn to where it writes again."""
        before = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        told = [*before, {"role": "tool", "content": content}]
        head = "".join(piece for piece, _ in render(self.tokenizer.template, before))
        whole = "".join(piece for piece, _ in render(self.tokenizer.template, told, add_generation_prompt=True))
        if not whole.startswith(head):
            raise ConfigError("tool", "the chat template writes a tool's message into the turns before it")
        return tuple(self.tokenizer.encode_trusted(whole[len(head) :]))


def play(
    generate: Callable[[list[Request]], list[list[Completion]]], requests: list[Request], tool: Tool
) -> list[list[Completion]]:
    """Answer requests with a tool at hand; `max_tokens` of a request is of the whole, results among it."""
    open_ones: list[tuple[int, int, Request, Completion]] = []
    done = [[_begun(completion) for completion in group] for group in generate(requests)]
    for i, group in enumerate(done):
        open_ones += [(i, j, requests[i], completion) for j, completion in enumerate(group)]
    while open_ones:
        asked: list[tuple[int, int, Request, Played]] = []
        for i, j, request, turn in open_ones:
            answer = done[i][j]
            told = tool(turn.token_ids) if turn.finish_reason == "stop" else None
            if told is None:
                continue
            left = request.sampling.max_tokens - len(answer.token_ids) - len(told.ids)
            if answer.calls + told.calls > tool.max_calls or left < 1:
                done[i][j] = replace(answer, finish_reason="length")
                continue
            answer = _with_result(answer, told)
            sampling = replace(request.sampling, max_tokens=left)
            seed = derive_seed("after a tool", answer.seed, len(answer.token_ids))
            ids = request.prompt_ids + answer.token_ids
            asked.append((i, j, Request(prompt_ids=ids, sampling=sampling, seed=seed), answer))
        turns = [group[0] for group in generate([request for _, _, request, _ in asked])] if asked else []
        open_ones = []
        for (i, j, _, answer), turn in zip(asked, turns, strict=True):
            done[i][j] = _continued(answer, turn)
            open_ones.append((i, j, requests[i], turn))
    return [list(group) for group in done]


def _begun(turn: Completion) -> Played:
    fields = {name: getattr(turn, name) for name in Completion.__dataclass_fields__}
    return Played(**fields, own=(True,) * len(turn.token_ids))


def _with_result(answer: Played, told: Told) -> Played:
    return replace(
        answer,
        token_ids=answer.token_ids + told.ids,
        logprobs=answer.logprobs + (0.0,) * len(told.ids),
        own=answer.own + (False,) * len(told.ids),
        calls=answer.calls + told.calls,
        failed=answer.failed + told.failed,
    )


def _continued(answer: Played, turn: Completion) -> Played:
    """With the next turn. The rollout checks the hash of every answer, so another one must not be lost here."""
    same = answer.weights_hash == turn.weights_hash
    return replace(
        answer,
        token_ids=answer.token_ids + turn.token_ids,
        logprobs=answer.logprobs + turn.logprobs,
        own=answer.own + (True,) * len(turn.token_ids),
        finish_reason=turn.finish_reason,
        weights_hash=answer.weights_hash if same else f"{answer.weights_hash} {turn.weights_hash}",
    )


def own_tokens(completion: Completion) -> tuple[bool, ...]:
    """Per token, whether the policy wrote it; all of them where no tool was at hand."""
    return completion.own if isinstance(completion, Played) else (True,) * len(completion.token_ids)


def last_turn(completion: Completion) -> tuple[int, ...]:
    """The tokens that the policy wrote last, after every result: its answer."""
    own = own_tokens(completion)
    start = len(own) - own[::-1].index(False) if False in own else 0
    return completion.token_ids[start:]


def calculator_judge(tokenizer: Tokenizer, task: calculator.CalculatorTask) -> Callable[[Completion], dict[str, float]]:
    """1 for an answer that ended and is right, as the calculator has it; whether it was used is not asked."""

    def judge(completion: Completion) -> dict[str, float]:
        ended = completion.finish_reason == "stop"
        turn = last_turn(completion)
        said = parse_reply(tokenizer.decode(turn[:-1] if ended else turn)).content
        return {"reward": float(ended and calculator.verify(task, said))}

    return judge


def calculator_question(tokenizer: Tokenizer, task: calculator.CalculatorTask) -> tuple[int, ...]:
    """The prompt's tokens."""
    return tuple(encode_prompt(tokenizer, calculator.prompt(task)))
