"""The one generator of tokens: requests in, completions out, many rows decoded in lock step.

    waiting ──(refill: prefill each prompt once, copy it to its n rows)──> rows ──(one token each per step)──> done
                   ^                                                        │
                   └── when an eighth of the rows is finished: move the last rows into the holes ──┘

Requests wait longest prompt first. A finished row is carried along, frozen, until an eighth of the rows
is (moving a row costs about what carrying it for one step does). What a row draws depends on its own seed
and token index only (sampling.py), so neither `max_batch` nor the neighbours matter.

It does not handle a request that arrives while others are decoded, prompts that share a beginning only,
paged storage, or more than one device.

Shapes: `R` rows in flight, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Bar
from sekkei.core.seed import derive_seed, uniform
from sekkei.engine.cache import KVCache, Prompts
from sekkei.engine.request import Completion, Request
from sekkei.engine.sampling import draw
from sekkei.model.layers import Attend
from sekkei.model.transformer import Transformer

PREFILL_TOKENS = 8192  # padded prompt tokens in one forward pass, unless a single prompt is longer
HASH_DIGITS = 16


class Engine:
    """Generates with a model whose weights it shares or owns.

    Args:
        model: with embedding and lm head; on the device to run on.
        max_batch: most rows decoded at once.
        dtype: autocast dtype of the forward pass; None: the weights' own.
        pad_id: fills the right of shorter prompts; any id of the vocabulary, it is never attended to.
    """

    def __init__(
        self, model: Transformer, *, max_batch: int = 256, dtype: torch.dtype | None = None, pad_id: int = 0
    ) -> None:
        if max_batch < 1:
            raise ConfigError("max_batch", f"got {max_batch}, must be >= 1")
        if model.embed is None or model.lm_head is None:
            raise RuntimeError("the engine needs a model with an embedding and an lm head")
        self.model, self.max_batch, self.dtype, self.pad_id = model, max_batch, dtype, pad_id
        self._hash: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def weights_hash(self) -> str:
        """First 16 hexadecimal digits of SHA-256 over names, dtypes, shapes and bytes of all parameters."""
        if self._hash is None:
            digest = hashlib.sha256()
            for name, parameter in sorted(self.model.named_parameters()):
                digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
                digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._hash = digest.hexdigest()[:HASH_DIGITS]
        return self._hash

    def refresh(self, named_tensors: Mapping[str, Tensor] | None) -> None:
        """The weights have changed.

        Args:
            named_tensors: copied into the parameters of the same names, which must be all; None: the storage
                is shared with the trainer, which has changed it in place.
        """
        if named_tensors is not None:
            own = dict(self.model.named_parameters())
            if own.keys() != named_tensors.keys():
                raise RuntimeError(f"other parameters than the engine's: {sorted(own.keys() ^ named_tensors.keys())}")
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(named_tensors[name])
        self._hash = None

    def generate(self, requests: Sequence[Request], progress: Bar | None = None) -> list[list[Completion]]:
        """Answer all requests.

        Args:
            progress: told how many samples are finished.
        Returns:
            per request, in order, its n completions.
        Raises:
            UserError: a prompt is empty, leaves no room in the context, or holds ids outside the vocabulary.
        """
        run = Generation(self, requests)
        while not run.finished:
            run.step()
            if progress is not None:
                progress.update(run.samples_done, f"{run.tokens_done} tokens")
        return run.completions()

    def stream(self, request: Request) -> Iterator[tuple[int, float]]:
        """Token and log-probability, one by one, of a request with n = 1; a stop token comes last.

        Raises:
            UserError: as `generate`, or n is not 1; at the call, not at the first token.
        """
        if request.n != 1:
            raise UserError(f"a stream answers one sample, got n={request.n}: ask with n=1 or generate")
        return self._stream(Generation(self, [request]))

    def _stream(self, run: Generation) -> Iterator[tuple[int, float]]:
        sent = 0
        while not run.finished:
            run.step()
            while sent < run.tokens_done:
                yield int(run.tokens[0, sent]), float(run.logprobs[0, sent])
                sent += 1

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, last: Tensor) -> Tensor:
        """Logits [R, V] of the token after position `last` [R] of each row of ids [R, T]."""
        kind = self.device.type
        with torch.autocast(kind, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            hidden = self.model.hidden(ids, positions, attend)
            return self.model.logits(hidden[torch.arange(len(ids), device=ids.device), last])


ROW = np.dtype(
    [
        ("sample", np.int64),  # index into the outputs
        ("request", np.int64),
        ("seed", np.int64),
        ("length", np.int64),  # tokens in the cache
        ("count", np.int64),  # tokens drawn
        ("limit", np.int64),  # most tokens that may be drawn
        ("token", np.int64),  # the last one drawn, not in the cache yet
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("temperature", np.float64),
        ("done", np.int64),  # 0: going on, 1: a stop token, 2: the limit
    ]
)
REASONS = ("unfinished", "stop", "length")


class Generation:
    """The schedule of one call: which samples wait, which are rows, what they have drawn.

    Attributes:
        tokens, logprobs: [samples, most tokens], filled from the left.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.engine, self.requests = engine, requests
        config = engine.model.config
        for request in requests:
            check_prompt(request.prompt_ids, config.max_context, config.vocab_size)
        self.samples = sample_table(requests, config.max_context)
        self.final = self.samples.copy()  # each sample's row as it ended
        self.stops = stop_table(requests)
        longest = int(self.samples["limit"].max(initial=0))
        self.tokens = np.zeros((len(self.samples), longest), np.int64)
        self.logprobs = np.zeros((len(self.samples), longest), np.float32)
        lengths = [len(requests[i].prompt_ids) for i in self.samples["request"]]
        self.waiting = deque(int(i) for i in np.argsort(-np.asarray(lengths, np.int64), kind="stable"))
        rows = min(engine.max_batch, len(self.samples))
        self.rows, self.active = np.zeros(rows, ROW), 0
        self.cache = KVCache(config.num_layers, rows)
        self.held: dict[tuple[int, ...], tuple[Prompts, Tensor]] = {}  # a group's prompt, while samples of it wait
        self.samples_done = self.tokens_done = 0
        self.weights_hash = engine.weights_hash

    @property
    def finished(self) -> bool:
        return self.samples_done == len(self.samples)

    @torch.inference_mode()
    def step(self) -> None:
        """Refill if that is worth it, then draw one token for every row."""
        going = int((self.rows["done"][: self.active] == 0).sum())
        wanted = len(self.rows) if self.waiting else self.active
        if going == 0 or (wanted - going) * 8 >= wanted:
            self._compact()
            if self.waiting:
                self._refill()
                return
        self._decode()

    def completions(self) -> list[list[Completion]]:
        answers: list[list[Completion]] = [[] for _ in self.requests]
        for row in self.final:
            sample, count = row["sample"], row["count"]
            answers[row["request"]].append(
                Completion(
                    token_ids=tuple(self.tokens[sample, :count].tolist()),
                    logprobs=tuple(self.logprobs[sample, :count].tolist()),
                    finish_reason=REASONS[row["done"]],  # type: ignore[arg-type]
                    weights_hash=self.weights_hash,
                    seed=int(row["seed"]),
                )
            )
        return answers

    def _decode(self) -> None:
        rows = self.rows[: self.active]
        width = int(rows["length"].max()) + 1
        lengths = self._tensor(rows["length"])
        attend = self.cache.decode(lengths, width)
        ids = self._tensor(rows["token"])[:, None]
        logits = self.engine.forward(ids, lengths[:, None], attend, torch.zeros_like(lengths))
        rows["length"] += rows["done"] == 0
        self._draw(rows, logits)

    def _compact(self) -> None:
        """Move the last unfinished rows into the holes that finished ones left."""
        going = (self.rows["done"][: self.active] == 0).nonzero()[0]
        holes = np.setdiff1d(np.arange(len(going)), going)
        if len(holes):
            movers = going[-len(holes) :]
            width = int(self.rows["length"][movers].max())
            self.cache.move(self._tensor(movers), self._tensor(holes), width)
            self.rows[holes] = self.rows[movers]
        self.active = len(going)

    def _refill(self) -> None:
        """Fill the free rows with waiting samples and draw each one's first token."""
        start = self.active
        chosen = [self.waiting.popleft() for _ in range(min(len(self.rows) - start, len(self.waiting)))]
        self.active = start + len(chosen)
        rows = self.rows[start : self.active]
        rows[:] = self.samples[chosen]
        targets: dict[tuple[int, ...], list[int]] = {}
        for offset, request in enumerate(rows["request"]):
            targets.setdefault(self.requests[request].prompt_ids, []).append(offset)
        logits = None
        for prompts, prefilled, scores in self._prefill(list(targets)):
            offsets = [offset for prompt in prompts for offset in targets[prompt]]
            index = [i for i, prompt in enumerate(prompts) for _ in targets[prompt]]
            self.cache.place(self._tensor(np.asarray(offsets) + start), prefilled, self._tensor(np.asarray(index)))
            if logits is None:
                logits = scores.new_empty(len(rows), scores.shape[1])
            logits[self._tensor(np.asarray(offsets))] = scores[self._tensor(np.asarray(index))]
        assert logits is not None
        self._draw(rows, logits)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], Prompts, Tensor]]:
        """Each distinct prompt's keys, values and next scores [prompts, V], in right-padded batches."""
        held, self.held = self.held, {}
        upcoming = self.requests[self.samples["request"][self.waiting[0]]].prompt_ids if self.waiting else None
        fresh = []
        for prompt in prompts:
            if prompt in held:
                yield [prompt], *held[prompt]
                if prompt == upcoming:
                    self.held[prompt] = held[prompt]
            else:
                fresh.append(prompt)
        for part in prefill_batches(fresh):
            lengths = np.asarray([len(prompt) for prompt in part], np.int64)
            ids = np.full((len(part), lengths.max()), self.engine.pad_id, np.int64)
            for i, prompt in enumerate(part):
                ids[i, : len(prompt)] = prompt
            kept = Prompts()
            positions = torch.arange(ids.shape[1], device=self.engine.device).expand(len(part), -1)
            logits = self.engine.forward(self._tensor(ids), positions, kept, self._tensor(lengths - 1))
            yield part, kept, logits
            if upcoming in part:
                i = part.index(upcoming)
                self.held[upcoming] = kept.take(i, len(upcoming)), logits[i : i + 1].clone()

    def _draw(self, rows: np.ndarray, logits: Tensor) -> None:
        """Draw a token for each of `rows` (a view), and write down those of unfinished ones."""
        uniforms = uniform(rows["seed"], rows["count"])
        drawn, scores = draw(logits, uniforms, rows["temperature"], rows["top_k"], rows["top_p"])
        rows["token"] = drawn.cpu().numpy()
        going = (rows["done"] == 0).nonzero()[0]
        self.tokens[rows["sample"][going], rows["count"][going]] = rows["token"][going]
        self.logprobs[rows["sample"][going], rows["count"][going]] = scores.cpu().numpy()[going]
        rows["count"][going] += 1
        stopped = (rows["token"][:, None] == self.stops[rows["request"]]).any(1)
        ended = np.where(stopped, 1, np.where(rows["count"] >= rows["limit"], 2, 0))
        rows["done"][going] = ended[going]
        over = going[ended[going] > 0]
        self.final[rows["sample"][over]] = rows[over]
        self.samples_done += len(over)
        self.tokens_done += len(going)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.engine.device)


