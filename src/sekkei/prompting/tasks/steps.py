"""Any question as a task for Tree of Thoughts: a thought is the next step of a solution, written in words.

    question
    ├─ There are 3 boxes of 12, so 36 pencils.
    │  └─ Of these 7 were sold: 36 - 7 = 29.
    │     └─ answer: 29
    └─ There are 3 + 12 = 15 pencils.             judged less likely to lead to the right answer

Steps are sampled one line at a time (sample), and judged alone (value: sure, likely, impossible) or beside one another
(vote), as for the creative writing and the Game of 24 of Yao et al. 2023. A state is final when its last line holds
"answer:". It knows nothing of the subject: a wrong step falls out only if the model itself judges it so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sekkei.llm.protocol import Message, Reply, user
from sekkei.prompting.tasks.game24 import IMPOSSIBLE, LIKELY, SURE
from sekkei.tools.answers import extract_answer


@dataclass(frozen=True)
class State:
    """A question and the lines written so far."""

    question: str
    lines: tuple[str, ...] = ()


class Steps:
    """The task."""

    stop: tuple[str, ...] = ("\n",)

    def start(self, question: str) -> State:
        return State(question)

    def show(self, state: State) -> str:
        return state.lines[-1] if state.lines else state.question

    def final(self, state: State) -> bool:
        return bool(state.lines) and re.search(r"\banswer\s*(:|is\b)", state.lines[-1], re.IGNORECASE) is not None

    def answer(self, state: State) -> str | None:
        return extract_answer(state.lines[-1]) if self.final(state) else None

    def sample_messages(self, state: State) -> list[Message]:
        return [user(NEXT.format(question=state.question, lines=_listed(state.lines)))]

    def read_thought(self, state: State, reply: Reply) -> State | None:
        line = " ".join(reply.text.split())
        line = re.sub(r"^(?:[-*]|(?:step\s*)?\d+[.:)])\s+", "", line, flags=re.IGNORECASE)
        return State(state.question, (*state.lines, line)) if line and reply.finish_reason != "length" else None

    def value_messages(self, state: State) -> list[Message]:
        return [user(JUDGE.format(question=state.question, lines=_listed(state.lines)))]

    def read_value(self, text: str) -> float:
        """The last verdict word of a judgement; 0 where there is none."""
        found = re.findall(r"\b(sure|likely|impossible)\b", text.lower())
        return {"sure": SURE, "likely": LIKELY, "impossible": IMPOSSIBLE}[found[-1]] if found else 0.0

    def vote_messages(self, states: Sequence[State]) -> list[Message]:
        parts = [f"choice {i + 1}:\n{_listed(state.lines)}" for i, state in enumerate(states)]
        return [user(VOTE.format(question=states[0].question, choices="\n\n".join(parts)))]

    def read_vote(self, text: str, count: int) -> int | None:
        found = re.findall(r"choice is\D*(\d+)", text.lower())
        choice = int(found[-1]) - 1 if found else -1
        return choice if 0 <= choice < count else None


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"{i + 1}. {line}" for i, line in enumerate(lines)) or "(nothing yet)"


NEXT = """Solve the question one step at a time. Write only the next step, one line of words or one calculation. If the
steps so far settle it, write instead one line "answer: " and the answer alone.

Question: {question}

Steps so far:
{lines}

The next line:"""

JUDGE = """Judge a solution that is not finished yet, or only just. Check each step, then end with one word:
sure (all steps hold, and they lead to the answer), likely (no fault found), or impossible (a step is wrong).

Question: {question}

Steps so far:
{lines}
"""

VOTE = """Several solutions of one question, not all finished. Check their steps, say which is the most promising, and
end with "The best choice is N", where N is its number.

Question: {question}

{choices}
"""
