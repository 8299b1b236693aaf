"""A trained quality classifier as a block: hashed n-grams, logistic regression (`sekkei data train-quality`).

    text ──words (characters where none are parted), 1- and 2-grams──> hashed counts ──weights──> P(good)

The same idea as fastText's classifiers in GPT-3's and DCLM's pipelines (Joulin et al. 2016; Brown et al. 2020,
appendix A; Li et al. 2024, section 4.4), as one matrix product. The model is a file; its digest is part of the key.

Not handled: several classes; a text longer than `sample_chars` is judged by its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sekkei.core.errors import ConfigError
from sekkei.text.blocks.block import Apply, Result, Rewrites
from sekkei.text.classifier import load
from sekkei.text.document import Document, drop


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Texts that a trained classifier calls good.

    Args:
        model: file that `sekkei data train-quality` wrote. min_score: least probability of being good, in [0, 1].
    """

    name: ClassVar[str] = "classifier"
    version: ClassVar[int] = 1
    rewrites: ClassVar[Rewrites] = ""

    model: str
    min_score: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ConfigError("min_score", f"{self.min_score} must lie in 0 … 1")
        if not Path(self.model).is_file():
            raise ConfigError("model", f"{self.model}: no such file; sekkei data train-quality writes one")

    def inputs(self) -> tuple[Path, ...]:
        """Files whose content the outcome depends on."""
        return (Path(self.model),)

    def build(self) -> Apply:
        model = load(Path(self.model))

        def apply(document: Document) -> Result:
            score = model.score(document.text)
            if score < self.min_score:
                return None, [drop(document, "classifier", score, self.min_score)]
            return document, []

        return apply
