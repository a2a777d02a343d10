"""Checksums (XXH3, 64 bits) of what catalogs and runs keep on disk: changed bytes are found when a file is read.

Files are read in chunks, not mapped, so that a check does not count as memory of the process.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import xxhash

from uatmc_dist.errors import UserError

CHUNK = 16 << 20
_READ = 1 << 20
_STAMP = b'"xxh3":"%s"'
_NO_SUM = b"0" * 16
_HEADER = 1 << 16


def checksums(path: Path) -> list[str]:
    """One of every CHUNK bytes. Raises OSError."""
    return [_of_chunk(path, chunk) for chunk in range(-(-path.stat().st_size // CHUNK))]


class CheckedFile:
    """A file that is compared with its checksums chunk by chunk, where it is read, once a process.

    Without checksums (a catalog of an earlier version) nothing is compared.
    """

    def __init__(self, path: Path, expected: Sequence[str], mend: str) -> None:
        self._path, self._expected, self._mend = path, expected, mend
        self._unchecked = set(range(len(expected)))

    def check(self, lo: int = 0, hi: int | None = None) -> None:
        """Bytes [lo, hi). UserError naming the file where they are not what was written."""
        if not self._unchecked:
            return
        last = len(self._expected) if hi is None else -(-hi // CHUNK)
        for chunk in self._unchecked.intersection(range(lo // CHUNK, last)):
            if _of_chunk(self._path, chunk) != self._expected[chunk]:
                raise UserError(f"{self._path}: damaged, its bytes are not those that were written; {self._mend}")
            self._unchecked.discard(chunk)


def _of_chunk(path: Path, chunk: int) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        file.seek(chunk * CHUNK)
        left = CHUNK
        while left and (read := file.read(min(_READ, left))):
            digest.update(read)
            left -= len(read)
    return digest.hexdigest()


STAMP_METADATA = {"xxh3": _NO_SUM.decode()}
"""Metadata of a safetensors file that is going to be stamped."""


def stamp(path: Path) -> None:
    """Writes the checksum of a safetensors file into its own header, in the place of STAMP_METADATA."""
    place = _place_of_stamp(path)
    assert place is not None
    digest = _digest_without_stamp(path, place)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digest)


def check_stamp(path: Path) -> bool:
    """Whether a safetensors file is as it was stamped; so is one of an earlier version, without a stamp. A file is
    read once a process."""
    state = path.stat()
    return _stamp_is_right(path, state.st_mtime_ns, state.st_size, state.st_ino)


def digest_of_stamped(path: Path) -> str:
    """Of a safetensors file, whose stamp it is where it has one."""
    if (place := _place_of_stamp(path)) is None:
        return "".join(checksums(path))
    with path.open("rb") as file:
        file.seek(place)
        return file.read(len(_NO_SUM)).decode()


@lru_cache(maxsize=4096)
def _stamp_is_right(path: Path, *state: int) -> bool:
    place = _place_of_stamp(path)
    if place is None:
        return True
    with path.open("rb") as file:
        file.seek(place)
        return file.read(len(_NO_SUM)) == _digest_without_stamp(path, place)


def _place_of_stamp(path: Path) -> int | None:
    with path.open("rb") as file:
        start = file.read(_HEADER)
    key, end = (_STAMP % b"|").split(b"|")
    found = start.find(key)
    place = found + len(key)
    return place if found >= 0 and start[place + len(_NO_SUM) :].startswith(end) else None


def _digest_without_stamp(path: Path, place: int) -> bytes:
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(place) + _NO_SUM)
        file.seek(len(_NO_SUM), os.SEEK_CUR)
        while read := file.read(_READ):
            digest.update(read)
    return digest.hexdigest().encode()
