"""Is a text good? Logistic regression over hashed n-grams, trained from two folders of examples.

    x[b] = Σ over the text's 1- and 2-grams g with hash b of 1 / sqrt(grams)        b < 2^bits
    P(good | x) = σ(w · x + w0)          w minimises log loss + l2/2 · |w|², by AdaGrad over seeded epochs

Words are those of the MinHash shingles (characters in scripts that do not part words), so English and Japanese share
one model (Joulin et al. 2016, "Bag of Tricks"; hashing: Weinberger et al. 2009; AdaGrad: Duchi et al. 2011).
Training is deterministic: examples are shuffled by seed, sums are in a fixed order.

    file: .npz with weights [2^bits] float32, bias, and a JSON of how it was made and how well it does on held-out texts

Not handled: more than two classes, calibration on another domain than the examples'.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sekkei.core import atomic
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.seed import derive_seed
from sekkei.text.dedup import mixed, word_marks, words_of

_BASE = np.uint64(0x9E3779B97F4A7C15)
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TrainQuality:
    """How a classifier is trained.

    Args:
        bits: log2 of the number of weights. sample_chars: of each text that are looked at.
        epochs, rate, l2: of AdaGrad. held_out: share of the examples that only measure, in [0, 0.5].
    """

    bits: int = 18
    sample_chars: int = 4096
    epochs: int = 8
    rate: float = 0.5
    l2: float = 1e-6
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 26:
            raise ConfigError("bits", f"{self.bits} must lie in 8 … 26")
        if not 0 <= self.held_out <= 0.5:
            raise ConfigError("held_out", f"{self.held_out} must lie in 0 … 0.5")
        for key in ("sample_chars", "epochs"):
            if getattr(self, key) < 1:
                raise ConfigError(key, f"{getattr(self, key)} must be at least 1")
        if self.rate <= 0 or self.l2 < 0:
            raise ConfigError("rate" if self.rate <= 0 else "l2", "must be positive (l2 may be 0)")


class Model:
    """A trained classifier.

    Args:
        weights: [2^bits] float32. about: how it was made and measured.
    """

    def __init__(self, weights: np.ndarray, bias: float, sample_chars: int, about: dict[str, Any]) -> None:
        self.weights, self.bias, self.sample_chars, self.about = weights, bias, sample_chars, about

    def score(self, text: str) -> float:
        """P(good) in [0, 1]."""
        places, values = features(text, len(self.weights), self.sample_chars)
        return float(_sigmoid(float(self.weights[places] @ values) + self.bias))

    def save(self, path: Path) -> None:
        """Write the model, atomically."""
        buffer = io.BytesIO()
        about = json.dumps({**self.about, "sample_chars": self.sample_chars}, sort_keys=True)
        np.savez(buffer, weights=self.weights, bias=np.float64(self.bias), about=np.array(about))
        atomic.write_bytes(path, buffer.getvalue())


def load(path: Path) -> Model:
    """The inverse of `Model.save`.

    Raises:
        UserError: the file is no such model.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            about = json.loads(str(found["about"]))
            return Model(found["weights"], float(found["bias"]), about.pop("sample_chars"), about)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is no quality classifier ({error}); sekkei data train-quality writes one") from None


def features(text: str, size: int, sample_chars: int) -> tuple[np.ndarray, np.ndarray]:
    """(places [F] ascending, values [F] float32) of a text's hashed 1- and 2-grams."""
    marks = word_marks(words_of(text[:sample_chars]))
    pairs = marks[:-1] * _BASE + marks[1:]
    hashed = mixed(np.concatenate([marks, pairs])) % np.uint64(size)
    places, counts = np.unique(hashed.astype(np.int64), return_counts=True)
    return places, (counts / np.sqrt(max(1, len(hashed)))).astype(np.float32)


def train(good: Sequence[str], bad: Sequence[str], config: TrainQuality) -> Model:
    """Learn to tell `good` texts from `bad` ones.

    Raises:
        UserError: a side has under ten texts.
    """
    for name, texts in (("GOOD", good), ("BAD", bad)):
        if len(texts) < 10:
            raise UserError(f"{name} holds {len(texts)} texts; a classifier needs at least 10 of each kind")
    rng = np.random.Generator(np.random.PCG64(derive_seed("train-quality", config.seed)))
    rows = [features(text, 1 << config.bits, config.sample_chars) for text in (*good, *bad)]
    labels = np.array([1.0] * len(good) + [0.0] * len(bad))
    order = rng.permutation(len(rows))
    held = order[: round(config.held_out * len(rows))]
    learned = order[len(held) :]
    weights, bias = _descend(rows, labels, learned, config, rng)
    model = Model(weights.astype(np.float32), bias, config.sample_chars, {})
    scores = np.array([_sigmoid(float(model.weights[p] @ v) + bias) for p, v in (rows[i] for i in held)])
    about = {"config": asdict(config), "good": len(good), "bad": len(bad), "held_out": len(held)}
    if len(held):
        about["held_out_accuracy"] = float(((scores >= 0.5) == (labels[held] == 1)).mean())
        about["held_out_auc"] = area_under_curve(scores, labels[held] == 1)
    model.about = about
    return model


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties half; None without both kinds."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    _, place, tied = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(tied) - (tied - 1) / 2
    return float((mean_rank[place][positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def _descend(
    rows: list[tuple[np.ndarray, np.ndarray]],
    labels: np.ndarray,
    learned: np.ndarray,
    config: TrainQuality,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """AdaGrad on mini-batches; both kinds weigh the same in sum."""
    size = 1 << config.bits
    weights, squares = np.zeros(size), np.full(size, 1e-8)
    bias, bias_square = 0.0, 1e-8
    balance = np.where(labels == 1, 1 / max(1, labels[learned].sum()), 1 / max(1, (1 - labels[learned]).sum()))
    balance *= len(learned) / 2
    for _ in range(config.epochs):
        for start in range(0, len(learned), _BATCH):
            batch = learned[start : start + _BATCH]
            gradient: dict[str, list[np.ndarray]] = {"at": [], "by": []}
            slope = 0.0
            for i in batch:
                places, values = rows[i]
                wrong = (_sigmoid(float(weights[places] @ values) + bias) - labels[i]) * balance[i] / len(batch)
                gradient["at"].append(places)
                gradient["by"].append(wrong * values)
                slope += wrong
            at, back = np.unique(np.concatenate(gradient["at"]), return_inverse=True)
            by = np.bincount(back, np.concatenate(gradient["by"])) + config.l2 * weights[at]
            squares[at] += by**2
            weights[at] -= config.rate * by / np.sqrt(squares[at])
            bias_square += slope**2
            bias -= config.rate * slope / bias_square**0.5
        learned = rng.permutation(learned)
    return weights, bias


def _sigmoid(x: float) -> float:
    return float(0.5 * (1 + np.tanh(0.5 * x)))
