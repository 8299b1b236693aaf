"""The model's layers as the engine runs them: the same numbers from fewer and larger operations.

    h = norm(x)      [q | k | v] = h [Wq | Wk | Wv]ᵀ      rotate q, k      x += attend(q, k, v) Woᵀ
    h = norm(x)      [g | u]     = h [Wg | Wu]ᵀ                            x += (silu(g) · u) Wdᵀ

Matrices that read the same input lie side by side in one storage, of which the parameters are views: no memory is
added, and a trainer that shares the model changes what the engine reads. After the attention a pass goes on in tiles of
tokens, whose intermediates stay in a CPU's cache. The last layer is finished for those tokens only whose scores are
wanted: of a prompt, the last one; the others have left their keys and values.

Layers with a LoRA adapter of their own compute with it (lora.py), and so do tokens of requests that ask for one of the
engine's (adapters.py). Experts run as the model runs them. It does not handle tensor-parallel parts, or other layers
than the model's.

Shapes: `T` tokens of the pass, `D` model width, `N` query heads, `K` key/value heads, `H` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from sekkei.engine.adapters import Route, Share
from sekkei.model.layers import MLP, Attention, RMSNorm, rope_tables
from sekkei.model.lora import LoRALinear
from sekkei.model.transformer import Transformer

LEAST_TURNS = 1024  # positions whose cos and sin are worked out at once
TILE = 512  # tokens; [TILE, 2 · inner] of a small model fits a CPU's cache, and matmuls are as fast as with more
Turn = tuple[Tensor, Tensor]
"""cos and signed sin of the tokens' positions, each [T, 1, H]."""