def check_prompt(prompt: Sequence[int], max_context: int, vocab_size: int) -> None:
    """Refuse a prompt that cannot be answered.

    Raises:
        UserError
    """
    if not 0 < len(prompt) < max_context:
        raise UserError(
            f"a prompt of {len(prompt)} tokens: it must have at least 1 and fewer than "
            f"model.max_context={max_context}, so that one token can follow"
        )
    wrong = next((i for i in (min(prompt), max(prompt)) if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise UserError(f"a prompt holds token id {wrong}, the model has {vocab_size}: use the model's own tokenizer")


def sample_table(requests: Sequence[Request], max_context: int) -> np.ndarray:
    """Every sample of every request as the row that it starts as, in order."""
    table = np.zeros(sum(request.n for request in requests), ROW)
    sample = 0
    for index, request in enumerate(requests):
        own, sampling = table[sample : sample + request.n], request.sampling
        own["sample"] = np.arange(sample, sample + request.n)
        own["request"], own["length"] = index, len(request.prompt_ids)
        own["seed"] = [derive_seed(request.seed, i) for i in range(request.n)]
        own["limit"] = min(sampling.max_tokens, max_context - len(request.prompt_ids))
        own["temperature"], own["top_k"], own["top_p"] = sampling.temperature, sampling.top_k, sampling.top_p
        sample += request.n
    return table


def stop_table(requests: Sequence[Request]) -> np.ndarray:
    """[requests, most stop tokens], -1 where a request has fewer."""
    width = max((len(request.sampling.stop_tokens) for request in requests), default=0)
    table = np.full((len(requests), width), -1, np.int64)
    for i, request in enumerate(requests):
        table[i, : len(request.sampling.stop_tokens)] = request.sampling.stop_tokens
    return table


def prefill_batches(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Longest first, cut so that a padded batch has at most `PREFILL_TOKENS` tokens."""
    part: list[tuple[int, ...]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if part and (len(part) + 1) * len(part[0]) > PREFILL_TOKENS:
            yield part
            part = []
        part.append(prompt)
    if part:
        yield part
