"""From the pixels of an item's photo to its projected row: differentiable, and through the catalog's own pipeline.

n  photos    d  width of a projected row
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from uatmc_dist.data.catalog import Catalog
from uatmc_dist.encoders.base import check_weights
from uatmc_dist.encoders.cache import content_hash
from uatmc_dist.encoders.photos import BrokenPhoto, open_photo_bytes
from uatmc_dist.encoders.visual import PixelEncoder, open_visual_encoder
from uatmc_dist.errors import UserError


class PhotoRows:
    """Of one trained model. Raises UserError for a catalog that does not know its photos and their encoder."""

    def __init__(self, model: Any, catalog: Catalog, device: str = "auto") -> None:
        encoding = catalog.meta["modalities"].get("visual", {}).get("encoding")
        self._paths, self._folder = catalog.contents("photo"), catalog.path
        self._hashes = catalog.contents("photo_xxh3")
        if encoding is None or self._paths is None:
            raise UserError(
                f"{catalog.path}: has no photos and no encoder to attack; build the catalog from photos (uatmc data "
                "build, or uatmc data synthesize --photos)"
            )
        self._encoder = open_visual_encoder(encoding["encoder"], device)
        check_weights(self._encoder, encoding, catalog.path)
        self._pixel_encoder = PixelEncoder(encoding["encoder"], device)
        self.workers, self.batch = self._encoder.workers, self._encoder.batch
        """Threads that may attack at once, and how many photos each of them."""
        self.device = self._pixel_encoder.device
        self._project = model.dense.visual
        self._project.to(self.device)

    def path(self, item: int) -> Path | None:
        assert self._paths is not None
        found = self._paths[item]
        return None if found is None else self._folder / found  # one outside of the catalog is absolute

    def photo(self, item: int) -> Image.Image | None:
        """None where the item has no photo. Raises UserError where it is gone or another one."""
        path = self.path(item)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise UserError(f"{path}: {why}; the catalog was built from it, bring it back") from None
        if self._hashes is not None and self._hashes[item] not in (None, content_hash(content)):
            raise UserError(f"{path}: not the photo that the catalog was built from; bring it back, or build again")
        try:
            return open_photo_bytes(content)
        except BrokenPhoto as error:
            raise UserError(f"{path}: cannot be seen ({error}); bring the photo back") from None

    def rows(self, photos: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(features [n, width], projected rows of length 1 [n, d]) of photos [3, h, w] of any sizes, pixels from 0 to
        255; differentiable."""
        features = self._pixel_encoder(photos)
        return features, F.normalize(self._project(features), dim=1)

    @torch.no_grad()
    def row_of(self, photo: Image.Image) -> torch.Tensor:
        """[d], as the catalog would have it: through the encoder of `uatmc data build`, features kept in float16."""
        features = self._encoder.encode([photo]).half().float().to(self.device)
        return F.normalize(self._project(features), dim=1)[0].cpu()


def as_photo(pixels_3hw: torch.Tensor) -> Image.Image:
    """Rounded to 8 bits."""
    whole = pixels_3hw.detach().cpu().round().clamp(0, 255).byte()
    return Image.fromarray(whole.permute(1, 2, 0).contiguous().numpy())
