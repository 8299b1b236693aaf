"""Tree of Thoughts on made-up trees whose best paths are known, and the prompts of a model around it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.errors import ConfigError, UserError
from sekkei.llm import LLM, Call, LLMError, Reply, Settings
from sekkei.llm.scripted import Scripted
from sekkei.prompting.solution import Meter, Solution, solve_with
from sekkei.prompting.tasks.chain import ChainTask, check, parse_question, read_answer
from sekkei.prompting.tasks.game24 import Game24
from sekkei.prompting.thoughts import Likely, Propose, Sample, Value, Vote
from sekkei.prompting.tot import SearchConfig, TreeOfThoughts, final_figures

NOBODY = LLM(Scripted([]))
CHAIN = "start at 7, add 3, times 4, minus 5, modulo 23"


class Digits:
    """States are strings of digits; a thought appends one."""

    def __init__(self, width: int, depth: int, value: Callable[[str], float]) -> None:
        self.width, self.depth, self.value = width, depth, value
        self.expanded: list[str] = []
        self.valued: list[str] = []

    def start(self, question: str) -> str:
        return ""

    def show(self, state: str) -> str:
        return state

    def final(self, state: str) -> bool:
        return len(state) == self.depth

    def answer(self, state: str) -> str | None:
        return state

    async def generate(self, _: object, state: str, k: int) -> list[str]:
        self.expanded.append(state)
        return [state + str(i) for i in range(self.width)]

    async def evaluate(self, _: object, states: list[str]) -> list[float]:
        self.valued += states
        return [self.value(state) for state in states]

    def tot(self, **search: Any) -> TreeOfThoughts[str]:
        return TreeOfThoughts(
            problem=self, generate=self.generate, evaluate=self.evaluate, search=SearchConfig(**search)
        )


def beam_by_hand(width: int, depth: int, beam: int, value: Callable[[str], float]) -> list[str]:
    """Algorithm 1, written again."""
    frontier = [""]
    for _ in range(depth):
        grown = [state + str(i) for state in frontier for i in range(width)]
        frontier = sorted(grown, key=lambda state: -value(state))[:beam]
    return frontier


def noise(seed: int) -> Callable[[str], float]:
    return lambda state: (hash((seed, *map(int, state))) % 1000) / 1000


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
def test_breadth_first_is_algorithm_1(width: int, depth: int, beam: int, seed: int) -> None:
    value = noise(seed)
    solution = solve_with(Digits(width, depth, value).tot(depth=depth, beam=beam), NOBODY, "?")
    assert list(solution.candidates) == beam_by_hand(width, depth, beam, value)
    assert solution.answer == solution.candidates[0]


def depth_by_hand(
    width: int, depth: int, threshold: float, value: Callable[[str], float], outputs: int
) -> tuple[list[str], list[str]]:
    """Algorithm 2, written again: (outputs, expanded states)."""
    found: list[str] = []
    expanded: list[str] = []

    def go(state: str) -> None:
        if len(found) >= outputs:
            return
        if len(state) == depth:
            found.append(state)
            return
        expanded.append(state)
        for child in sorted((state + str(i) for i in range(width)), key=lambda child: -value(child)):
            if value(child) > threshold:
                go(child)

    go("")
    return found, expanded


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0, 1), st.integers(1, 5), st.integers(0, 10_000))
def test_depth_first_is_algorithm_2(width: int, depth: int, threshold: float, outputs: int, seed: int) -> None:
    value = noise(seed)
    tree = Digits(width, depth, value)
    search = {"algorithm": "dfs", "depth": depth, "threshold": threshold, "outputs": outputs, "visits": 10_000}
    solution = solve_with(tree.tot(**search), NOBODY, "?")
    found, expanded = depth_by_hand(width, depth, threshold, value, outputs)
    assert sorted(solution.candidates) == sorted(found)  # type: ignore[type-var]
    assert tree.expanded == expanded
    assert solution.answer == (max(found, key=value) if found else None)


def test_depth_first_stops_after_its_visits() -> None:
    tree = Digits(3, 6, lambda state: 0.0 if len(state) == 6 else 1.0)
    solution = solve_with(tree.tot(algorithm="dfs", depth=6, threshold=0.5, visits=17), NOBODY, "?")
    assert len(tree.expanded) == 17
    assert solution.answer is None


def test_what_was_kept_and_pruned_is_in_the_tree() -> None:
    tree = Digits(3, 2, lambda state: float(state[-1:] or 0))
    nodes = solve_with(tree.tot(depth=2, beam=2), NOBODY, "question").nodes
    assert (nodes[0].text, nodes[0].status, nodes[0].parent) == ("question", "root", None)
    fates = {node.text: node.status for node in nodes[1:]}
    assert fates == {
        "0": "pruned",
        "1": "kept",
        "2": "kept",
        "20": "pruned",
        "21": "pruned",
        "22": "answer",
        "10": "pruned",
        "11": "pruned",
        "12": "final",
    }
    by_id = {node.id: node for node in nodes}
    assert all(by_id[node.parent].text == node.text[:-1] for node in nodes if len(node.text) == 2 and node.parent)


def test_equal_states_of_a_step_are_one() -> None:
    class Sums(Digits):
        def show(self, state: str) -> str:
            return "".join(sorted(state))

        async def generate(self, _: object, state: str, k: int) -> list[str]:
            return ["".join(sorted(state + str(i))) for i in range(2)]

    tree = Sums(2, 2, lambda state: 1.0)
    solution = solve_with(tree.tot(depth=2, beam=5), NOBODY, "?")
    assert tree.valued == ["0", "1", "00", "01", "11"]
    assert [node.status for node in solution.nodes].count("duplicate") == 1


def test_states_that_are_final_early_wait_in_the_frontier() -> None:
    class Uneven(Digits):
        def final(self, state: str) -> bool:
            return state.endswith("2") or len(state) == 3

    tree = Uneven(3, 3, lambda state: 1.0 if state == "2" else 0.5)
    solution = solve_with(tree.tot(depth=3, beam=3), NOBODY, "?")
    assert solution.answer == "2"
    assert "2" not in tree.expanded


def test_a_generator_that_gives_nothing() -> None:
    tree = Digits(0, 2, lambda state: 1.0)
    for algorithm in ("bfs", "dfs"):
        solution = solve_with(tree.tot(algorithm=algorithm), NOBODY, "?")
        assert (solution.answer, solution.candidates) == (None, ())


@pytest.mark.parametrize("key", ["depth", "candidates", "beam", "outputs", "visits"])
def test_a_search_of_nothing_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got 0"):
        SearchConfig(**{key: 0})


def test_the_four_figures() -> None:
    checks = [lambda answer: answer == "24"] * 4
    solutions = [
        Solution(answer="24", candidates=("24", "1", "1", None)),  # any, top-1; the majority is wrong
        Solution(answer="1", candidates=("1", "24", "24 ", "24")),  # any, majority; top-1 is wrong
        Solution(answer="1", candidates=("1", None)),
        Solution(answer=None, candidates=()),
    ]
    figures = final_figures(solutions, checks)
    assert (figures.any_of, figures.top1, figures.majority) == (0.5, 0.25, 0.25)
    assert figures.mean == pytest.approx((1 / 4 + 2 / 4 + 0 + 0) / 4)
    assert final_figures([], []).problems == 0


def game24_model(call: Call) -> list[str]:
    """A model that plays well: it proposes three moves of which one is right, and judges them well."""
    asked = call.messages[-1]["content"]
    numbers = asked.rsplit("Numbers: ", 1)[-1].strip()
    if "List up to" in asked:
        listed = {
            "4 9 10 13": "13 - 9 = 4 (left: 4 4 10)\n9 + 10 = 19 (left: 4 13 19)\n4 + 9 = 14 (left: 10 13 14)",
            "4 4 10": "10 - 4 = 6 (left: 4 6)\n4 * 4 = 16 (left: 10 16)",
            "4 6": "4 * 6 = 24 (left: 24)\n4 + 6 = 10 (left: 10)",
            "10 16": "10 + 16 = 26 (left: 26)",
        }
        return [listed.get(numbers, "nothing comes to mind")] * call.settings.n
    if "The result is" in asked:
        return ["sure" if "The result is 24," in asked else "impossible"] * call.settings.n
    verdict = {"4 4 10": "sure", "4 6": "sure", "10 16": "likely"}.get(numbers, "impossible")
    return [f"Let me see.\n{verdict}"] * call.settings.n


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
def test_proposing_and_valuing_by_prompts(algorithm: str) -> None:
    script, task = Scripted(game24_model), Game24()
    search = SearchConfig(algorithm=algorithm, depth=3, beam=2, threshold=1.0)  # type: ignore[arg-type]
    tot = TreeOfThoughts(problem=task, generate=Propose(task=task), evaluate=Value(task=task), search=search)
    solution = solve_with(tot, LLM(script), "4 9 10 13")
    assert solution.answer == "4 * (10 - (13 - 9))"
    assert all("14" not in node.text for node in solution.nodes), "4 + 9 = 14 is false"
    assert solution.cost.calls == len(script.calls) == len(solution.log)
    assert solution.cost.tokens == sum(row["prompt_tokens"] + row["completion_tokens"] for row in solution.log)
    assert {call.settings.n for call in script.calls} == {1, 3}
    values = [node.value for node in solution.nodes if node.text.startswith("13 - 9")]
    assert values == [60.0]


def test_a_value_prompt_is_asked_once_in_a_solve() -> None:
    """Two ways to the same numbers are two states and one prompt."""

    def model(call: Call) -> list[str]:
        asked = call.messages[-1]["content"]
        if "List up to" in asked:
            return ["1 * 2 = 2\n2 / 1 = 2\n"]
        return ["likely"] * call.settings.n

    script, task = Scripted(model), Game24()
    search = SearchConfig(depth=1, beam=5)
    tot = TreeOfThoughts(problem=task, generate=Propose(task=task), evaluate=Value(task=task), search=search)
    solution = solve_with(tot, LLM(script), "1 2 3 4")
    assert [node.value for node in solution.nodes[1:]] == [3.0, 3.0]
    assert len(script.calls) == 2
    solve_with(tot, LLM(script), "1 2 3 4")
    assert len(script.calls) == 4, "another solve asks anew"


def test_voting_by_prompts() -> None:
    def model(call: Call) -> list[str]:
        asked = call.messages[-1]["content"]
        if "List up to" in asked:
            return ["1 + 2 = 3\n3 + 4 = 7\n2 * 3 = 6"]
        return ["The best choice is 2", "The best choice is 3", "I think the best choice is 3", "?", "choice is 9"]

    task = Game24()
    search = SearchConfig(depth=1, beam=1)
    tot = TreeOfThoughts(problem=task, generate=Propose(task=task), evaluate=Vote(task=task), search=search)
    nodes = solve_with(tot, LLM(Scripted(model)), "1 2 3 4").nodes
    assert [node.value for node in nodes[1:]] == [0.0, 1.0, 2.0]


def test_sampling_thoughts_in_words_weeds_out_wrong_steps() -> None:
    steps = {7: ["7 add 3 = 11", "7 add 3 = 10"], 10: ["10 times 4 = 17", "10 times 4 = 40"], 17: ["17 minus 5 = 12"]}

    def model(call: Call) -> list[str]:
        asked = call.messages[-1]["content"]
        if "The step:" in asked:
            right = asked.rsplit("The step: ", 1)[1].strip() in ("7 add 3 = 10", "10 times 4 = 17", "17 minus 5 = 12")
            return ["right" if right else "that is wrong"] * call.settings.n
        value = int(asked.split("The value is ")[1].split(".")[0])
        return [steps.get(value, ["hm"])[i % len(steps.get(value, [1]))] for i in range(call.settings.n)]

    script, task = Scripted(model), ChainTask()
    search = SearchConfig(depth=3, beam=1)
    tot = TreeOfThoughts(problem=task, generate=Sample(task=task), evaluate=Value(task=task, times=1), search=search)
    solution = solve_with(tot, LLM(script), CHAIN)
    assert solution.answer == "12"
    assert check(CHAIN, solution.answer)
    fates = {node.text: node.status for node in solution.nodes if node.status != "duplicate"}
    assert fates["7 add 3 = 11"] == "pruned"
    assert "10 times 4 = 40" not in fates, "a result of 40 is none modulo 23"
    assert all(call.settings.stop == ("\n",) for call in script.calls if "next step" in call.messages[-1]["content"])


def test_a_trained_model_is_continued_and_believed() -> None:
    """The native way: think blocks are continued up to ';', and a thought's own probability is its value."""

    def model(call: Call) -> list[Reply]:
        written = call.messages[-1]["reasoning_content"]
        after = {
            "": [" 7 add 3 = 11", " 7 add 3 = 10"],
            " 7 add 3 = 10;": [" 10 times 4 minus 5 = 12", " 10 times 4 = 17"],
            " 7 add 3 = 10; 10 times 4 = 17;": [" 17 minus 5 = 12", " 17 minus 5 = 13"],
            " 7 add 3 = 11;": [" 11 times 4 = 21", " 12 times 4 = 2"],
        }.get(written, ["?"])
        return [Reply(text="", thinking=after[i % len(after)]) for i in range(call.settings.n)]

    def score(call: Call, text: str) -> float:
        return -3.0 if text.strip(" ;").endswith(("11", "13", "21")) else -0.1

    task = ChainTask(native=True)
    search = SearchConfig(depth=3, beam=2)
    tot = TreeOfThoughts(problem=task, generate=Sample(task=task), evaluate=Likely(task=task), search=search)
    script = Scripted(model, scorer=score)
    solution = solve_with(tot, LLM(script), CHAIN)
    assert solution.answer == "12"
    assert solution.candidates[:2] == ("12", "12")
    assert all(call.settings.stop in ((";",), ()) for call in script.calls)
    with pytest.raises(LLMError, match="use value or vote"):
        solve_with(tot, LLM(Scripted(model)), CHAIN)


