"""The scheduler and its blocks without a model: what a pass would write and read is followed as plain tuples.

`Follow` keeps, for every place of every block, the whole prefix of tokens whose key it would hold. A piece is right
if, at its pass, each of its positions reads back the very prefix of its own sequence.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekkei.engine.blocks import BlockPool, chain_digest
from sekkei.engine.scheduler import Plan, Scheduler, Sequence

CONTEXT = 24


class Follow:
    """Requests that come, draw, end and are given up, and what the blocks hold meanwhile."""

    def __init__(self, size: int, blocks: int, max_rows: int, prefill_tokens: int, refill: int, seed: int) -> None:
        self.pool = BlockPool(max(blocks, -(-CONTEXT // size)), size)
        self.scheduler = Scheduler(self.pool, max_rows=max_rows, prefill_tokens=prefill_tokens, refill=refill)
        self.rng = random.Random(seed)
        self.written: dict[tuple[int, int], tuple[int, ...]] = {}
        self.ends: dict[int, int] = {}  # arrival -> final length
        self.open: dict[int, Sequence] = {}
        self.finished: list[int] = []
        self.arrivals = self.groups = self.hits = self.preempted = self.passes = 0

    def submit(self, prompt: list[int], n: int, answer: int) -> None:
        for _ in range(n):
            sequence = Sequence(self.arrivals, list(prompt), len(prompt), self.groups)
            self.ends[self.arrivals] = min(CONTEXT, len(prompt) + answer)
            self.open[self.arrivals] = sequence
            self.scheduler.add(sequence)
            self.arrivals += 1
        self.groups += 1

    def give_up(self) -> None:
        if self.open:
            chosen = self.rng.sample(sorted(self.open), self.rng.randint(1, len(self.open)))
            self.scheduler.finish(self.open.pop(arrival) for arrival in chosen)
        self.check_invariants()

    def step(self) -> None:
        waited = [sequence.arrival for sequence in self.scheduler.waiting]
        plan = self.scheduler.schedule()
        self.preempted += plan.preempted
        self.passes += 1
        assert bool(plan.pieces) == bool(self.open)
        if self.open:
            oldest = min(self.open)
            assert oldest in [piece.sequence.arrival for piece in plan.pieces], "the oldest does not go on"
        self.check_pass(plan, waited)
        for sequence, _ in self.scheduler.commit(plan):
            assert sequence.todo == 0
            sequence.tokens.append(self.rng.randrange(2))
            if len(sequence.tokens) == self.ends[sequence.arrival]:
                self.scheduler.finish([sequence])
                del self.open[sequence.arrival]
                self.finished.append(sequence.arrival)
        self.check_invariants()

    def check_pass(self, plan: Plan, waited: list[int]) -> None:
        assert sum(piece.count for piece in plan.prefills) <= self.scheduler.prefill_tokens
        assert all(piece.count == 1 for piece in plan.decodes)
        before = {pair: [self.written.get((pair[0], i)) for i in range(self.pool.size)] for pair in plan.copies}
        for (_, target), content in before.items():
            for i, prefix in enumerate(content):
                if prefix is None:
                    self.written.pop((target, i), None)
                else:
                    self.written[target, i] = prefix
        for piece in plan.pieces:
            sequence = piece.sequence
            assert piece.start == sequence.computed
            assert piece.start + piece.count <= len(sequence.tokens)
            for at in range(piece.start, piece.start + piece.count):
                block = sequence.blocks[at // self.pool.size]
                self.written[block, at % self.pool.size] = tuple(sequence.tokens[: at + 1])
            self.hits += sequence.arrival in waited and piece.start > 0
        for piece in plan.pieces:
            for at in range(piece.start + piece.count):
                place = piece.sequence.blocks[at // self.pool.size], at % self.pool.size
                assert self.written.get(place) == tuple(piece.sequence.tokens[: at + 1]), "another sequence's key"

    def check_invariants(self) -> None:
        scheduler, refs = self.scheduler, [0] * self.pool.count
        for sequence in scheduler.running:
            for block in sequence.blocks:
                refs[block] += 1
        assert refs == self.pool.refs, "a block leaks, or is held by nobody who counts it"
        assert self.pool.held == sum(count > 0 for count in refs)
        assert all(not sequence.blocks for sequence in scheduler.waiting)
        order = [s.arrival for s in [*scheduler.running, *scheduler.waiting]]
        assert order == sorted(self.open), "not in the order of arrival"
        slots = [sequence.slot for sequence in scheduler.running]
        assert len({*slots}) == len(slots) <= scheduler.max_rows
        assert all(0 <= slot < scheduler.max_rows for slot in slots)

    def run_out(self) -> None:
        """Until everything is answered, within a bound that a scheduler without starvation keeps."""
        work = sum(self.ends[arrival] for arrival in self.open)
        bound = self.passes + 2 * work + len(self.open) * CONTEXT + 1
        while self.open:
            self.step()
            assert self.passes <= bound, "somebody starves"
        assert self.pool.held == 0
        assert self.scheduler.idle


@st.composite
def stories(draw: st.DrawFn) -> tuple[Follow, list[tuple[str, int, int, int]]]:
    follow = Follow(
        size=draw(st.integers(1, 5)),
        blocks=draw(st.integers(1, 40)),
        max_rows=draw(st.integers(1, 6)),
        prefill_tokens=draw(st.sampled_from([1, 2, 3, 7, 16, 100])),
        refill=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**16)),
    )
    event = st.tuples(
        st.sampled_from(["submit", "submit", "step", "step", "step", "give up"]),
        st.integers(1, CONTEXT - 1),  # length of the prompt
        st.integers(1, 4),  # n
        st.integers(1, 12),  # length of the answer
    )
    return follow, draw(st.lists(event, max_size=30))


def play(follow: Follow, events: list[tuple[str, int, int, int]]) -> None:
    for kind, length, n, answer in events:
        if kind == "submit":
            few = follow.rng.randrange(4)  # prompts often begin alike
            follow.submit([(i // 6) * few % 2 for i in range(length)], n, answer)
        elif kind == "step":
            follow.step()
        else:
            follow.give_up()
    follow.run_out()


@settings(max_examples=400, deadline=None)
@given(stories())
def test_every_pass_reads_its_own_prefix_and_nothing_leaks(story: tuple[Follow, list]) -> None:
    play(*story)


def busy(seed: int = 0, blocks: int = 12) -> Follow:
    """A story that meets preemption, prefix hits and forks."""
    follow = Follow(size=3, blocks=blocks, max_rows=5, prefill_tokens=7, refill=1, seed=seed)
    rng = random.Random(seed)
    events = []
    for _ in range(60):
        kind = rng.choice(["submit", "step", "step", "step"])
        events.append((kind, rng.randint(1, CONTEXT - 1), rng.randint(1, 4), rng.randint(1, 12)))
    play(follow, events)
    return follow


def test_the_stories_meet_what_they_are_about() -> None:
    played = [busy(seed) for seed in range(3)]
    assert all(follow.preempted > 2 and follow.hits > 2 for follow in played)
    assert all(len(follow.finished) == follow.arrivals for follow in played)


def fork_without_holding(self: Scheduler, lead: Sequence, follower: Sequence, plan: Plan) -> None:
    follower.blocks, follower.computed, follower.lead = list(lead.blocks), lead.computed, None
    follower.sealed, follower.digest = lead.sealed, lead.digest


def release_but_one(self: BlockPool, blocks: list[int]) -> None:
    RELEASE(self, blocks[1:])


def digest_without_history(before: bytes, tokens: list[int]) -> bytes:
    return chain_digest(b"", tokens)


RELEASE = BlockPool.release
FAULTS = {
    "a fork does not hold its blocks": ("sekkei.engine.scheduler.Scheduler._fork", fork_without_holding),
    "a release forgets a block": ("sekkei.engine.blocks.BlockPool.release", release_but_one),
    "a digest knows its block only": ("sekkei.engine.scheduler.chain_digest", digest_without_history),
    "nobody copies before writing": ("sekkei.engine.scheduler.Scheduler._shared", lambda self, sequence: False),
    "the oldest is preempted": ("sekkei.engine.scheduler.Scheduler._victim", lambda self: self.running[0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])

    def many() -> None:
        for seed in range(20):
            busy(seed)

    with pytest.raises((AssertionError, IndexError, KeyError, ValueError)):
        many()


def test_first_come_first_served() -> None:
    """Requests of one length finish in the order in which they came, whatever the blocks allow."""
    follow = Follow(size=2, blocks=14, max_rows=4, prefill_tokens=5, refill=1, seed=1)
    for i in range(12):
        follow.submit([i % 2] * 5, 1, 9)
    follow.run_out()
    assert follow.finished == sorted(follow.finished)


def test_a_group_computes_its_prompt_once() -> None:
    follow = Follow(size=4, blocks=200, max_rows=16, prefill_tokens=8, refill=1, seed=2)
    computed = 0
    follow.submit([1] * 18, 16, 3)
    while follow.open:
        before = {arrival: sequence.computed for arrival, sequence in follow.open.items()}
        still = dict(follow.open)
        follow.step()
        computed += sum(max(0, min(s.computed, 18) - max(before[a], 0)) for a, s in still.items() if a == 0)
    assert computed == 18
    assert follow.preempted == 0


def test_a_long_prompt_delays_others_by_a_chunk_only() -> None:
    follow = Follow(size=2, blocks=60, max_rows=4, prefill_tokens=3, refill=1, seed=3)
    follow.submit([1], 1, 12)
    follow.step()
    (short,) = follow.open.values()
    follow.submit([0] * 20, 1, 1)
    for drawn in range(3, 8):  # the long prompt takes 7 passes, the short one draws in each
        follow.step()
        assert len(short.tokens) == drawn


@pytest.mark.parametrize("size", [1, 2, 16])
def test_a_pool_gives_back_what_it_gave(size: int) -> None:
    pool = BlockPool(3, size)
    taken = [pool.take() for _ in range(3)]
    with pytest.raises(IndexError, match="no block"):
        pool.take()
    names = [chain_digest(b"", [i] * size) for i in taken]
    for block, name in zip(taken, names):
        pool.seal(block, name)
    pool.release(taken)
    assert pool.available == 3
    assert [pool.find(name) for name in names] == taken  # kept for later
    pool.hold(taken[0])
    assert pool.take() == taken[2]  # of a prefix, the end is given up first
    assert pool.find(names[2]) is None
    pool.forget_all()
    assert pool.find(names[0]) is None
    assert pool.held == 2
