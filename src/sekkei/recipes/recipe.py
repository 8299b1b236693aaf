"""The Recipe: one file that describes a model's whole life, validated as a whole.

A recipe is found by name among those that ship with the package, or by path. `extends: laptop` takes
another recipe's keys as a base; `key.path=value` on the command line comes last. Budgets are steps and
tokens, never seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sekkei.core import config as loader
from sekkei.core.errors import ConfigError, UserError
from sekkei.core.stage_names import PAIRED
from sekkei.data.corpus import DataConfig
from sekkei.data.tasks.chain import Form
from sekkei.evals.config import EvalConfig
from sekkei.model.config import ModelConfig
from sekkei.objectives.grpo import GRPOConfig
from sekkei.objectives.preference import DPOConfig, PairingConfig
from sekkei.objectives.pretrain import PretrainConfig
from sekkei.objectives.sft import SFTConfig
from sekkei.parallel.layout import Layout
from sekkei.recipes.documents import DocumentsConfig
from sekkei.recipes.imported import with_imported
from sekkei.recipes.inference import InferenceConfig
from sekkei.recipes.judge import JudgeConfig
from sekkei.recipes.tune import BASE, ROLLOUTS, TuneConfig, check_line, main_line
from sekkei.text.tokenizer import TokenizerConfig

EXTENDS = "extends"  # a key of files alone: it is worked in before a recipe is made
MAX_EXTENDS = 8
LAST, IMPORTED = "last", "imported"
RESERVED = frozenset(
    {
        *("base", "data", "tokenizer", "tokens", IMPORTED, "preferences", "sft", "dpo", "grpo"),
        *("agent", "documents", "inference", "judge", "last"),
    }
)
"""Names of stages and figures that `tune` may not take."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model's life. A stage that is absent (null) is left out; later ones build on the one before.

    Args:
        name: of the run. seed: of everything random. tracker: where metrics are mirrored.
        layout: how training is spread over processes.
        imported: a Hugging Face folder that the life begins with; `model` and `tokenizer.vocab_size` are then its own,
            and pretraining may be left out.
        pretrain: stages in order, by name. sft, dpo, grpo: the main line. tune: further tuning stages, in order.
        preferences: pairs of the SFT model's own answers, made where a stage learns from them.
        inference: strategies at inference time, by the stage whose model is asked; `last`: that of the main line.
        judge: the scorecard.
        documents: questions on docstrings, with retrieval and without.
    """

    name: str
    model: ModelConfig
    imported: str | None = None
    pretrain: dict[str, PretrainConfig] = field(default_factory=dict)
    seed: int = 0
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    layout: Layout = field(default_factory=Layout)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sft: SFTConfig | None = None
    preferences: PairingConfig = field(default_factory=PairingConfig)
    dpo: DPOConfig | None = None
    grpo: GRPOConfig | None = None
    tune: dict[str, TuneConfig] = field(default_factory=dict)
    inference: dict[str, InferenceConfig] = field(default_factory=dict)
    documents: DocumentsConfig | None = None
    judge: JudgeConfig | None = None
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError("name", f"got {self.name!r}, must be letters, digits, '-', '_' and '.'")
        if not self.pretrain and (self.imported is None or not self.tuning):
            raise ConfigError("pretrain", "needs at least one stage; or name a checkpoint to tune, imported: FOLDER")
        first = next(iter(self.pretrain), None)
        if first is not None and self.pretrain[first].rope_factor != 1:
            raise ConfigError(f"pretrain.{first}.rope_factor", "no stage before it, so no positions to rescale")
        for stage, config in self.pretrain.items():
            if config.context > self.model.max_context:
                raise ConfigError(
                    f"pretrain.{stage}.context",
                    f"{config.context} is more than model.max_context={self.model.max_context}",
                )
            for key in ("mixture", "opening"):
                for domain in getattr(config, key):
                    if domain not in self.data.domains:
                        raise ConfigError(
                            f"pretrain.{stage}.{key}.{domain}", f"no such domain; known: {', '.join(self.data.domains)}"
                        )
        self._check_tuning()
        if self.model.vocab_size not in (0, self.tokenizer.vocab_size):
            raise ConfigError(
                "model.vocab_size",
                f"{self.model.vocab_size} differs from tokenizer.vocab_size={self.tokenizer.vocab_size}; leave it out",
            )
        self._check_lengths()
        if self.layout.world > 1:
            self._check_layout()

    def _check_layout(self) -> None:
        """Against the model, and the rows of pretraining; rows of other stages are padded as the layout wants them."""
        model = replace(self.model, vocab_size=self.tokenizer.vocab_size)
        self.layout.check(model)
        for name, stage in self.pretrain.items():
            try:
                self.layout.check(model, tokens=stage.context)
            except ConfigError as error:
                raise ConfigError(error.key, f"{str(error).partition(': ')[2]} (pretrain.{name})") from None

    def _check_tuning(self) -> None:
        for key in ("dpo", "grpo"):
            if getattr(self, key) is not None and self.sft is None:
                raise ConfigError(key, "needs the stage sft before it: a base model does not answer in turns")
        if self.grpo is not None and self.grpo.reward_model:
            raise ConfigError("grpo.reward_model", "the main line trains no reward model; put the stage under tune")
        for name in self.tune:
            if name in RESERVED or not name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(f"tune.{name}", "is not free as a name; use letters, digits, '-' and '_'")
        if self.makes_pairs and self.sft is None and self.preferences.path is None:
            raise ConfigError("sft", "is missing: preference pairs are made of its answers (or of preferences.path)")
        check_line(self.tuning, frozenset(self.tune), list(self.pretrain))
        rewards = [name for name, stage in self.tuning.items() if stage.kind == "reward"]
        answering = [name for name in self.tuning if name not in rewards]
        asked = {f"inference.{name}": (self.asked(name), study.scored_by) for name, study in self.inference.items()}
        if self.judge is not None:
            asked |= {f"judge.stages.{name}": (self.asked(name), self.judge.scored_by) for name in self.judge.stages}
        if self.documents is not None:
            asked["documents.stage"] = (self.asked(self.documents.stage), None)
        for name, wanted in self.inference.items():
            if name in self.tune and self.form_of(name) != "chat" and wanted.study is not None:
                raise ConfigError(f"inference.{name}.study", "asks in turns, this model was never shown any; set null")
            if wanted.budget is not None and self.asks_own(name) and self.eval.path is None:
                raise ConfigError(
                    "eval.path", f"is missing: inference.{name}.budget asks held-out problems of one's own"
                )
        for name in self.tune:
            if self.eval.path is not None and self.tune[name].path == self.eval.path:
                raise ConfigError("eval.path", f"got {self.eval.path}, which tune.{name}.path learns from")
        for key, (name, scored_by) in asked.items():
            if name is not None and name not in answering:
                raise ConfigError(key, f"no such stage with a model: {', '.join(answering) or 'none'}")
            if scored_by not in (None, *rewards):
                known = ", ".join(rewards) or "none"
                raise ConfigError(f"{key}.scored_by", f"got {scored_by!r}; stages of kind reward: {known}")

    @property
    def tuning(self) -> dict[str, TuneConfig]:
        """All stages after pretraining, in order: the main line, then `tune`."""
        return main_line({"sft": self.sft, "dpo": self.dpo, "grpo": self.grpo}) | self.tune

    @property
    def makes_pairs(self) -> bool:
        """Whether a stage learns from preference pairs."""
        return any(stage.kind in PAIRED for stage in self.tuning.values())

    def asked(self, name: str) -> str | None:
        """The stage that `last` (of the main line), or a stage's own name, means; None: there is no main line."""
        line = [stage for stage in self.tuning if stage not in self.tune]
        return (line[-1] if line else None) if name == LAST else name

    def stage_of(self, start: str) -> str:
        """The stage that `base` (the last of pretraining, or what was imported), or a stage's own name, means."""
        if start != BASE:
            return start
        return f"pretrain.{list(self.pretrain)[-1]}" if self.pretrain else IMPORTED

    def key_of(self, name: str) -> str:
        """Where a tuning stage's settings stand in the recipe."""
        return f"tune.{name}.{self.tune[name].kind}" if name in self.tune else name

    def form_of(self, name: str) -> Form:
        """How problems are put to the model of a stage."""
        return self.tune[name].form if name in self.tune else "chat"

    def asks_own(self, name: str) -> bool:
        """Whether a stage's problems are those of a file."""
        return name in self.tune and self.tune[name].path is not None

    def _check_lengths(self) -> None:
        longest = {"eval.max_tokens": self.eval.max_tokens}
        if self.makes_pairs:
            longest["preferences.max_tokens"] = self.preferences.max_tokens
        for name, stage in self.tuning.items():
            if stage.kind in ROLLOUTS:
                longest[f"{self.key_of(name)}.max_tokens"] = stage.config.max_tokens
        for key, tokens in longest.items():
            if tokens >= self.model.max_context:
                raise ConfigError(
                    key, f"{tokens} leaves no room for the prompt in model.max_context={self.model.max_context}"
                )

    @property
    def total_tokens(self) -> int:
        """Tokens read in pretraining."""
        return sum(stage.tokens for stage in self.pretrain.values())


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files("sekkei.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by shipped name or by path, with command-line overrides.

    Raises:
        UserError: no such recipe. ConfigError: a key that does not fit.
    """
    written = resolve(name)
    data = loader.override(written, overrides)
    if EXTENDS in data:
        raise ConfigError(EXTENDS, "stands in a recipe's file; on the command line name the recipe itself")
    for part in ("pretrain", "tune", "inference"):
        stages = data.get(part)
        if isinstance(stages, dict):  # null removes a stage that the base recipe has
            data[part] = {key: stage for key, stage in stages.items() if stage is not None}
    data = with_imported(data)
    for key in data:
        if key not in Recipe.__dataclass_fields__ and difflib.get_close_matches(str(key), [EXTENDS], cutoff=0.8):
            raise ConfigError(str(key), f"unknown key; did you mean {EXTENDS!r}?")
    try:
        return loader.from_mapping(Recipe, data)
    except ConfigError as error:
        _check_stage_name(error.key, list(written.get("pretrain") or {}))
        raise


def _check_stage_name(key: str, known: Sequence[str]) -> None:
    """An override may begin a new pretraining stage; one that is not complete is more likely a slip of the pen."""
    parts = key.split(".")
    if len(parts) > 1 and parts[0] == "pretrain" and parts[1] not in known:
        near = difflib.get_close_matches(parts[1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the recipe has {', '.join(known) or 'none'}"
        raise ConfigError(f"pretrain.{parts[1]}", f"no such stage; {hint} A new one needs all its keys ({key})")


def resolve(name: str) -> dict[str, Any]:
    """The recipe's keys with `extends` worked in, as a plain mapping."""
    chain: list[dict[str, Any]] = []
    here: Path | None = None
    while len(chain) <= MAX_EXTENDS:
        data, here = _read(name, here)
        base = data.pop(EXTENDS, None)
        data.setdefault("name", Path(name).stem)
        chain.append(data)
        if base is None:
            merged: dict[str, Any] = {}
            for layer in reversed(chain):
                merged = loader.merge(merged, layer)
            return merged
        if not isinstance(base, str):
            raise ConfigError(EXTENDS, f"got {base!r}, must be one recipe's name or path")
        name = base
    raise ConfigError(EXTENDS, f"more than {MAX_EXTENDS} recipes extend each other; is there a circle?")


def _read(name: str, relative_to: Path | None) -> tuple[dict[str, Any], Path]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if relative_to is not None and not path.is_absolute():
            path = relative_to / path
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file; give a path, or a shipped name: {', '.join(shipped())}")
        return loader.read_yaml(path), path.parent
    if name not in shipped():
        raise UserError(f"{name}: no such recipe; shipped: {', '.join(shipped())}; a file's name ends in .yaml")
    text = resources.files("sekkei.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return dict(loader.parse_yaml(text, f"{name}.yaml")), Path.cwd()