def test_a_path_is_valued_as_a_whole_and_the_last_thought_alone() -> None:
    """A doubtful first line with a sure second one: the path remembers the doubt."""
    task = ChainTask(native=True)
    one = task.after(task.start(CHAIN), "7 add 3 = 11")
    assert one is not None
    two = task.after(one, "11 times 4 = 21")
    assert two is not None
    assert task.path(two)[1] == " 7 add 3 = 11; 11 times 4 = 21;"
    assert task.path(two)[0][-1]["reasoning_content"] == ""
    script = Scripted([], scorer=lambda _, text: -6.0 if "= 11;" in text else -0.5)
    words = len(task.path(two)[1].split())
    (whole,) = asyncio.run(Likely(task=task)(Meter(LLM(script)), [two]))
    assert whole == pytest.approx(math.exp(-6.0 / words))
    (last,) = asyncio.run(Likely(task=task, scope="last")(Meter(LLM(script)), [two]))
    assert last == pytest.approx(math.exp(-0.5))


def test_chain_thoughts_must_take_up_the_problem_where_it_stands() -> None:
    task = ChainTask(native=True)
    state = task.start(CHAIN)
    for line in ("8 add 3 = 11", "7 add 4 = 11", "7 times 3 = 21", "7 add 3 = 23", "7 add 3", "", "7 add 3 = 10 = 10"):
        assert task.after(state, line) is None, line
    after = task.after(state, " 7 add 3 times 4 = 5")
    assert after is not None
    assert (after.done, after.value, task.final(after)) == (2, 5, False)
    messages, text = task.last_thought(after)
    assert messages[-1]["reasoning_content"] == ""
    assert text == " 7 add 3 times 4 = 5;"
    end = task.after(after, "5 minus 5 = 0")
    assert end is not None
    assert task.final(end)
    assert task.last_thought(end)[1] == " 5 minus 5 = 0"
    assert task.last_thought(end)[0][-1]["reasoning_content"] == " 7 add 3 times 4 = 5;"


