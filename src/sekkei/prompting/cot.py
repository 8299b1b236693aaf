"""Direct answers and chains of thought, zero- and few-shot.

    direct            question                                              -> answer
    zero-shot chain   question + "Let's think step by step."                -> reasoning -> answer  (Kojima et al. 2022)
    few-shot chain    (question, reasoning, answer) × k, then the question  -> reasoning, answer    (Wei et al. 2022)
    think block       the question, to a model that was trained to think    -> <think>…</think> answer

`ChainOfThought(reasoning=…)` is all four: "no", "written" (with or without examples) or "think". Kojima et al. ask a
second time for the answer; here only where the first reply holds no answer that can be read. Answers are read by
`extract` (default: tools/answers.py, "answer: …", \\boxed{…}, "#### …").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sekkei.llm.face import LLM
from sekkei.llm.protocol import Message, Reply, Settings, assistant, system, user
from sekkei.prompting.few_shot import FewShot, as_text, as_turns
from sekkei.prompting.solution import Meter, Solution, flat_tree
from sekkei.tools.answers import extract_answer, normalise

TRIGGER = "Let's think step by step."  # Kojima et al. 2022, table 4: the best of those that they tried
ANSWER_FORM = 'End with one line "answer: " and the answer alone.'
SECOND = "Therefore, the answer is"

Place = Literal["turns", "system", "user"]
Extract = Callable[[Reply], str | None]


def read_answer(reply: Reply) -> str | None:
    """The answer that a finished reply commits to; what was cut off by its length may be half an answer."""
    return None if reply.finish_reason == "length" else extract_answer(reply.text)


@dataclass(frozen=True, kw_only=True)
class ChainOfThought:
    """Ask once.

    Args:
        reasoning: see the header. shots: examples, None = zero-shot. place: where these stand: as turns of their own
            (a chat model's usual form), in the system message, or in the user's turn before the question. A model that
            was tuned on single turns may read the last two better.
        instruction: a system message, "" = none. form: appended to the question, so that the answer can be read;
            "" = none (for a model that was trained on the task's own form).
        empty_blocks: examples of "no" show an empty think block, as a model that was trained on think blocks writes it.
        second_ask: ask for the answer alone where none can be read.
        settings: of the call. extract: reply -> answer. canon: answer -> what equal answers share.
    """

    reasoning: Literal["no", "written", "think"] = "written"
    shots: FewShot | None = None
    place: Place = "turns"
    instruction: str = ""
    form: str = ANSWER_FORM
    empty_blocks: bool = False
    second_ask: bool = True
    settings: Settings = field(default_factory=Settings)
    extract: Extract = read_answer
    canon: Callable[[str], str] = normalise

    @property
    def name(self) -> str:
        how = {"no": "direct", "written": "cot", "think": "think"}[self.reasoning]
        return f"{how}, {self.shots.k} shots" if self.shots is not None else how

    def messages(self, question: str) -> list[Message]:
        """The conversation that asks."""
        asked = [question]
        if self.form:
            asked.append(self.form)
        if self.reasoning == "written" and self.shots is None:
            asked.append(TRIGGER)
        examples = self.shots.choose(question) if self.shots is not None else []
        how = "empty" if self.reasoning == "no" and self.empty_blocks else self.reasoning
        text = as_text(examples, self.reasoning != "no") if self.place != "turns" else ""
        above = [part for part in (self.instruction, text if self.place == "system" else "") if part]
        head = [system("\n\n".join(above))] if above else []
        turns = as_turns(examples, how) if self.place == "turns" else []
        before = f"{text}\n\n" if text and self.place == "user" else ""
        return [*head, *turns, user(before + "\n".join(asked))]

    async def sample(self, meter: Meter, question: str, count: int, seed: int) -> list[tuple[Reply, str | None]]:
        """`count` replies with their answers; `seed` is added to the settings' own."""
        messages = self.messages(question)
        thinking = self.reasoning == "think"
        settings = replace(self.settings, n=count, seed=self.settings.seed + seed, thinking=thinking)
        replies = await meter.sample(messages, settings, self.name)
        return [(reply, await self._answer(meter, messages, reply)) for reply in replies]

    async def solve(self, llm: LLM, question: str) -> Solution:
        meter = Meter(llm)
        ((reply, answer),) = await self.sample(meter, question, 1, 0)
        return Solution(
            answer=answer,
            candidates=(answer,),
            nodes=flat_tree(question, [(whole_text(reply), answer, None, "answer")]),
            cost=meter.cost,
            log=tuple(meter.log),
            reply=reply.text,
        )

    async def _answer(self, meter: Meter, messages: Sequence[Message], reply: Reply) -> str | None:
        found = self.extract(reply)
        if found is not None or not self.second_ask or self.reasoning != "written":
            return found
        settings = replace(self.settings, n=1, temperature=0.0, thinking=False)
        again = [*messages, assistant(reply.text), user(f"{SECOND} (write it alone)")]
        second = await meter.chat(again, settings, "second ask")
        return self.extract(second) or second.text.strip().rstrip(".") or None


def whole_text(reply: Reply) -> str:
    """Thinking and text, for showing."""
    return f"({reply.thinking.strip()}) {reply.text.strip()}" if reply.thinking else reply.text.strip()
