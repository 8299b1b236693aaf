"""The one generator of tokens: rollouts, evaluation, chat and search all ask it.

    requests ─► waiting samples ─► prefill (each prompt once) ─► decode in lock step ─► completions
                                        ▲ rows that finish make room for waiting samples

A group of n samples shares one prefill: the prompt's keys and values are copied into n rows. All state of
running rows lives in arrays, so a step costs the same Python work for one row as for hundreds. Sampling
draws depend on (sample seed, token index) alone, so batching does not change what is said, up to the
rounding of matmuls of other shapes.

It does not page its cache, chunk long prompts or share prefixes across requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sekkei.core.errors import UserError
from sekkei.core.seed import derive_seed
from sekkei.engine.cache import DecodeAttend, KVCache, PrefillAttend
from sekkei.engine.request import Completion, Request
from sekkei.engine.sampling import SamplingRows, sample
from sekkei.model.transformer import Transformer

PREFILL_TOKENS = 16_384  # per forward pass, padding included
REFILL_SHARE = 4  # waiting samples join when a quarter of the rows is free: few, fuller prefills


class Engine:
    """Generates with a model that it shares or owns.

    Args:
        model: with an lm head. max_batch: rows that run at once.
    """

    def __init__(self, model: Transformer, *, max_batch: int = 256) -> None:
        self.model, self.max_batch = model, max_batch
        self._hash: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def weights_hash(self) -> str:
        """The first 16 hex digits of SHA-256 over all named weights."""
        if self._hash is None:
            digest = hashlib.sha256()
            for name, parameter in sorted(self.model.named_parameters()):
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._hash = digest.hexdigest()[:16]
        return self._hash

    @torch.no_grad()
    def refresh(self, named_tensors: Mapping[str, Tensor] | None) -> None:
        """Take new weights; None: the model's own storage was changed in place."""
        if named_tensors is not None:
            for name, parameter in self.model.named_parameters():
                parameter.copy_(named_tensors[name])
        self._hash = None

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        """Answer all requests.

        Args:
            progress: called as progress(finished samples, all samples).
        Returns:
            for each request, in order, its n completions, in order.
        Raises:
            UserError: a prompt is empty or does not fit the context.
        """
        waiting = [(r, s) for r, request in enumerate(requests) for s in range(request.n)]
        total = len(waiting)
        results: list[list[Completion | None]] = [[None] * request.n for request in requests]
        batch = _Batch(self, min(self.max_batch, total)) if total else None
        position = finished = 0
        while batch is not None and (position < total or batch.size):
            free = batch.rows - batch.size
            if position < total and (batch.size == 0 or free >= max(1, batch.rows // REFILL_SHARE)):
                joining = waiting[position : position + free]
                batch.join([_Job(requests[r], r, s) for r, s in joining])
                position += len(joining)
            else:
                batch.decode()
            for job, completion in batch.collect():
                results[job.request_index][job.sample_index] = completion
                finished += 1
            if progress:
                progress(finished, total)
        return [[completion for completion in group if completion is not None] for group in results]

    def stream(self, request: Request) -> Iterator[tuple[int, float]]:
        """Tokens of one answer with their log-probabilities, as they are drawn."""
        batch = _Batch(self, 1)
        batch.join([_Job(request, 0, 0)])
        while True:
            count = int(batch.counts[0])
            yield int(batch.tokens[0, count - 1]), float(batch.logprobs[0, count - 1])
            if batch.collect():
                return
            batch.decode()

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[PrefillAttend, Tensor]:
        """Run prompts; returns their keys and values, and the logits [P, V] after each last token."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        attend = PrefillAttend()
        hidden = self.model.hidden(ids.to(self.device), positions.to(self.device), attend)
        last = hidden[torch.arange(len(prompts)), lengths - 1]
        return attend, self.model.logits(last)


@dataclass(frozen=True)
class _Job:
    """One sample of one request."""

    request: Request
    request_index: int
    sample_index: int

    @property
    def seed(self) -> int:
        return derive_seed(self.request.seed, self.sample_index)


class _Batch:
    """Running samples as arrays; rows 0 … size-1 run."""

    def __init__(self, engine: Engine, rows: int) -> None:
        self.engine, self.rows, self.size = engine, rows, 0
        weight = engine.model.norm.weight if engine.model.norm is not None else None
        dtype = weight.dtype if weight is not None else torch.float32
        self.cache = KVCache(engine.model.config, rows, dtype, engine.device)
        self.jobs: list[_Job] = []
        self.sampling = SamplingRows.of([], [])
        self.lengths = np.zeros(0, np.int64)  # tokens in the cache
        self.counts = np.zeros(0, np.int64)  # tokens drawn
        self.limits = np.zeros(0, np.int64)
        self.stops = np.zeros((0, 1), np.int64)
        self.tokens = np.zeros((0, 1), np.int64)
        self.logprobs = np.zeros((0, 1), np.float32)

    @torch.inference_mode()
    def join(self, jobs: Sequence[_Job]) -> None:
        """Prefill the prompts of new samples, each prompt once, and draw their first tokens."""
        for job in jobs:
            _check(job.request, self.engine.model.config.max_context)
        start = 0
        while start < len(jobs):
            part = _within_budget(jobs[start:])
            self._join_part(part)
            start += len(part)

    def _join_part(self, jobs: Sequence[_Job]) -> None:
        prompts: dict[tuple[int, ...], int] = {}
        source = [prompts.setdefault(job.request.prompt_ids, len(prompts)) for job in jobs]
        attend, logits = self.engine.prefill(list(prompts))
        lengths = np.array([len(job.request.prompt_ids) for job in jobs])
        self.cache.reserve(int(lengths.max()) + 1)
        rows = torch.arange(self.size, self.size + len(jobs))
        for layer, (k, v) in enumerate(attend.kept):
            self.cache.fill(layer, rows, torch.tensor(source), k, v)
        context = self.engine.model.config.max_context
        limits = [min(job.request.sampling.max_tokens, context - n) for job, n in zip(jobs, lengths, strict=True)]
        new = SamplingRows.of([job.request.sampling for job in jobs], [job.seed for job in jobs])
        self.jobs += jobs
        self.sampling = self.sampling.join(new)
        self.lengths = np.concatenate([self.lengths, lengths])
        self.counts = np.concatenate([self.counts, np.zeros(len(jobs), np.int64)])
        self.limits = np.concatenate([self.limits, np.array(limits, np.int64)])
        self._widen(jobs)
        first = self.size
        self.size += len(jobs)
        self._draw(logits[torch.tensor(source)], np.arange(first, self.size))

    def _widen(self, jobs: Sequence[_Job]) -> None:
        """Make the two-dimensional arrays large enough for the new rows."""
        width = max(self.tokens.shape[1], int(self.limits.max()))
        stop_width = max(self.stops.shape[1], *(len(job.request.sampling.stop_tokens) for job in jobs))
        stops = np.full((len(jobs), stop_width), -1, np.int64)
        for row, job in enumerate(jobs):
            stops[row, : len(job.request.sampling.stop_tokens)] = job.request.sampling.stop_tokens
        self.stops = np.concatenate([_pad(self.stops, stop_width, -1), stops])
        self.tokens = np.concatenate([_pad(self.tokens, width, 0), np.zeros((len(jobs), width), np.int64)])
        self.logprobs = np.concatenate([_pad(self.logprobs, width, 0), np.zeros((len(jobs), width), np.float32)])

    @torch.inference_mode()
    def decode(self) -> None:
        """One token more for every row."""
        rows = np.arange(self.size)
        lengths = torch.from_numpy(self.lengths).to(self.engine.device)
        self.cache.reserve(int(self.lengths.max()) + 1)
        ids = torch.from_numpy(self.tokens[rows, self.counts - 1])[:, None].to(self.engine.device)
        attend = DecodeAttend(self.cache, lengths)
        hidden = self.engine.model.hidden(ids, lengths[:, None], attend)
        self.lengths += 1
        self._draw(self.engine.model.logits(hidden[:, 0]), rows)

    def _draw(self, logits: Tensor, rows: np.ndarray) -> None:
        tokens, logprobs = sample(logits, self.sampling.take(rows), self.counts[rows])
        self.tokens[rows, self.counts[rows]] = tokens.cpu().numpy()
        self.logprobs[rows, self.counts[rows]] = logprobs.cpu().numpy()
        self.counts[rows] += 1

    @torch.inference_mode()
    def collect(self) -> list[tuple[_Job, Completion]]:
        """Completions of rows that are done; the rows are given free."""
        if not self.size:
            return []
        last = self.tokens[np.arange(self.size), self.counts - 1]
        stopped = (self.stops == last[:, None]).any(1)
        done = stopped | (self.counts >= self.limits)
        if not done.any():
            return []
        found = []
        for row in np.flatnonzero(done):
            count = self.counts[row]
            reason: Literal["stop", "length"] = "stop" if stopped[row] else "length"
            completion = Completion(
                token_ids=tuple(self.tokens[row, :count].tolist()),
                logprobs=tuple(self.logprobs[row, :count].tolist()),
                finish_reason=reason,
                weights_hash=self.engine.weights_hash,
                seed=self.jobs[row].seed,
            )
            found.append((self.jobs[row], completion))
        self._keep(np.flatnonzero(~done))
        return found

    def _keep(self, rows: np.ndarray) -> None:
        """Close the gaps: rows beyond the new size move into the holes before it."""
        size = len(rows)
        holes = np.setdiff1d(np.arange(size), rows)
        movers = rows[rows >= size]
        order = np.arange(size)
        order[holes] = movers
        if len(holes):
            self.cache.move(torch.from_numpy(holes), torch.from_numpy(movers))
        self.jobs = [self.jobs[i] for i in order]
        self.sampling = self.sampling.take(order)
        for name in ("lengths", "counts", "limits", "stops", "tokens", "logprobs"):
            setattr(self, name, getattr(self, name)[order])
        self.size = size


def _check(request: Request, context: int) -> None:
    tokens = len(request.prompt_ids)
    if not 0 < tokens < context:
        raise UserError(f"a prompt has {tokens} tokens; it needs at least 1 and fewer than model.max_context={context}")


def _within_budget(jobs: Sequence[_Job]) -> Sequence[_Job]:
    """The longest beginning of `jobs` whose distinct prompts, padded, fit one prefill (at least one job)."""
    prompts: set[tuple[int, ...]] = set()
    longest = 0
    for count, job in enumerate(jobs):
        prompts.add(job.request.prompt_ids)
        longest = max(longest, len(job.request.prompt_ids))
        if count and len(prompts) * longest > PREFILL_TOKENS:
            return jobs[:count]
    return jobs


def _pad(array: np.ndarray, width: int, value: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)
