"""The one generator of tokens: requests come and go while others are being answered.

    submit ──> scheduler: whose tokens, in which blocks ──> runner: one pass ──> draw ──> append / finish ──┐
                   ^                                                                                        │
                   └────────────────────────────────── step ────────────────────────────────────────────────┘

`generate` answers a list, `stream` one request token by token; a server submits and steps by itself. What a
sample draws depends on its own seed and token index only (sampling.py), so neither `max_batch` nor the neighbours
matter, up to the rounding of matmuls: a CPU multiplies 8 rows not bit for bit as it does 1.

It does not handle several devices, or two threads at once: whoever steps owns the engine.

Shapes: `R` rows that draw in a step, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor

from sekkei.core.errors import ConfigError, UserError
from sekkei.core.progress import Bar
from sekkei.core.seed import uniform
from sekkei.engine.adapters import read_adapter
from sekkei.engine.answer import Answer, Sample, check_prompt
from sekkei.engine.blocks import BlockPool
from sekkei.engine.request import Completion, Request
from sekkei.engine.runner import Runner, as_tops
from sekkei.engine.sampling import draw, penalize, top_logprobs
from sekkei.engine.scheduler import Piece, Plan, Scheduler
from sekkei.engine.scheduler import Sequence as Row
from sekkei.model.transformer import Transformer

BLOCK = 32  # tokens; on a CPU, smaller blocks spend more time between matmuls, larger ones share less
PREFILL_TOKENS = 8192  # of prompts in one pass
STORE_BYTES = 2**31  # most of keys and values, unless one context needs more
HASH_DIGITS = 16
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "top_logprobs")
SLOT = np.dtype(
    [("seed", np.int64), ("limit", np.int64), *((name, np.float64) for name in SETTINGS), ("constrained", np.bool_)]
)


class Engine:
    """Generates with a model whose weights it shares or owns.

    Args:
        model: with embedding and lm head; on the device to run on.
        max_batch: most rows decoded at once.
        dtype: autocast dtype of the forward pass; None: the weights' own.
        block_size: tokens per block of keys and values. blocks: how many; None: for `max_batch` whole contexts, at
            most `STORE_BYTES`.
        prefill_tokens: most prompt tokens in one pass; fewer delay running rows less.
        refill: admit waiting requests only once this many rows are free; None: an eighth of `max_batch`, which is
            fastest for a whole list (a server takes 1).
        tokenizer: for requests that want text or stop strings.
        adapters: by name, folders with LoRA adapters of this model, which requests may name.
        graphs: decode in passes of a few fixed shapes, on CUDA captured as graphs (graphs.py); None: on CUDA, unless
            the environment has SEKKEI_CUDA_GRAPHS=0 or the model has experts.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        max_batch: int = 256,
        dtype: torch.dtype | None = None,
        block_size: int = BLOCK,
        blocks: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        refill: int | None = None,
        tokenizer: tokenizers.Tokenizer | None = None,
        adapters: Mapping[str, Path] | None = None,
        graphs: bool | None = None,
    ) -> None:
        for key, value in (("max_batch", max_batch), ("block_size", block_size), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ConfigError(key, f"got {value}, must be >= 1")
        if model.embed is None or model.lm_head is None:
            raise RuntimeError("the engine needs a model with an embedding and an lm head")
        self.model, self.max_batch, self.tokenizer = model, max_batch, tokenizer
        least = -(-model.config.max_context // block_size)
        if blocks is None:
            blocks = max(least, min(max_batch * least, STORE_BYTES // self._block_bytes(block_size, dtype)))
        if blocks < least:
            raise ConfigError("blocks", f"got {blocks}, must be >= {least}: one context of {model.config.max_context}")
        self.pool = BlockPool(blocks, block_size)
        refill = max(1, max_batch // 8) if refill is None else refill
        self.scheduler = Scheduler(self.pool, max_rows=max_batch, prefill_tokens=prefill_tokens, refill=refill)
        self.runner = Runner(model, blocks, block_size, max_batch, dtype, graphs)
        self.runner.adapters = [read_adapter(name, folder, model) for name, folder in (adapters or {}).items()]
        self.adapters = {name: number for number, name in enumerate(adapters or {})}
        self.samples: dict[int, Sample] = {}
        self.drawn = self.prefilled = self.preemptions = 0
        self._slots = np.zeros(max_batch, SLOT)
        self._arrivals = self._groups = 0
        self._hash: str | None = None

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def idle(self) -> bool:
        """No request is unanswered."""
        return self.scheduler.idle

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
        """The weights have changed: keys and values computed with the old ones are not used again.

        Args:
            named_tensors: copied into the parameters of the same names, which must be all; None: the storage
                is shared with the trainer, which has changed it in place.
        Raises:
            RuntimeError: requests are being answered, or other parameters are named.
        """
        if not self.idle:
            raise RuntimeError("weights cannot change while requests are being answered: finish or abort them first")
        if named_tensors is not None:
            own = dict(self.model.named_parameters())
            if own.keys() != named_tensors.keys():
                raise RuntimeError(f"other parameters than the engine's: {sorted(own.keys() ^ named_tensors.keys())}")
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(named_tensors[name])
        self.pool.forget_all()
        self.runner.refresh()
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
        for request in requests:
            self.check(request)
        answers = [self.submit(request) for request in requests]
        own = {sample.sequence.arrival for answer in answers for sample in answer.samples}
        done = tokens = 0
        try:
            while done < len(own):
                drew = [sample for sample in self.step() if sample.sequence.arrival in own]
                tokens += len(drew)
                done += sum(sample.finish_reason is not None for sample in drew)
                if progress is not None:
                    progress.update(done, f"{tokens} tokens")
        except BaseException:
            self.abort(*answers)
            raise
        return [answer.completions() for answer in answers]

    def stream(self, request: Request) -> Iterator[tuple[int, float]]:
        """Token and log-probability, one by one, of a request with n = 1; a stop token comes last.

        Raises:
            UserError: as `generate`, or n is not 1; at the call, not at the first token.
        """
        if request.n != 1:
            raise UserError(f"a stream answers one sample, got n={request.n}: ask with n=1 or generate")
        self.check(request)
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[tuple[int, float]]:
        answer = self.submit(request)
        (sample,), sent = answer.samples, 0
        try:
            while sample.finish_reason is None:
                self.step()
                for at in range(sent, len(sample.logprobs)):
                    yield sample.drawn[at], sample.logprobs[at]
                sent = len(sample.logprobs)
        finally:
            self.abort(answer)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            UserError
        """
        check_prompt(request.prompt_ids, self.model.config.max_context, self.model.config.vocab_size)
        if (request.sampling.stop or request.sampling.text) and self.tokenizer is None:
            raise UserError("stop strings and text need an engine with a tokenizer")
        if request.adapter is not None and request.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise UserError(f"adapter {request.adapter!r} is not known; the engine has {known}")

    def submit(self, request: Request) -> Answer:
        """Queue a request that `check` has passed; `step` answers it."""
        answer = Answer(request, self.weights_hash, self.model.config.max_context, self.tokenizer)
        for sample in answer.samples:
            sequence = Row(
                arrival=self._arrivals,
                tokens=list(request.prompt_ids),
                prompt=len(request.prompt_ids),
                group=self._groups,
                reuse=not request.sampling.prompt_logprobs,
                adapter=-1 if request.adapter is None else self.adapters[request.adapter],
            )
            sample.sequence = sequence
            self.samples[self._arrivals] = sample
            self._arrivals += 1
            self.scheduler.add(sequence)
        self._groups += 1
        return answer

    def abort(self, *answers: Answer) -> None:
        """Give up what is unfinished of these; their blocks are free at once."""
        open_ones = [s for a in answers for s in a.samples if s.sequence.arrival in self.samples]
        self.scheduler.finish(sample.sequence for sample in open_ones)
        for sample in open_ones:
            del self.samples[sample.sequence.arrival]

    @torch.inference_mode()
    def step(self) -> list[Sample]:
        """One pass; returns the samples that drew a token, the finished ones among them.

        Raises:
            UserError: the model's scores are not finite; nothing that was being answered goes on.
        """
        plan = self.scheduler.schedule()
        self.preemptions += plan.preempted
        if not plan.decodes and not plan.prefills:
            return []
        self.prefilled += sum(piece.count for piece in plan.prefills)
        try:
            return self._run(plan)
        except BaseException:
            self.scheduler.finish([sample.sequence for sample in self.samples.values()])
            self.samples.clear()
            self.pool.forget_all()
            self.runner.store.clear()
            raise

    def _run(self, plan: Plan) -> list[Sample]:
        self._settle(plan.moved)
        scored = [p for p in plan.prefills if self._wants_scores(p)]
        logits, hidden = self.runner.run(plan, scored)
        for piece in scored:
            self._score_prompt(piece, hidden[piece.sequence.arrival])
        draws = self.scheduler.commit(plan)
        self._settle(plan.forked)
        if not draws:
            return []
        index = np.asarray([index for _, index in draws])
        if len(index) != len(logits) or (index[1:] != index[:-1] + 1).any():
            logits = logits[torch.from_numpy(index).to(self.device)]
        samples = [self.samples[sequence.arrival] for sequence, _ in draws]
        self._draw(samples, logits)
        over = [sample.sequence for sample in samples if sample.finish_reason is not None]
        self.scheduler.finish(over)
        for sequence in over:
            del self.samples[sequence.arrival]
        self.drawn += len(samples)
        return samples

    def _settle(self, moved: Sequence[Row]) -> None:
        """Write down the blocks and settings of sequences that have new blocks, and maybe a new slot."""
        for sequence in moved:
            self.runner.tables[sequence.slot, : len(sequence.blocks)] = sequence.blocks
            sample = self.samples[sequence.arrival]
            s = sample.request.sampling
            settings = (getattr(s, name) for name in SETTINGS)
            self._slots[sequence.slot] = (sample.seed, sample.limit, *settings, sample.constraint is not None)

    def _draw(self, samples: list[Sample], logits: Tensor) -> None:
        """Draw a token for each sample, and write down what it means for it."""
        rows = self._slots[[sample.sequence.slot for sample in samples]]
        counts = np.asarray([len(sample.logprobs) for sample in samples])
        steered = self._steered(samples, rows, logits)
        temperature = rows["temperature"]
        tokens, logprobs = draw(
            logits, uniform(rows["seed"], counts), temperature, rows["top_k"], rows["top_p"], rows["min_p"], steered
        )
        wanted = int(rows["top_logprobs"].max())
        tops = as_tops(*top_logprobs(logits, temperature, wanted)) if wanted else None
        limits = (counts + 1 >= rows["limit"]).tolist()
        for at, (sample, token, logprob) in enumerate(zip(samples, tokens.tolist(), logprobs.tolist())):
            top = tops[at][: sample.request.sampling.top_logprobs] if tops is not None else None
            sample.append(token, logprob, top, limits[at])

    def _steered(self, samples: list[Sample], rows: np.ndarray, logits: Tensor) -> Tensor | None:
        """Scores after penalties and constraints, where some row has any."""
        penalized = (rows["repetition_penalty"] != 1).nonzero()[0]
        constrained = rows["constrained"].nonzero()[0]
        if not len(penalized) and not len(constrained):
            return None
        scores = logits.float().clone()
        for at in penalized.tolist():
            seen = torch.tensor(sorted(set(samples[at].sequence.tokens)), device=self.device)
            penalize(scores[at], seen, float(rows["repetition_penalty"][at]))
        if len(constrained):
            allowed = np.stack([samples[at].constraint.allowed() for at in constrained])  # type: ignore[union-attr]
            index = torch.from_numpy(constrained).to(self.device)
            scores[index] = scores[index].masked_fill(~torch.from_numpy(allowed).to(self.device), -torch.inf)
        return scores

    def _wants_scores(self, piece: Piece) -> bool:
        sample = self.samples[piece.sequence.arrival]
        return sample.request.sampling.prompt_logprobs and piece.start < piece.sequence.prompt - 1

    def _score_prompt(self, piece: Piece, hidden: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that this piece predicts, once also after a preemption."""
        sample = self.samples[piece.sequence.arrival]
        known = len(sample.prompt_logprobs)
        first, end = max(piece.start, known), min(piece.start + piece.count, piece.sequence.prompt - 1)
        if first >= end:
            return
        labels = piece.sequence.tokens[first + 1 : end + 1]
        part = hidden[first - piece.start : end - piece.start]
        found, tops = self.runner.score(part, labels, sample.request.sampling.top_logprobs)
        sample.prompt_logprobs += found
        sample.prompt_tops += tops

    def _block_bytes(self, size: int, dtype: torch.dtype | None) -> int:
        config = self.model.config
        wide = (dtype or next(self.model.parameters()).dtype).itemsize
        return 2 * config.num_layers * config.num_kv_heads * config.head_size * size * wide
