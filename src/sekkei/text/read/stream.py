"""Compressed files as byte streams that survive damage: what can be read is read, and what went wrong is told.

    file ──(.gz | .zst)──> members one after another ──> bytes        `fault` says where and why it stopped early

gzip and zstd files of a crawl are many small compressed members, one per record. A cut or damaged member ends the
stream like a normal end of file, with `fault` set: Python's own readers raise in the middle of a record, and
FastWARC ends a cut file as if it were whole. `resume_at` finds the next sound member behind the damage.

Memory: compressed input goes in by pieces so small that no bomb unpacks to more than 64 MB at once.

Not handled: zstd dictionaries (ask for the files without them), bzip2, xz.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sekkei.text.blocks.block import need

_GZIP_PIECE = 1 << 16  # deflate gives at most 1,032 bytes for one
_ZSTD_PIECE = 1 << 11  # a block of 4 bytes may stand for 128 KB
_MAGIC = {"gz": b"\x1f\x8b\x08", "zst": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True)
class Fault:
    """Why a stream ended before its file was whole.

    Args:
        reason: "truncated" or "damaged". offset: of the bad member in the file. detail: what the decoder said.
    """

    reason: str
    offset: int
    detail: str


def codec(name: str) -> str:
    """ "gz", "zst" or "" by a file's name."""
    lower = name.lower()
    return "gz" if lower.endswith(".gz") else "zst" if lower.endswith((".zst", ".zstd")) else ""


def bare_name(name: str) -> str:
    """The name without the suffix of its compression."""
    return name[: name.rindex(".")] if codec(name) else name


class Unpacked(io.RawIOBase):
    """The content of a file, unpacked by its name's suffix, from byte `start` of the file on.

    Raises:
        UserError: a .zst file, and `zstandard` is not installed.
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        super().__init__()
        self.kind = codec(path.name)
        self.make = _decoder(self.kind)
        self.piece = _ZSTD_PIECE if self.kind == "zst" else _GZIP_PIECE
        self.file = path.open("rb")
        self.file.seek(start)
        self.fault: Fault | None = None
        self.member = start
        """Where the member that is being read begins in the file."""
        self._decoder: Any = None
        self._ahead = b""  # read from the file, not yet unpacked
        self._taken = start  # file offset behind everything given to decoders, `_ahead` not counted
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out and self._fill():
            pass
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()

    def _fill(self) -> bool:
        """Unpack one more piece; False at the end."""
        if self.fault:
            return False
        data = self._ahead or self.file.read(self.piece)
        self._ahead = b""
        if not self.kind:
            self._out = memoryview(data)
            return bool(data)
        if not data:
            if self._decoder is not None:
                self.fault = Fault("truncated", self.member, "the file ends inside a compressed member")
            return False
        if self._decoder is None:
            self.member = self._taken
            data = data.lstrip(b"\0") if self.kind == "gz" else data  # tapes and tools pad with zeros
            if not data:
                self._taken = self.file.tell()
                return True
            self._decoder = self.make()
        try:
            self._out = memoryview(self._decoder.decompress(data))
        except Exception as error:  # zlib.error, ZstdError: each library has its own
            self.fault = Fault("damaged", self.member, str(error))
            return False
        self._taken = self.file.tell()
        if self._decoder.eof:
            self._ahead = self._decoder.unused_data
            self._taken -= len(self._ahead)
            self._decoder = None
        return True


def resume_at(path: Path, after: int, begins: bytes) -> int | None:
    """Offset of the first sound member behind byte `after` whose content begins with `begins`, or None."""
    kind = codec(path.name)
    if not kind:
        return None
    make, magic = _decoder(kind), _MAGIC[kind]
    with path.open("rb") as file:
        file.seek(after + 1)
        base, window = after + 1, b""
        while data := file.read(1 << 20):
            window += data
            at = window.find(magic)
            while at >= 0:
                if _opening(make(), window[at : at + 2048], kind).startswith(begins):
                    return base + at
                at = window.find(magic, at + 1)
            keep = min(len(window), 2048)
            base, window = base + len(window) - keep, window[-keep:]
    return None


def _opening(decoder: Any, data: bytes, kind: str) -> bytes:
    """What a member begins with; nothing where none begins, though its magic number stands there."""
    broken = need("zstandard", "zstandard", "reading .zst files").ZstdError if kind == "zst" else zlib.error
    try:
        return bytes(decoder.decompress(data))
    except broken:
        return b""


def _decoder(kind: str) -> Callable[[], Any]:
    if kind == "zst":
        library = need("zstandard", "zstandard", "reading .zst files")
        return lambda: library.ZstdDecompressor().decompressobj()
    return lambda: zlib.decompressobj(wbits=31)
