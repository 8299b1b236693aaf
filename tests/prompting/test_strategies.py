"""Examples, chains, votes and the best of n: against definitions written out again, and against planted scripts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.core.errors import ConfigError
from sekkei.llm import LLM, Call, LLMError, Reply, Settings
from sekkei.llm.scripted import Scripted
from sekkei.prompting import scorers
from sekkei.prompting.best_of_n import BestOfN
from sekkei.prompting.build import StrategyConfig, build
from sekkei.prompting.cot import SECOND, TRIGGER, ChainOfThought
from sekkei.prompting.few_shot import BM25, Cosine, Example, FewShot, as_turns, terms
from sekkei.prompting.self_consistency import SelfConsistency, leads
from sekkei.prompting.solution import solve_with

POOL = tuple(
    Example(question=question, answer=answer)
    for question, answer in [
        ("the cat sat on the mat", "animal"),
        ("a cat and a dog sat", "animal"),
        ("the dog ate the bone", "animal"),
        ("birds sing in the tree", "animal"),
        ("the car needs new tyres", "machine"),
        ("a car and a train", "machine"),
    ]
)
SAMPLED = ChainOfThought(settings=Settings(temperature=0.7), second_ask=False)


def bm25_by_hand(query: str, texts: list[str], place: int, k1: float = 1.2, b: float = 0.75) -> float:
    """Robertson and Zaragoza 2009, eq. 3.15, for texts of plain words; not divided by anything."""
    split = [text.split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    total = 0.0
    for word in set(query.split()):
        seen = sum(word in words for words in split)
        idf = math.log(1 + (len(split) - seen + 0.5) / (seen + 0.5))
        tf = split[place].count(word)
        total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(split[place]) / mean))
    return total


def test_bm25_ranks_as_its_formula() -> None:
    texts = [example.question for example in POOL]
    for query in ("cat on a mat", "the train", "dog bone the"):
        (scores,) = BM25().matrix([query], texts)
        hand = [bm25_by_hand(query, texts, place) for place in range(len(texts))]
        ratios = {round(score / other, 9) for score, other in zip(scores, hand) if other}
        assert len(ratios) == 1, "one factor for a query, so the order is the formula's"
        assert [score > 0 for score in scores] == [other > 0 for other in hand]


def test_bm25_of_a_text_with_itself_is_about_one_and_of_strangers_nothing() -> None:
    texts = [example.question for example in POOL]
    matrix = BM25().matrix(texts, texts)
    for i, row in enumerate(matrix):
        assert max(range(len(row)), key=row.__getitem__) == i
        assert 0.7 < row[i] < 1.4
    assert BM25().matrix(["zebra"], texts) == [[0.0] * len(texts)]


def test_words_of_unspaced_scripts_are_pairs() -> None:
    assert terms("The 東京都 cat、猫") == ["the", "東京", "京都", "cat", "猫"]
    (scores,) = BM25().matrix(["東京の天気"], ["東京は晴れ", "大阪は雨"])
    assert scores[0] > 0 == scores[1]


def test_nearest_are_the_most_similar_and_the_best_stands_next_to_the_question() -> None:
    chosen = FewShot(pool=POOL, k=2).choose("the cat on the mat")
    assert [example.question for example in chosen] == ["a cat and a dog sat", "the cat sat on the mat"]
    turned = FewShot(pool=POOL, k=2, order="best_first").choose("the cat on the mat")
    assert turned == chosen[::-1]


def test_by_embedding() -> None:
    vectors = {"q": (1, 0), "near": (0.9, 0.1), "far": (0, 2), "opposite": (-5, 0)}
    pool = tuple(Example(question=name, answer="") for name in ("far", "near", "opposite"))
    shots = FewShot(pool=pool, k=2, similarity=Cosine(lambda texts: [vectors[text] for text in texts]))
    assert [example.question for example in shots.choose("q")] == ["far", "near"]


def mmr_by_hand(likeness: list[float], between: list[list[float]], k: int, weight: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(k, len(likeness)):
        left = [i for i in range(len(likeness)) if i not in chosen]
        near = {i: max((between[i][j] for j in chosen), default=0.0) for i in left}
        chosen.append(max(left, key=lambda i, near=near: weight * likeness[i] - (1 - weight) * near[i]))
    return chosen


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=8, unique=True), st.integers(1, 8))
def test_diverse_is_maximal_marginal_relevance(points: list[tuple[float, float]], k: int) -> None:
    vectors = {f"p{i}": (x, y + 1.5) for i, (x, y) in enumerate(points)} | {"q": (0.3, 1.0)}
    similarity = Cosine(lambda texts: [vectors[text] for text in texts])
    pool = tuple(Example(question=f"p{i}", answer="") for i in range(len(points)))
    texts = [example.question for example in pool]
    (likeness,) = similarity.matrix(["q"], texts)
    between = similarity.matrix(texts, texts)
    chosen = FewShot(pool=pool, k=k, select="diverse", similarity=similarity, relevance=0.4).choose("q")
    expected = mmr_by_hand(likeness, between, k, 0.4)
    worth = sorted(round(likeness[i], 9) for i in expected)  # of exact ties another one may be taken
    assert sorted(round(likeness[int(example.question[1:])], 9) for example in chosen) == worth


def test_diverse_leaves_a_double_out_that_nearest_takes() -> None:
    pool = (*POOL, Example(question="the cat sat on the mat !", answer="animal"))
    twice = FewShot(pool=pool, k=2).choose("cat on the mat, a train")
    assert len({example.question.rstrip(" !") for example in twice}) == 1
    once = FewShot(pool=pool, k=2, select="diverse", relevance=0.4).choose("cat on the mat, a train")
    assert len({example.question.rstrip(" !") for example in once}) == 2


@pytest.mark.parametrize("select", ["random", "nearest", "diverse"])
def test_balance_gives_each_label_the_same_number(select: str) -> None:
    for k, counts in ((2, [1, 1]), (4, [2, 2]), (3, [1, 2]), (6, [2, 4])):
        shots = FewShot(pool=POOL, k=k, select=select, balance=True)  # type: ignore[arg-type]
        assert sorted(Counter(example.kind for example in shots.choose("the cat")).values()) == counts
    plain = FewShot(pool=POOL, k=4).choose("the cat sat, the dog ate the bone, birds sing")
    assert Counter(example.kind for example in plain)["animal"] == 4, "without balance this question finds one label"


def test_random_draws_by_seed_and_question() -> None:
    shots = FewShot(pool=POOL, k=3, select="random", order="shuffled", seed=1)
    assert shots.choose("one") == shots.choose("one")
    drawn = {tuple(example.question for example in shots.choose(f"question {i}")) for i in range(50)}
    assert len(drawn) > 20
    seen = Counter(question for row in drawn for question in row)
    assert set(seen) == {example.question for example in POOL}
    assert replace(shots, seed=2).choose("one") != shots.choose("one")


def test_the_question_itself_is_never_shown() -> None:
    for select in ("random", "nearest", "diverse"):
        chosen = FewShot(pool=POOL, k=6, select=select).choose(POOL[0].question)  # type: ignore[arg-type]
        assert len(chosen) == 5
        assert POOL[0] not in chosen


def test_examples_as_turns() -> None:
    example = Example(question="1+1", answer="answer: 2", reasoning="one and one")
    assert as_turns([example]) == [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "answer: 2"}]
    assert as_turns([example], "written")[1]["content"] == "one and one\nanswer: 2"
    assert as_turns([example], "think")[1] == {
        "role": "assistant",
        "content": "answer: 2",
        "reasoning_content": "one and one",
    }
    assert as_turns([example], "empty")[1]["reasoning_content"] == ""


@pytest.mark.parametrize(("key", "value"), [("k", -1), ("relevance", 1.5)])
def test_bad_examples_settings_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got"):
        FewShot(pool=POOL, **{key: value})  # type: ignore[arg-type]


def test_zero_shot_chain_asks_again_only_where_no_answer_can_be_read() -> None:
    script = Scripted(["I think it is about forty.", "40"])
    solution = solve_with(ChainOfThought(), LLM(script), "how many?")
    assert solution.answer == "40"
    assert TRIGGER in script.calls[0].messages[-1]["content"]
    assert SECOND in script.calls[1].messages[-1]["content"]
    assert solution.cost.calls == 2
    script = Scripted(["Two twenties.\nanswer: 40"])
    assert solve_with(ChainOfThought(), LLM(script), "how many?").answer == "40"
    assert len(script.calls) == 1


def test_a_reply_that_was_cut_off_has_no_answer() -> None:
    script = Scripted([Reply(text="answer: 4", finish_reason="length")])
    assert solve_with(ChainOfThought(second_ask=False), LLM(script), "40?").answer is None


def test_few_shot_chain_shows_its_examples_and_no_trigger() -> None:
    pool = (Example(question="1+1?", answer="answer: 2", reasoning="one, two"),)
    script = Scripted(["answer: 3"])
    solve_with(ChainOfThought(shots=FewShot(pool=pool, k=1), instruction="Be brief."), LLM(script), "1+2?")
    roles = [(message["role"], message["content"]) for message in script.calls[0].messages[:3]]
    assert roles == [("system", "Be brief."), ("user", "1+1?"), ("assistant", "one, two\nanswer: 2")]
    assert TRIGGER not in script.calls[0].messages[-1]["content"]


def test_direct_asks_without_thinking() -> None:
    script = Scripted(["answer: 3"])
    solve_with(ChainOfThought(reasoning="no"), LLM(script), "1+2?")
    assert script.calls[0].settings.thinking is False


def voting(*answers: str | None) -> Scripted:
    return Scripted([f"answer: {answer}" if answer else "no idea" for answer in answers])


def test_the_majority_wins_after_normalisation() -> None:
    script = voting("7", "0.5", "1/2", None, r"\frac{1}{2}", "7")
    solution = solve_with(SelfConsistency(chain=SAMPLED, k=6, batch=6, stop="never"), LLM(script), "?")
    assert solution.answer == "0.5", "as the first of its voters wrote it"
    assert solution.candidates == ("7", "0.5", "1/2", None, r"\frac{1}{2}", "7")
    assert [node.status for node in solution.nodes] == ["root", "pruned", "answer", "kept", "pruned", "kept", "pruned"]


def test_of_equals_the_first_wins_and_nobody_may_vote() -> None:
    strategy = SelfConsistency(chain=SAMPLED, k=4, stop="never")
    assert solve_with(strategy, LLM(voting("2", "1", "1", "2")), "?").answer == "2"
    nothing = solve_with(strategy, LLM(voting(None, None, None, None)), "?")
    assert nothing.answer is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=12), st.integers(1, 5))
def test_stopping_when_sure_never_changes_the_majority(answers: list[str | None], batch: int) -> None:
    k = len(answers)
    early, late = (
        solve_with(SelfConsistency(chain=SAMPLED, k=k, batch=batch, stop=stop), LLM(voting(*answers)), "?")  # type: ignore[arg-type]
        for stop in ("sure", "never")
    )
    assert early.answer == late.answer
    assert len(early.candidates) <= k


def test_stopping_early_saves_calls() -> None:
    script = voting(*["5"] * 16)
    solution = solve_with(SelfConsistency(chain=SAMPLED, k=16, batch=4), LLM(script), "?")
    assert len(solution.candidates) == 12, "after 8 the other 8 could still draw level"
    solution = solve_with(SelfConsistency(chain=SAMPLED, k=16, batch=4, stop="beta"), LLM(voting(*["5"] * 16)), "?")
    assert len(solution.candidates) == 4, "4 : 0 is 97%"


def test_beta_is_the_integral_that_it_says() -> None:
    for first, second in ((1, 0), (4, 0), (5, 2), (3, 3), (10, 7)):
        steps = 20_000
        grid = [(i + 0.5) / steps for i in range(steps)]
        density = [p**first * (1 - p) ** second for p in grid]
        above = sum(value for p, value in zip(grid, density) if p > 0.5)
        assert leads(first, second) == pytest.approx(above / sum(density), abs=1e-4)


def test_greedy_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature: is 0"):
        SelfConsistency(chain=ChainOfThought())
    with pytest.raises(ConfigError, match="temperature: is 0"):
        BestOfN(scorer=scorers.likelihood(), chain=ChainOfThought())
    for key in ("k", "batch"):
        with pytest.raises(ConfigError, match="must be >= 1"):
            SelfConsistency(**{key: 0})  # type: ignore[arg-type]


def test_best_of_n_takes_the_best_and_prefers_what_has_an_answer() -> None:
    worth = {"answer: 1": 0.2, "answer: 2": 0.9, "no idea": 5.0, "answer: 3": 0.9}
    strategy = BestOfN(scorer=lambda _, __, reply: worth[reply.text], chain=SAMPLED, n=4)
    solution = solve_with(strategy, LLM(voting("1", "2", None, "3")), "?")
    assert solution.answer == "2", "of equals the first"
    assert solution.candidates == ("2", None, "3", "1")
    assert [node.value for node in solution.nodes[1:]] == [0.2, 0.9, 5.0, 0.9]


def test_weighted_adds_up_the_scores_of_equal_answers() -> None:
    worth = iter([0.9, 0.5, 0.6, 0.1])
    strategy = BestOfN(scorer=lambda *_: next(worth), chain=SAMPLED, n=4, choose="weighted")
    assert solve_with(strategy, LLM(voting("1", "0.5", "1/2", "3")), "?").answer == "1/2"


def test_a_scorer_that_asks_is_counted() -> None:
    def model(call: Call) -> list[str]:
        asked = call.messages[-1]["content"]
        if "Grade an answer" in asked:
            return ["It holds.\ngrade: 9" if "answer: 2" in asked else "grade: 31 or so"] * call.settings.n
        return ["answer: 1", "answer: 2"]

    script = Scripted(model)
    solution = solve_with(BestOfN(scorer=scorers.judge(), chain=SAMPLED, n=2), LLM(script), "1 + 1?")
    assert solution.answer == "2"
    assert [node.value for node in solution.nodes[1:]] == [0.0, 9.0], "31 is no grade of ten"
    assert solution.cost.calls == len(script.calls) == 3


def test_likelihood_is_the_mean_of_the_tokens() -> None:
    replies = [
        Reply(text="answer: 1", logprobs=(("a", -1.0), ("b", -3.0))),
        Reply(text="answer: 2", logprobs=(("a", -1.5), ("b", -1.5), ("c", -1.5))),
    ]
    strategy = BestOfN(scorer=scorers.likelihood(), chain=SAMPLED, n=2)
    assert solve_with(strategy, LLM(Scripted(replies)), "?").answer == "2"
    with pytest.raises(LLMError, match="no log-probabilities"):
        solve_with(strategy, LLM(voting("1", "2")), "?")


def test_verifiers_rewards_and_scores_that_are_none() -> None:
    by_rule = BestOfN(scorer=scorers.verifier(lambda _, reply: "3" in reply.text), chain=SAMPLED, n=3)
    assert solve_with(by_rule, LLM(voting("1", "3", "2")), "?").answer == "3"
    by_model = BestOfN(scorer=scorers.reward(lambda _, reply: -len(reply.text)), chain=SAMPLED, n=2)
    assert solve_with(by_model, LLM(voting("100", "1")), "?").answer == "1"
    broken = BestOfN(scorer=lambda *_: math.nan, chain=SAMPLED, n=2)
    with pytest.raises(LLMError, match="gave no number"):
        solve_with(broken, LLM(voting("1", "2")), "?")


def test_sampled_calls_draw_by_their_own_messages() -> None:
    script = Scripted(lambda call: "answer: 1")
    strategy = ChainOfThought(settings=Settings(temperature=1.0, seed=7))
    for question in ("a", "b", "a"):
        solve_with(strategy, LLM(script), question)
    first, second, third = (call.settings.seed for call in script.calls)
    assert first == third != second
    solve_with(ChainOfThought(settings=Settings(seed=7)), LLM(script), "a")
    assert script.calls[-1].settings.seed == 7, "greedy calls keep theirs, so that a cache finds them"


def test_best_of_n_goes_by_a_scorer_that_is_handed_in() -> None:
    can = LLM(Scripted([])).capabilities
    config = StrategyConfig(strategy="best-of-n", samples=2, choose_by="reward")
    shortest = scorers.reward(lambda _, reply: -len(reply.text))
    llm = LLM(Scripted(["a long way\nanswer: 3", "answer: 4"]))
    assert solve_with(build(config, can, "1 + 3?", scorer=shortest), llm, "1 + 3?").answer == "4"
    with pytest.raises(ConfigError, match=r"choose_by: got reward, but no reward model was named; .* runs/NAME#reward"):
        build(config, can, "1 + 3?")
