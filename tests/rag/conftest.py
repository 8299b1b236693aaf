"""A small folder of documents and its index, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sekkei.rag.chunk import ChunkConfig
from sekkei.rag.embed import Hashed
from sekkei.rag.index import Index
from sekkei.rag.store import LanceStore

FILES = {
    "tower.md": "# The tower\n\nThe tower was built in 1889. It stands 324 metres tall, antenna included.\n\n"
    "## Colours\n\nIt is painted every seven years. The paint is called tower brown.\n",
    "bridge.txt": "The old bridge\n\nThe bridge has twelve arches of stone. A toll was taken until 1784.\n",
    "soup.md": "# Tomato soup\n\nPeel the tomatoes and cook them with basil for half an hour.\n",
    "code.py": 'def checksum(data: bytes) -> int:\n    """Add all bytes modulo 256."""\n    return sum(data) % 256\n',
    "nihon.txt": "梅雨\n\n梅雨は北海道と小笠原諸島を除く日本で見られる気象現象で、"
    "五月から七月にかけて来る雨季である。\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def build(folder: Path, files: dict[str, str], config: ChunkConfig | None = None) -> Index:
    """An index of the files, with hashed n-grams as vectors."""
    write(folder / "files", files)
    index = Index.create(LanceStore(str(folder / "index")), Hashed(), folder / "files", config or ChunkConfig())
    index.update()
    return index


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The index of FILES; tests read it."""
    return build(tmp_path_factory.mktemp("library"), FILES)


@pytest.fixture
def make_index(tmp_path: Path):
    """files -> an index of its own."""
    return lambda files, config=None: build(tmp_path, files, config)
