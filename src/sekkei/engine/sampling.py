"""From scores to one token per row, drawn by one uniform number each.

    z = logits / temperature        w = exp(z - max z)        Z = Σ w
    token   = first i with w_0 + … + w_i > u Z        (inverse of the cumulative distribution)
    logprob = z[token] - max z - log Z

The number u is a function of (sample's seed, index of the token) alone, so a sample does not depend on what
else is in the batch, up to the rounding of the matmuls: a CPU multiplies 8 rows not bit for bit as it
does 1, which can move a draw that falls within ~1e-7 of a boundary. Sums are taken per block of 64 tokens first,
in the weights' float32, and over blocks and inside one block after that, in float64; so a vocabulary of 128k costs one
pass, and a token's share is right to ~1e-7, as its weight is.

Top-k keeps the k most probable tokens, then top-p the fewest of these that hold a share p of what top-k
left (Holtzman et al. 2020, section 3.1), then min-p those with at least that share of the best one's probability;
ties go to the lower token id. What a penalty or a constraint made of the scores comes in as `steered`. The returned
log-probability is that of the model's own scores, before all of these. It does not handle biases.

Shapes: `R` rows, `V` vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sekkei.core.errors import UserError

BLOCK = 64


def draw(
    logits: Tensor,
    uniforms: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray | None = None,
    steered: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token per row.

    Args:
        logits: [R, V], any float dtype. uniforms: [R] float64 in [0, 1).
        temperature, top_k, top_p, min_p: [R], as in `Sampling`; temperature 0 takes the most probable token.
        steered: [R, V], scores to draw from instead; -inf is never drawn, and one per row must be finite.
    Returns:
        tokens [R] int64 and logprobs [R] float32 under softmax(logits / temperature), 1 where greedy.
    Raises:
        UserError: a score is NaN or +inf.
    """
    device, greedy = logits.device, temperature == 0
    min_p = np.zeros(len(logits)) if min_p is None else min_p
    scale = np.where(greedy, 1.0, temperature)
    z, highest, weights, sums = _weights(logits, scale)
    total = sums.sum(-1)
    if not bool(torch.isfinite(total).all()):
        raise UserError("the model's scores are not finite numbers: its weights are broken, or its dtype overflows")
    wanted = z
    if steered is not None:
        wanted, _, weights, sums = _weights(steered, scale)
    tokens = torch.empty(len(z), dtype=torch.int64, device=device)
    cut = ~greedy & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    for rows, how in ((greedy, "most probable"), (~greedy & ~cut, "all"), (cut, "cut")):
        if not rows.any():
            continue
        index = slice(None) if rows.all() else torch.from_numpy(rows.nonzero()[0]).to(device)
        if how == "most probable":
            tokens[index] = wanted[index].argmax(-1)
            continue
        u = torch.from_numpy(uniforms[rows]).to(device)
        if how == "all":
            tokens[index] = inverse_cdf(weights[index], sums[index], u)
        else:
            kept = cut_weights(weights[index], top_k[rows], top_p[rows], min_p[rows])
            tokens[index] = inverse_cdf(kept, _block_sums(kept), u)
    logprobs = (z.gather(-1, tokens[:, None]) - highest).squeeze(-1) - total.log().float()
    return tokens, logprobs


def _weights(logits: Tensor, scale: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores over temperature [R, V], the highest [R, 1], exp(score - highest) [R, V], and sums of its blocks."""
    z = logits.float()
    if (scale != 1).any():
        z = z / torch.from_numpy(scale).to(z.device, torch.float32)[:, None]
    highest = z.amax(-1, keepdim=True)
    weights = (z - highest).exp_()
    return z, highest, weights, _block_sums(weights)


def top_logprobs(logits: Tensor, temperature: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best tokens of each row under softmax(logits / temperature): log-probabilities and ids [R, count]."""
    scale = torch.from_numpy(np.where(temperature == 0, 1.0, temperature)).to(logits.device, torch.float32)
    best = (logits.float() / scale[:, None]).log_softmax(-1).topk(min(count, logits.shape[1]), dim=-1)
    return best.values, best.indices


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> None:
    """Repetition penalty, in place: scores [V] of the tokens `seen` [S] (Keskar et al. 2019, section 4.1)."""
    values = scores[seen]
    scores[seen] = torch.where(values > 0, values / penalty, values * penalty)


def inverse_cdf(weights: Tensor, sums: Tensor, u: Tensor) -> Tensor:
    """First token at which the running sum of weights passes `u` of the total.

    A token of weight 0 is never drawn.

    Args:
        weights: [R, V] float32, not normalised. sums: [R, ⌈V / 64⌉] float64, of each block. u: [R] float64.
    Returns:
        [R] int64.
    """
    running = sums.cumsum(-1)
    target = (u * running[:, -1])[:, None]
    block = torch.searchsorted(running, target, right=True)
    before = running.gather(-1, block) - sums.gather(-1, block)
    columns = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(-1, columns.clamp(max=weights.shape[1] - 1)).double()
    inside = inside.masked_fill_(columns >= weights.shape[1], 0).cumsum_(-1)
    # the two sums are rounded differently, so what is left may pass the block's end by an ulp
    left = torch.minimum((target - before).clamp_(min=0), inside[:, -1:] * (1 - 2**-52))
    return (block * BLOCK + torch.searchsorted(inside, left, right=True)).squeeze(-1)


def cut_weights(weights: Tensor, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray | None = None) -> Tensor:
    """Set to 0 what top-k, top-p and min-p leave out.

    Args:
        weights: [R, V] float32. top_k: [R], 0 = all. top_p: [R], 1 = all. min_p: [R], 0 = all.
    """
    vocabulary = weights.shape[1]
    k = torch.from_numpy(np.where(top_k == 0, vocabulary, top_k)).to(weights.device)
    p = torch.from_numpy(np.where(top_p == 1, np.inf, top_p)).to(weights.device, torch.float64)
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocabulary, device=weights.device)
    ordered = ordered.masked_fill(ranks >= k[:, None], 0)
    running = ordered.cumsum(-1, dtype=torch.float64)
    before = running - ordered
    ordered = ordered.masked_fill((before >= p[:, None] * running[:, -1:]) & (ranks > 0), 0)
    if min_p is not None and min_p.any():
        least = torch.from_numpy(min_p).to(weights.device, torch.float32)[:, None] * ordered[:, :1]
        ordered = ordered.masked_fill(ordered < least, 0)
    return torch.zeros_like(weights).scatter_(-1, order, ordered)


def _block_sums(weights: Tensor) -> Tensor:
    """[R, V] -> [R, ⌈V / 64⌉] float64."""
    missing = -weights.shape[1] % BLOCK
    if missing:
        weights = torch.nn.functional.pad(weights, (0, missing))
    return weights.view(len(weights), -1, BLOCK).sum(-1).double()
