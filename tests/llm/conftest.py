"""Shared by the tests of llm/."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# The suite imports by path (importlib mode), so a helper module beside the tests is loaded by hand, once.
if "llm_endpoint" not in sys.modules:
    spec = importlib.util.spec_from_file_location("llm_endpoint", Path(__file__).with_name("endpoint.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["llm_endpoint"] = module
    spec.loader.exec_module(module)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own key and proxy must not reach the tests."""
    for name in (
        "SEKKEI_LLM_URL",
        "SEKKEI_LLM_KEY",
        "SEKKEI_LLM_MODEL",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
