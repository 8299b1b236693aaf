"""The model as a whole: packing, recomputation, positions, parts, initial weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sekkei.core.errors import ConfigError
from sekkei.model.attention import DenseAttend
from sekkei.model.config import ModelConfig, RopeScaling
from sekkei.model.init import build, initial_weight, initialize
from sekkei.model.layers import apply_rope, rope_frequencies, rope_tables
from sekkei.model.transformer import Transformer, run_recomputed

CONFIG = ModelConfig(
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=40,
    vocab_size=60,
    head_dim=8,
    qk_norm=True,
)


def random_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model: Transformer, ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
    if positions is None:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
    return model.logits(model.hidden(ids, positions, DenseAttend(segments)))


def test_a_packed_row_equals_its_documents_apart() -> None:
    model = build(CONFIG, 0, dtype=torch.float64)
    lengths = (5, 1, 9, 4)
    ids = random_ids(1, 21)
    segments, positions = torch.full((1, 21), -1), torch.zeros(1, 21, dtype=torch.int64)
    start = 0
    for i, n in enumerate(lengths):
        segments[0, start : start + n], positions[0, start : start + n] = i, torch.arange(n)
        start += n
    packed = logits(model, ids, positions, segments)
    start = 0
    for n in lengths:
        here = slice(start, start + n)
        torch.testing.assert_close(packed[:, here], logits(model, ids[:, here]), rtol=0, atol=1e-12)
        start += n


def test_the_future_is_not_seen() -> None:
    model = build(CONFIG, 0, dtype=torch.float64)
    ids = random_ids(2, 12)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab_size
    difference = (logits(model, ids) - logits(model, changed)).abs().amax((0, 2))
    assert difference[:7].max() == 0
    assert difference[7:].min() > 1e-6


@pytest.mark.parametrize("tied", [False, True])
def test_recomputation_gives_identical_gradients(tied: bool) -> None:
    ids = random_ids(2, 16)
    labels = random_ids(2, 16, seed=1)
    gradients = []
    for recompute in (False, True):
        model = build(replace(CONFIG, tied_embeddings=tied), 0)
        if recompute:
            model.run_block = run_recomputed
        positions = torch.arange(16).expand(2, -1)
        out = model(ids, positions, DenseAttend(torch.zeros_like(ids)), labels, ("logprobs", "entropy"))
        (out.logprobs.sum() + 0.1 * out.entropy.sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(bool(gradient.any()) for gradient in gradients[0].values())


def test_recomputation_saves_memory() -> None:
    saved = {}
    for recompute in (False, True):
        model = build(CONFIG, 0)
        if recompute:
            model.run_block = run_recomputed
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            h = model.hidden(random_ids(4, 64), torch.arange(64).expand(4, -1), DenseAttend(None))
        saved[recompute] = sum(kept.values())
        h.sum().backward()
    assert saved[True] < saved[False] / 3


def test_heads_give_what_is_wanted() -> None:
    model = build(CONFIG, 0, heads=("lm", "value"))
    ids = random_ids(2, 6)
    positions = torch.arange(6).expand(2, -1)
    out = model(ids, positions, DenseAttend(None), ids, ("logprobs", "values"))
    assert out.entropy is None
    assert out.values.shape == out.logprobs.shape == (2, 6)
    assert not out.values.any()  # a scalar head starts at zero
    torch.testing.assert_close(
        out.logprobs, logits(model, ids).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1), rtol=0, atol=1e-5
    )
    reward = build(CONFIG, 0, heads=("reward",))
    with pytest.raises(RuntimeError, match="lm head"):
        reward(ids, positions, DenseAttend(None), ids, ("logprobs",))
    with pytest.raises(RuntimeError, match="value or reward head"):
        build(CONFIG, 0)(ids, positions, DenseAttend(None), ids, ("values",))


def test_parts_in_a_row_equal_the_whole() -> None:
    whole = build(CONFIG, 3, dtype=torch.float64)
    parts = [
        Transformer(CONFIG, heads=(), layers=()),
        Transformer(CONFIG, heads=(), layers=(0, 1), embedding=False),
        Transformer(CONFIG, heads=("lm",), layers=(2,), embedding=False),
    ]
    for part in parts:
        part.double()
        initialize(part, 3)
    names = [name for part in parts for name, _ in part.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in whole.named_parameters())
    ids = random_ids(2, 9)
    positions = torch.arange(9).expand(2, -1)
    x = ids
    for part in parts:
        x = part(x, positions, DenseAttend(None))
    torch.testing.assert_close(parts[-1].logits(x), logits(whole, ids), rtol=0, atol=1e-12)


def test_initial_weights_depend_on_name_and_seed_alone() -> None:
    model, again = build(CONFIG, 5), build(CONFIG, 5)
    for name, parameter in reversed(list(model.named_parameters())):
        assert torch.equal(parameter, initial_weight(name, parameter.shape, CONFIG, 5))
        assert torch.equal(parameter, dict(again.named_parameters())[name])
    deeper = build(replace(CONFIG, vocab_size=61), 5)
    for name, parameter in deeper.named_parameters():
        if name not in ("embed.weight", "lm_head.weight"):
            assert torch.equal(parameter, model.get_parameter(name)), name
    matrices = [p for p in model.parameters() if p.dim() == 2]
    assert len({p.detach().flatten()[0].item() for p in matrices}) == len(matrices)
    assert not torch.equal(build(CONFIG, 6).get_parameter("embed.weight"), model.get_parameter("embed.weight"))


def test_initial_weights_have_their_scale() -> None:
    shape, deep = torch.Size((400, 300)), replace(CONFIG, num_layers=8)
    plain = initial_weight("layers.0.attention.q_proj.weight", shape, deep, 0)
    residual = initial_weight("layers.0.mlp.down_proj.weight", shape, deep, 0)
    assert float(plain.std()) == pytest.approx(1 / math.sqrt(300), rel=0.02)
    assert float(residual.std()) == pytest.approx(1 / math.sqrt(300) / 4, rel=0.02)
    assert initial_weight("norm.weight", torch.Size((5,)), deep, 0).tolist() == [1] * 5


@pytest.mark.parametrize("tied", [False, True])
def test_a_build_is_whole(tied: bool) -> None:
    model = build(replace(CONFIG, tied_embeddings=tied), 0)
    assert not any(p.is_meta for p in model.parameters())
    assert not list(model.buffers())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert model.embed is not None
    assert model.lm_head is not None
    assert (model.lm_head.weight is model.embed.weight) is tied
    with torch.device("meta"):
        assert all(p.is_meta for p in Transformer(CONFIG).parameters())


def test_no_bias_anywhere() -> None:
    assert all(module.bias is None for module in build(CONFIG, 0).modules() if isinstance(module, nn.Linear))


def test_rotary_scores_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(at: int, to: int) -> float:
        tables = [rope_tables(torch.tensor([[p]]), CONFIG, torch.float64) for p in (at, to)]
        return float((apply_rope(q, tables[0]) * apply_rope(k, tables[1])).sum())

    assert score(3, 1) == pytest.approx(score(903, 901), abs=1e-10)
    assert score(3, 1) != pytest.approx(score(4, 1), abs=1e-3)


def test_rotary_tables_follow_explicit_positions() -> None:
    positions = torch.tensor([[0, 5, 1], [7, 7, 2]])
    cos, sin = rope_tables(positions, CONFIG, torch.float64)
    assert cos.shape == (2, 1, 3, 8)
    for b, t in ((0, 1), (1, 0), (1, 2)):
        for pair in range(4):
            angle = int(positions[b, t]) * CONFIG.rope_theta ** (-2 * pair / 8)
            assert float(cos[b, 0, t, pair]) == float(cos[b, 0, t, pair + 4]) == pytest.approx(math.cos(angle))
            assert float(sin[b, 0, t, pair]) == pytest.approx(math.sin(angle))


def test_linear_scaling_divides_positions() -> None:
    scaled = replace(CONFIG, rope_scaling=RopeScaling(factor=4.0))
    positions = torch.arange(0, 40, 4)[None]
    found = rope_tables(positions, scaled, torch.float64)
    torch.testing.assert_close(found, rope_tables(positions // 4, CONFIG, torch.float64), rtol=0, atol=1e-12)


def test_llama3_scaling_keeps_fast_and_divides_slow_frequencies() -> None:
    scaling = RopeScaling(kind="llama3", factor=8.0, original_context=64)
    plain, scaled = rope_frequencies(64, 10_000.0, None), rope_frequencies(64, 10_000.0, scaling)
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 64 / 4, wavelength > 64
    assert fast.any()
    assert slow.any()
    assert (~fast & ~slow).any()
    torch.testing.assert_close(scaled[fast], plain[fast])
    torch.testing.assert_close(scaled[slow], plain[slow] / 8)
    between = (scaled / plain)[~fast & ~slow]
    assert bool(((between > 1 / 8) & (between < 1)).all())
    assert bool((scaled.diff() < 0).all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"head_dim": 7}, "head_dim: got 7"),
        ({"head_dim": None, "hidden_size": 25}, "num_heads=4 must divide hidden_size=25"),
    ],
)
def test_sizes_that_contradict_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **change)
    with pytest.raises(ConfigError, match="factor"):
        RopeScaling(factor=0.5)
