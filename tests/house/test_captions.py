"""Every source file has a caption in the README, and it is the one that the file itself gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_has_the_captions_of_today() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs" / "captions.py", "--check"], check=False)
    assert result.returncode == 0, "run: python docs/captions.py"


def test_every_folder_of_the_package_is_captioned() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = {path.parent for path in (ROOT / "src" / "sekkei").rglob("*.py") if path.name != "__init__.py"}
    missing = [
        f.name for f in folders if f.name != "sekkei" and f"{f.relative_to(ROOT / 'src' / 'sekkei')}/**" not in text
    ]
    assert not missing
