"""Who computes what in the next forward pass, and in which blocks. Plain Python, no tensors.

    waiting ──admit──> running ──(prefill in chunks, then one token per step)──> finished
       ^                  │
       └── preempted: the youngest gives its blocks back and computes anew later

Every sequence has an arrival number. Waiting and running sequences are kept in that order, all running ones
are older than all waiting ones, the oldest is served first and the youngest is preempted first. So the oldest
sequence always goes on, nobody waits for ever (the store holds at least one whole context), and a preempted
sequence finds most of its blocks again by their digests (blocks.py).

Each step holds one token of every running sequence that is past its prompt, and at most `prefill_tokens` tokens
of prompts (chunked prefill, Agrawal et al. 2023, "SARATHI"), so a long prompt delays others by one chunk only.

Samples of one request share their prompt: the first (the lead) computes it, the others wait for it and then hold
the same blocks. Whoever writes into a block that others hold as well copies it first (copy on write).

It does not handle priorities, or swapping blocks to another memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from sekkei.engine.blocks import BlockPool, chain_digest


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample: its tokens, and the blocks that hold the keys and values of the first `computed` of them.

    tokens: prompt and what was drawn. reuse: may take over other sequences' blocks. group: number of its request.
    adapter: whose keys and values it has (-1: the base model's), so that it shares blocks with its like only.
    """

    arrival: int
    tokens: list[int]
    prompt: int
    group: int
    reuse: bool = True
    adapter: int = -1
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    sealed: int = 0
    digest: bytes = b""
    lead: Sequence | None = None
    slot: int = -1
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.digest = self.root

    @property
    def root(self) -> bytes:
        """What the names of its blocks begin with."""
        return b"" if self.adapter < 0 else f"adapter {self.adapter}".encode()

    @property
    def todo(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed


@dataclass(slots=True)
class Piece:
    """Tokens [start, start + count) of a sequence, to be computed in one pass."""

    sequence: Sequence
    start: int
    count: int


@dataclass(slots=True)
class Plan:
    """One forward pass.

    decodes: pieces of one token. prefills: pieces of prompts (or of what a preempted sequence had).
    copies: (from, to) blocks, all read before any is written, before the pass writes; their first `copied` tokens.
    moved: sequences whose list of blocks is not what it was. forked: those that `commit` gave their lead's blocks.
    """

    decodes: list[Piece] = field(default_factory=list)
    prefills: list[Piece] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    copied: int = 0
    moved: list[Sequence] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)
    preempted: int = 0

    @property
    def pieces(self) -> list[Piece]:
        return self.decodes + self.prefills