def test_chain_questions_and_answers() -> None:
    assert parse_question(CHAIN).question == CHAIN
    assert parse_question(CHAIN).answer == 12
    for text in ("", "start at 7", "start at 7, add 3", "start at 7, square 3, modulo 23", f"{CHAIN} please"):
        with pytest.raises(UserError, match="is no chain"):
            parse_question(text)
    with pytest.raises(UserError, match="modulus"):
        parse_question("start at 7, add 3, modulo 0")
    assert read_answer(Reply(text=" answer: 12")) == "12"
    assert read_answer(Reply(text=" answer: 1", finish_reason="length")) is None


def test_sampling_settings_reach_the_model() -> None:
    script = Scripted(lambda call: ["7 add 3 = 10"] * call.settings.n)
    task = ChainTask()
    generate = Sample(task=task, settings=Settings(temperature=0.3, max_tokens=9, stop=("!",)))
    search = SearchConfig(depth=1, beam=1, candidates=6)
    tot = TreeOfThoughts(problem=task, generate=generate, evaluate=Likely(task=task), search=search)
    with pytest.raises(LLMError):
        solve_with(tot, LLM(script), CHAIN)
    settings = script.calls[0].settings
    assert (settings.temperature, settings.max_tokens, settings.stop, settings.n) == (0.3, 9, ("!",), 6)
