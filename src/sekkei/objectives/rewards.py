"""Reward functions to be weighed against each other: form, length, and tests of code.

    judge = weighted({"right":  (exact, 1.0),                       rollout.py: reward = Σ weight · value
                      "format": (form_reward(read), 0.1),           1 a closed think block, then an answer; else 0
                      "length": (length_reward(64, 128), 0.2),      0 up to 64 tokens, -1 at 128 (DAPO, eq. 13)
                      "tests":  (code_reward(read, tests), 1.0)})   1 all tests pass, in the sandbox; else 0

`read` gives a completion's text from its think block on, without the stop token. A function that raises, or gives no
finite number, is named in the error that stops the run; with `reward_errors: skip` its answer is left out and counted
under `reward_errors/<name>`, for a function that failed is no reward of 0. What only the user can mend (a UserError: no
sandbox, an endpoint out of reach) always stops the run. A program that breaks a limit or fails its tests is wrong,
which is no error.

It does not handle partial credit for some of the tests (a policy learns the easy ones by heart), and a program that
hunts for the mark in its own source can pass; look at samples.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from sekkei.core.errors import ConfigError
from sekkei.engine.request import Completion
from sekkei.objectives.rollout import Reward, overlong_penalty
from sekkei.text.chat import parse_reply
from sekkei.tools.sandbox import run_python
from sekkei.tools.watch import Limits

Read = Callable[[Completion], str]
_FENCED = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)```", re.DOTALL)


def form_reward(read: Read) -> Reward:
    """1 for an answer that ended: one think block with something in it, then something to read; else 0."""

    def reward(completion: Completion) -> float:
        reply = parse_reply(read(completion))
        thought, said = reply.reasoning or "", reply.content
        sound = thought.strip() and said.strip() and "<think>" not in thought + said and "</think>" not in said
        return float(completion.finish_reason == "stop" and bool(sound))

    return reward


def length_reward(free: int, most: int) -> Reward:
    """0 up to `free` tokens, then down linearly to -1 at `most`.

    Raises:
        ConfigError: not 0 <= free < most.
    """
    if not 0 <= free < most:
        raise ConfigError("length", f"got free={free} and most={most}, must be 0 <= free < most")
    return lambda completion: overlong_penalty(len(completion.token_ids), most, most - free) + 0.0


def code_reward(read: Read, tests: str, limits: Limits | None = None) -> Reward:
    """1 if the answer ended and `passes`, else 0."""
    return lambda completion: float(completion.finish_reason == "stop" and passes(read(completion), tests, limits))


def passes(text: str, tests: str, limits: Limits | None = None) -> bool:
    """Whether the last fenced block of what is visible in `text` (or all of it, without one) runs and passes `tests`.

    Args:
        tests: Python statements.
    Raises:
        SandboxError: this machine cannot hold code; the run stops, whatever `reward_errors` says.
    """
    said = parse_reply(text).content
    program = (_FENCED.findall(said) or [said])[-1]
    mark = secrets.token_hex(8)  # drawn anew: a program that leaves early with exit code 0 does not print it
    result = run_python(f"{program}\n{tests}\nprint('\\n{mark}')\n", limits=limits or Limits())
    return result.ok and result.stdout.rstrip().endswith(mark)
