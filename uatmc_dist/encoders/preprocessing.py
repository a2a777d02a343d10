"""What an encoder does to a photo before its first layer, differentiable: for attacks on the pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

_PILLOW: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of its filters."""


def as_pixels(photo: Image.Image, device: torch.device | str = "cpu") -> torch.Tensor:
    """What `Preprocessing` takes of a photo in RGB: [3, h, w] from 0 to 255, float32."""
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).float().to(device)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop of the middle, and (pixel - mean) / std; pixels from 0 to 255."""

    resize: int | tuple[int, int]
    """Of the shorter side, or (height, width)."""
    crop: tuple[int, int] | None
    interpolation: Literal["bilinear", "bicubic"]
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, pixels_n3hw: torch.Tensor) -> torch.Tensor:
        """With antialiasing, as Pillow does it, columns before rows, each rounded to 8 bits; gradients pass through."""
        height, width = pixels_n3hw.shape[-2:]
        if isinstance(self.resize, int):
            shorter = min(height, width)
            size = max(1, int(self.resize * height / shorter)), max(1, int(self.resize * width / shorter))
        else:
            size = self.resize
        if size != (height, width):
            pixels_n3hw = self._resized(self._resized(pixels_n3hw, (height, size[1])), size)
        if self.crop is not None:
            # As torchvision rounds.
            top, left = (round((side - kept) / 2) for side, kept in zip(size, self.crop, strict=True))
            pixels_n3hw = pixels_n3hw[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (
            torch.tensor(values, dtype=pixels_n3hw.dtype, device=pixels_n3hw.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (pixels_n3hw - mean) / std

    def _resized(self, pixels_n3hw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if size == tuple(pixels_n3hw.shape[-2:]):
            return pixels_n3hw
        exact = F.interpolate(pixels_n3hw, size=size, mode=self.interpolation, antialias=True, align_corners=False)
        return exact + (exact.round().clamp(0, 255) - exact).detach()

    @classmethod
    def of_timm(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Of timm's and OpenCLIP's data configurations: the shorter side to size / crop_pct, then the middle; or both
        sides to size."""
        size = config.get("input_size", config.get("size"))
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        resize = int(min(height, width) / config.get("crop_pct", 1.0))
        mean, std = ([255 * value for value in config[name]] for name in ("mean", "std"))
        interpolation = config.get("interpolation", "bicubic")
        if "squash" in (config.get("crop_mode"), config.get("resize_mode")):
            return cls((height, width), None, interpolation, mean, std)
        return cls(resize, (height, width), interpolation, mean, std)

    @classmethod
    def of_transformers(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Of an image processor."""
        size, crop = config["size"], config.get("crop_size")
        resize = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        kept = (crop["height"], crop["width"]) if crop and config.get("do_center_crop") else None
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        normal = config.get("do_normalize", True)
        mean = [value / factor for value in config["image_mean"]] if normal else [0.0] * 3
        std = [value / factor for value in config["image_std"]] if normal else [1 / factor] * 3
        return cls(resize, kept, _PILLOW[config.get("resample", 2)], mean, std)