class Attend(Protocol):
    """How the pass's queries meet the stored keys.

    wanted: [W] indices of the tokens that are scored; None: all. end: the tokens' positions are below it.
    """

    wanted: Tensor | None
    end: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """q [T, N, H], k, v [T, K, H] -> [T, N, H]."""
        ...

    def ends(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """As a call, for the queries [W, N, H] of the wanted tokens only."""
        ...


class Forward:
    """A model's layers, laid out for the engine.

    Args:
        dtype: of matmuls under autocast, of which copies are held; None: the weights' own.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.turns: Turn | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        self.modules = list(self.model.modules())
        self.layers = [_Layer(int(index), block, self.dtype) for index, block in self.model.layers.items()]

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, share: Share) -> Tensor:
        """Normalised hidden states of the wanted tokens.

        Args:
            ids, positions: [T] int64. share: which tokens belong to which adapter.
        Returns:
            [W, D]
        """
        embed, norm = self.model.embed, self.model.norm
        assert embed is not None
        assert norm is not None
        x = embed(ids)
        turn = self._turn(positions, attend.end, self.dtype or x.dtype)
        tiles = [(slice(at, at + TILE), share.of(slice(at, at + TILE))) for at in range(0, len(x), TILE)]
        whole, wanted = share.of(slice(None)), attend.wanted
        for layer in self.layers[:-1]:
            q, k, v = layer.heads(x, turn, whole)
            layer.finish(x, attend(q, k, v, layer.index).flatten(1), tiles)
        last = self.layers[-1]
        if wanted is None:
            q, k, v = last.heads(x, turn, whole)
            attended = attend(q, k, v, last.index)
        else:
            k, v = last.keys_values(x, turn, whole)
            x, turn, whole = x[wanted], (turn[0][wanted], turn[1][wanted]), share.of(wanted)
            attended = attend.ends(last.queries(x, turn, whole), k, v, last.index)
            tiles = [(slice(None), whole)]
        last.finish(x, attended.flatten(1), tiles)
        return normalised(x, norm)

    def reread(self) -> None:
        """The weights have changed: copies take their values, in place; what was moved is found again."""
        if list(self.model.modules()) != self.modules:
            return self._lay_out()
        for layer in self.layers:
            for product in layer.products:
                product.reread()

    def places(self) -> tuple[int, ...]:
        """Where a pass reads, and which LoRA layers are on: as long as that is equal, a graph of it may be replayed."""
        weights = [product.weight for layer in self.layers for product in layer.products]
        switches = [int(module.on) for module in self.model.modules() if isinstance(module, LoRALinear)]
        return (*(tensor.data_ptr() for tensor in (*self.model.parameters(), *weights)), *switches)

    def _turn(self, positions: Tensor, end: int, dtype: torch.dtype) -> Turn:
        """Taken from a table of the first positions, which grows as texts do."""
        most = self.model.config.max_context
        if self.turns is None or len(self.turns[0]) < end:
            first = torch.arange(max(LEAST_TURNS, min(2 * end, most)), device=positions.device)
            cos, sin = (table[0, 0][:, None] for table in rope_tables(first[None], self.model.config, dtype))
            half = cos.shape[-1] // 2
            self.turns = cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return self.turns[0].index_select(0, positions), self.turns[1].index_select(0, positions)


class _Layer:
    """One block of the model."""

    def __init__(self, index: int, block: nn.Module, dtype: torch.dtype | None) -> None:
        attention, mlp = block.attention, block.mlp
        if not isinstance(attention, Attention):
            raise RuntimeError(f"layer {index}: the engine does not know attention of {type(attention).__name__}")
        self.index, self.block, self.attention = index, block, attention
        self.width, at = attention.head_dim, f"layers.{index}"
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = _Product(three, [f"{at}.attention.{name}" for name in ("q_proj", "k_proj", "v_proj")], dtype)
        self.o = _Product([attention.o_proj], [f"{at}.attention.o_proj"], dtype)
        self.mlp, self.products = mlp, [self.qkv, self.o]
        if isinstance(mlp, MLP):
            names = [f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"]
            self.gate_up = _Product((mlp.gate_proj, mlp.up_proj), names, dtype)
            self.down = _Product([mlp.down_proj], [f"{at}.mlp.down_proj"], dtype)
            self.products += [self.gate_up, self.down]

    def heads(self, x: Tensor, turn: Turn, route: Route) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> queries [T, N, H], keys and values [T, K, H]."""
        found = self.qkv(normalised(x, self.block.attention_norm), route).view(len(x), -1, self.width)
        q, k, v = found.split([rows // self.width for rows in self.qkv.rows], dim=1)
        if self.attention.q_norm is not None and self.attention.k_norm is not None:
            return rotate(self.attention.q_norm(q), turn), rotate(self.attention.k_norm(k), turn), v
        turned = rotate(found[:, : q.shape[1] + k.shape[1]], turn)
        return turned[:, : q.shape[1]], turned[:, q.shape[1] :], v

    def keys_values(self, x: Tensor, turn: Turn, route: Route) -> tuple[Tensor, Tensor]:
        found = self.qkv(normalised(x, self.block.attention_norm), route, slice(1, 3)).view(len(x), -1, self.width)
        k, v = found.chunk(2, dim=1)
        return rotate(k if self.attention.k_norm is None else self.attention.k_norm(k), turn), v

    def queries(self, x: Tensor, turn: Turn, route: Route) -> Tensor:
        q = self.qkv(normalised(x, self.block.attention_norm), route, slice(0, 1)).view(len(x), -1, self.width)
        return rotate(q if self.attention.q_norm is None else self.attention.q_norm(q), turn)

    def finish(self, x: Tensor, attended: Tensor, tiles: Sequence[tuple[slice, Route]]) -> None:
        """What follows the attention, added to x [T, D] in place; attended: [T, N·H]."""
        for tile, route in tiles:
            part = x[tile]
            self.o.add(part, attended[tile], route)
            h = normalised(part, self.block.mlp_norm)
            if not isinstance(self.mlp, MLP):
                part += self.mlp(h[None])[0]
                continue
            gate, up = self.gate_up(h, route).chunk(2, dim=-1)
            self.down.add(part, silu(gate).mul_(up), route)


class _Product:
    """y = x Wᵀ for linear layers that read the same input, with their adapters.

    Args:
        names: of the layers in the model, as adapters know them.
    """

    def __init__(self, layers: Sequence[nn.Linear], names: Sequence[str], dtype: torch.dtype | None) -> None:
        self.rows = [layer.out_features for layer in layers]
        weight = side_by_side([layer.weight for layer in layers])
        self.weight = weight if dtype is None else weight.to(dtype)
        self.layers, self.names = layers, names
        self.starts = [sum(self.rows[:i]) for i in range(len(self.rows) + 1)]
        self.adapted = any(isinstance(layer, LoRALinear) for layer in layers)

    def reread(self) -> None:
        weight = side_by_side([layer.weight for layer in self.layers])
        if weight.dtype == self.weight.dtype:
            self.weight = weight
        else:
            self.weight.copy_(weight)

    def __call__(self, x: Tensor, route: Route, which: slice = slice(None)) -> Tensor:
        """x [T, in] -> [T, Σ out] of the layers `which`."""
        chosen = range(len(self.layers))[which]
        first, end = self.starts[chosen[0]], self.starts[chosen[-1] + 1]
        y = linear(x, self.weight[first:end])
        if not self.adapted and not route:
            return y
        for i in chosen:
            layer, columns = self.layers[i], y[:, self.starts[i] - first : self.starts[i + 1] - first]
            if isinstance(layer, LoRALinear) and layer.on:
                columns += layer.scale * linear(linear(x, layer.lora_a), layer.lora_b)
            for adapter, tokens in route:
                pair = adapter.pairs.get(self.names[i])
                if pair is not None:
                    columns.index_add_(0, tokens, linear(linear(x[tokens], pair[0]), pair[1]).to(y.dtype))
        return y

    def add(self, into: Tensor, x: Tensor, route: Route) -> None:
        """into [T, Σ out] += this product of x [T, in]."""
        if self.adapted or route or into.dtype != self.weight.dtype:
            into += self(x, route)
        else:
            into.addmm_(x, self.weight.t())


def normalised(x: Tensor, norm: RMSNorm) -> Tensor:
    """norm(x) of [T, D]; on a CPU in float32 by half the operations that torch takes for it."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return norm(x)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
    return (x * scale).mul_(norm.weight)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Rotary positions of [T, heads, H], as `apply_rope` does it."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return (x * cos).addcmul_(torch.cat((second, first), dim=-1), sin)


def side_by_side(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One matrix [Σ out, in] of all rows, whose views the parameters are, or become.

    Raises:
        RuntimeError: they differ in dtype or device.
    """
    first = parameters[0]
    if len(parameters) == 1:
        return first.detach()
    if len({(parameter.dtype, parameter.device) for parameter in parameters}) > 1:
        raise RuntimeError("layers that read the same input must have one dtype and device")
    storage, at, lie = first.untyped_storage().data_ptr(), first.data_ptr(), True
    for parameter in parameters:
        own = parameter.untyped_storage().data_ptr() == storage and parameter.data_ptr() == at
        lie, at = lie and own and parameter.is_contiguous(), at + parameter.nbytes
    rows = [len(parameter) for parameter in parameters]
    if lie:
        return first.detach().as_strided((sum(rows), first.shape[1]), (first.shape[1], 1))
    with torch.inference_mode(False), torch.no_grad():  # a trainer may share them: no inference tensors
        whole = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, whole.split(rows), strict=True):
            parameter.data = part
    return whole
