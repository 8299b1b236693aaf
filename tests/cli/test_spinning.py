"""How OpenMP's idle threads wait is set before torch is imported, and a user's own choice stays."""

from __future__ import annotations

import os
import sys

import pytest

from sekkei.cli import main

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the command line sets is undone
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.usefixtures("unset")
def test_threads_spin_for_a_bounded_while() -> None:
    assert main(["--version"]) == 0
    if sys.platform == "linux":
        assert [os.environ[name] for name in NAMES] == ["active", "1000", "0"], "without a count, `active` never sleeps"
    else:
        assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_the_users_own_policy_stays(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("OMP_WAIT_POLICY", "passive")
    assert main(["--version"]) == 0
    assert [os.environ.get(name) for name in NAMES] == ["passive", None, None]
