"""Photos as files: found by the id of their item, opened as RGB whatever they are."""

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from uatmc_dist.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SMALLEST = 8
"""Pixels of the shorter side: with less there is nothing to see, and shops use such files for `no photo`."""


class BrokenPhoto(Exception):
    """What is wrong with a photo, in a few words."""


class PhotoFolder:
    """The photos below a folder, by path and by stem. Raises UserError for a folder that has none."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the one with the photos (--photos)")
        self.folder = folder
        self._by_stem: dict[str, list[str]] = {}
        self._paths: set[str] = set()
        for path in self._walk(folder):
            self._paths.add(path)
            self._by_stem.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)
        if not self._paths:
            raise UserError(f"{folder}: no photo in it ({', '.join(SUFFIXES)}); give the folder with the photos")

    @staticmethod
    def _walk(folder: Path) -> Iterator[str]:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    yield os.path.relpath(os.path.join(parent, name), folder)

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, name: str) -> str | None:
        """Path below the folder, of an id, a file name or a path. Raises UserError where two files have that name."""
        if name in self._paths:
            return name
        found = self._by_stem.get(name) or self._by_stem.get(os.path.splitext(os.path.basename(name))[0], [])
        if len(found) > 1:
            raise UserError(f"{self.folder}: {found[0]} and {found[1]} are both photos of {name}; keep one of them")
        return found[0] if found else None


class PhotoPaths:
    """Photos by the paths that a table gives, absolute or below the table's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        """Unknown: the folder is not searched."""
        return 0

    def find(self, name: str) -> str | None:
        return name if (self.folder / name).is_file() else None


def open_photo(path: Path) -> Image.Image:
    """RGB, upright (EXIF), the first frame of an animation, transparency on white, 16 bits as 8.

    Raises BrokenPhoto for what cannot be seen."""
    return open_photo_bytes(path.read_bytes())


def open_photo_bytes(content: bytes) -> Image.Image:
    """The same of a file's content."""
    if not content:
        raise BrokenPhoto("empty, or cannot be read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as file:
                file.seek(0)
                photo = ImageOps.exif_transpose(file)
                photo.load()
    except Exception as error:  # Pillow's readers raise whatever a damaged header makes of them
        why = (
            "not an image"
            if isinstance(error, Image.UnidentifiedImageError)
            else next(iter(str(error).splitlines()), type(error).__name__)
        )
        raise BrokenPhoto(why) from None
    if min(photo.size) < SMALLEST:
        raise BrokenPhoto(f"{photo.size[0]} x {photo.size[1]} pixels")
    return _as_rgb(photo)


def _as_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(photo, dtype=np.float32)
        most = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, most) * (255 / most)).round().astype(np.uint8)).convert("RGB")
    if photo.has_transparency_data:
        layer = photo.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return photo.convert("RGB")
