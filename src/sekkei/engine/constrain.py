"""Answers that must follow a JSON schema, by masking the scores of every token that would leave it.

    schema ──grammar──> for each sample: mask [V] of the next token ──draw──> accept ──> next mask … finished

`llguidance` (Earley parser over a lexer of derivatives; guidance-ai) computes the masks; what it needs is the
tokenizer as JSON and the vocabulary's size. A blank may stand between JSON tokens, never more: a weak model would
otherwise fill its answer with blanks, which every schema allows.

It does not handle text before the JSON (thinking), or schemas that `llguidance` cannot express (look-around in
patterns, `format` values that it does not know): those are refused before anything is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sekkei.core.errors import UserError
from sekkei.engine.request import Constraint

ONE_BLANK = {"whitespace_pattern": " ?"}
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class Grammars:
    """Makes constraints for one tokenizer.

    Args:
        tokenizer_json: as `tokenizers.Tokenizer.to_str` gives it. vocab_size: of the model. stop_tokens: ids that end
            an answer.
    Raises:
        UserError: `llguidance` is not installed.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, stop_tokens: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise UserError("answers by a schema need llguidance: pip install 'sekkei[serve]'") from None
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(stop_tokens))
        self.vocab_size = vocab_size

    def json_schema(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        """What makes a fresh constraint for each sample.

        Raises:
            UserError: the schema is not one, or cannot be followed token by token.
        """
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=ONE_BLANK)
        except (TypeError, ValueError) as error:
            raise UserError(f"the JSON schema cannot be read: {error}") from None
        return self._maker(grammar, "the JSON schema")

    def regex(self, pattern: str) -> Callable[[], Constraint]:
        """As `json_schema`, for answers that match a regular expression as a whole."""
        return self._maker(self._library.LLMatcher.grammar_from_regex(pattern), "the pattern")

    def _maker(self, grammar: str, what: str) -> Callable[[], Constraint]:
        failed, messages = self._library.LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        if failed:
            raise UserError(f"{what} cannot be followed: {' '.join(messages[0].split())}")
        return lambda: _Follower(self._library.LLMatcher(self._tokenizer, grammar), self.vocab_size)


class _Follower:
    """One sample's place in a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> np.ndarray:
        """[V] bool. Where the matcher gave up (its limits), everything: `finished` ends the sample."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)
        return mask if mask.any() else np.ones_like(mask)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped() or self._matcher.is_error())