class Scheduler:
    """Plans passes for sequences that come and go.

    Args:
        pool: of blocks. max_rows: most sequences running at once.
        prefill_tokens: most prompt tokens in one pass.
        refill: admit again only once this many rows are free, or all that wait fit.
    """

    def __init__(self, pool: BlockPool, *, max_rows: int, prefill_tokens: int, refill: int = 1) -> None:
        self.pool, self.max_rows = pool, max_rows
        self.prefill_tokens, self.refill = prefill_tokens, refill
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._slots = list(range(max_rows - 1, -1, -1))

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; arrival numbers must grow, and it must fit the store alone."""
        assert not self.waiting or self.waiting[-1].arrival < sequence.arrival
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """The next pass. Empty only if nothing waits or runs."""
        plan = Plan()
        budget = self._plan_running(plan)
        if not plan.preempted:
            self._admit(plan, budget)
        return plan

    def commit(self, plan: Plan) -> list[tuple[Sequence, int]]:
        """The pass has been computed.

        Returns:
            who draws a token now, with the index into `plan.pieces` whose last score it draws from.
        """
        draws, followers = [], self._followers()
        for index, piece in enumerate(plan.pieces):
            sequence = piece.sequence
            sequence.computed += piece.count
            if sequence.todo:
                continue
            draws.append((sequence, index))
            for follower in followers.pop(sequence.arrival, ()):
                self._fork(sequence, follower, plan)
                draws.append((follower, index))
        return draws

    def finish(self, done: Iterable[Sequence]) -> None:
        """These sequences are over (ended, or given up): their blocks are free at once."""
        over = {sequence.arrival for sequence in done}
        if not over:
            return
        stay = []
        for sequence in self.running:
            if sequence.arrival in over:
                self._leave(sequence)
            else:
                stay.append(sequence)
        self.running = stay
        if any(sequence.arrival in over for sequence in self.waiting):
            self.waiting = deque(sequence for sequence in self.waiting if sequence.arrival not in over)
        heirs: dict[int, Sequence] = {}
        for sequence in self.running:  # the prompt's lead was given up before it was computed: the next one leads
            if sequence.lead is not None and sequence.lead.arrival in over:
                sequence.lead = heirs.setdefault(sequence.lead.arrival, sequence)
                if sequence.lead is sequence:
                    sequence.lead = None

    def _plan_running(self, plan: Plan) -> int:
        """Pieces of the running sequences, oldest first; returns what is left of the prefill budget."""
        budget, index = self.prefill_tokens, 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if sequence.lead is not None:
                continue
            todo = len(sequence.tokens) - sequence.computed
            count = 1 if todo == 1 else min(todo, budget)
            if count == 0:
                continue
            while not self._reserve(sequence, count, plan):
                victim = self._victim()
                self._preempt(victim)
                plan.preempted += 1
                if victim is sequence:
                    return 0
            if todo == 1:
                plan.decodes.append(Piece(sequence, sequence.computed, 1))
            else:
                plan.prefills.append(Piece(sequence, sequence.computed, count))
                budget -= count
        return budget

    def _admit(self, plan: Plan, budget: int) -> None:
        """Let waiting sequences in, in order, while rows, blocks and the budget allow it."""
        free = self.max_rows - len(self.running)
        if self.running and free < min(self.refill, len(self.waiting)):
            return
        leads = {s.group: s for s in self.running if s.lead is None and s.computed < s.prompt == len(s.tokens)}
        while self.waiting and len(self.running) < self.max_rows:
            sequence = self.waiting[0]
            lead = leads.get(sequence.group)
            if lead is not None and len(sequence.tokens) == sequence.prompt:
                sequence.lead = lead
                self._enter(sequence)
                continue
            if budget == 0:
                return
            self._match(sequence)
            needed = -(-len(sequence.tokens) // self.pool.size) - len(sequence.blocks)
            if needed > self.pool.available:
                self._give_back(sequence)
                return
            count = min(sequence.todo, budget)
            self._reserve(sequence, count, plan)
            budget -= count
            self._enter(sequence)
            plan.prefills.append(Piece(sequence, sequence.computed, count))
            if len(sequence.tokens) == sequence.prompt:
                leads[sequence.group] = sequence

    def _match(self, sequence: Sequence) -> None:
        """Take over blocks that hold the beginning of its tokens; at least one token is left to compute."""
        size = self.pool.size
        while sequence.reuse and (sequence.sealed + 1) * size < len(sequence.tokens):
            start = sequence.sealed * size
            digest = chain_digest(sequence.digest, sequence.tokens[start : start + size])
            block = self.pool.find(digest)
            if block is None:
                return
            self.pool.hold(block)
            sequence.blocks.append(block)
            sequence.sealed, sequence.digest = sequence.sealed + 1, digest
            sequence.computed = sequence.sealed * size

    def _reserve(self, sequence: Sequence, count: int, plan: Plan) -> bool:
        """Blocks for the next `count` tokens, its own to write into; False if too few are available."""
        pool, size = self.pool, self.pool.size
        start, end = sequence.computed, sequence.computed + count
        new = -(-end // size) - len(sequence.blocks)
        first, shared = start // size, self._shared(sequence)
        if new <= 0 and not shared:
            if end // size > sequence.sealed:
                self._seal(sequence, end)
            return True
        if max(new, 0) + shared > pool.available:
            return False
        if shared:
            old, own = sequence.blocks[first], pool.take()
            pool.release([old])
            sequence.blocks[first] = own
            plan.copies.append((old, own))
            plan.copied = max(plan.copied, start % size)
        sequence.blocks.extend(pool.take() for _ in range(new))
        plan.moved.append(sequence)
        self._seal(sequence, end)
        return True

    def _shared(self, sequence: Sequence) -> bool:
        """Whether others hold the block that it writes into next."""
        first = sequence.computed // self.pool.size
        return first < len(sequence.blocks) and self.pool.refs[sequence.blocks[first]] > 1

    def _victim(self) -> Sequence:
        return self.running[-1]

    def _seal(self, sequence: Sequence, end: int) -> None:
        """Name the blocks that the pass fills: in it, all keys are written before any is read."""
        size = self.pool.size
        while (sequence.sealed + 1) * size <= end:
            start = sequence.sealed * size
            sequence.digest = chain_digest(sequence.digest, sequence.tokens[start : start + size])
            self.pool.seal(sequence.blocks[sequence.sealed], sequence.digest)
            sequence.sealed += 1

    def _followers(self) -> dict[int, list[Sequence]]:
        """By arrival of the lead, the samples that wait for its prompt."""
        found: dict[int, list[Sequence]] = {}
        for sequence in self.running:
            if sequence.lead is not None:
                found.setdefault(sequence.lead.arrival, []).append(sequence)
        return found

    def _fork(self, lead: Sequence, follower: Sequence, plan: Plan) -> None:
        """The lead has computed the prompt: hold the same blocks."""
        for block in lead.blocks:
            self.pool.hold(block)
        follower.blocks = list(lead.blocks)
        follower.computed, follower.sealed, follower.digest = lead.computed, lead.sealed, lead.digest
        follower.lead = None
        plan.forked.append(follower)

    def _enter(self, sequence: Sequence) -> None:
        self.waiting.popleft()
        sequence.slot = self._slots.pop()
        self.running.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, without blocks."""
        self.running.remove(sequence)
        self._leave(sequence)
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._give_back(sequence)
        self._slots.append(sequence.slot)
        sequence.slot, sequence.lead = -1, None

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.sealed, sequence.digest, sequence.computed = [], 0, sequence.root, 0
