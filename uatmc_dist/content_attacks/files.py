"""Photos as a seller uploads them: what counts is the file, written and read back."""

import io
from typing import Any

from PIL import Image

from uatmc_dist.config import FileFormat
from uatmc_dist.encoders.photos import open_photo_bytes
from uatmc_dist.errors import UserError

_PILLOW: dict[FileFormat, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg95": ("JPEG", {"quality": 95}),
    "jpeg75": ("JPEG", {"quality": 75}),
    "webp": ("WEBP", {"quality": 80}),
}


def written(photo: Image.Image, name: FileFormat) -> bytes:
    """UserError for a photo that the format cannot hold."""
    kind, options = _PILLOW[name]
    buffer = io.BytesIO()
    try:
        photo.save(buffer, kind, **options)
    except (ValueError, OSError) as error:
        width, height = photo.size
        raise UserError(
            f"content_attack.formats: {name} cannot hold a photo of {width} x {height} pixels ({error}); leave it out"
        ) from None
    return buffer.getvalue()


def read_back(photo: Image.Image, name: FileFormat) -> Image.Image:
    """What `uatmc data build` would see of it."""
    return open_photo_bytes(written(photo, name))
