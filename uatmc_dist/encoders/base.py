"""An encoder, and the record by which its features can be made again."""

import hashlib
import importlib
import importlib.metadata
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch

from uatmc_dist.errors import UserError

Content = TypeVar("Content", contravariant=True)
_CONNECT_S = 5
BATCH_ON_GPU = 64


class Encode(Protocol[Content]):
    def __call__(self, contents: Sequence[Content]) -> torch.Tensor:
        """Features [n, width] of one batch."""
        ...


@dataclass(frozen=True)
class Encoder(Generic[Content]):
    """Items are encoded `batch` at a time. On a CPU that is one: as fast as more, and the features of an item are then
    the same to the bit, whatever else is encoded and however many cores there are."""

    encode: Encode[Content]
    record: dict[str, Any]
    """encoder, library, weights_sha256, preprocessing, batch, torch: kept in the catalog."""
    batch: int
    workers: int
    """Threads that call `encode` at once: on a CPU one a core, each of them alone, which waits for nobody."""

    @property
    def name(self) -> str:
        return self.record["encoder"]


def chosen_device(device: str) -> torch.device:
    """auto: a GPU where there is one. Raises UserError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: auto, cpu or cuda is needed")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; take --device cpu, or see `uatmc doctor`")
    return torch.device(device)


def encoder_of(
    encode: Encode[Content],
    name: str,
    package: str,
    model: torch.nn.Module,
    preprocessing: dict[str, Any],
    device: torch.device,
) -> Encoder[Content]:
    """With its record, for that device."""
    batch, workers = (1, len(os.sched_getaffinity(0))) if device.type == "cpu" else (BATCH_ON_GPU, 1)
    record = {
        "encoder": name,
        "library": f"{package} {importlib.metadata.version(package)}",
        "weights_sha256": weights_sha256(model),
        "preprocessing": preprocessing,
        "batch": batch,
        "torch": torch.__version__,
    }
    return Encoder(encode, record, batch, workers)


def check_weights(encoder: Encoder[Any], encoding: dict[str, Any], catalog: Path) -> None:
    """UserError where they are not those that made the catalog's features."""
    if encoder.record["weights_sha256"] != encoding.get("weights_sha256", encoder.record["weights_sha256"]):
        raise UserError(
            f"{catalog}: built with other weights of {encoder.name} than are here now; bring those back, or build again"
        )


def weights_sha256(model: torch.nn.Module) -> str:
    """Of all parameters and buffers in the order of their names: whichever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def offline_without_network() -> None:
    """Makes Hugging Face's libraries look at what is downloaded alone where there is no network: by themselves they try
    for more than a minute. To be called before they are imported."""
    if os.environ.get("HF_HUB_OFFLINE") or urllib.request.getproxies():
        return
    where = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((where.hostname or "", where.port or 443), timeout=_CONNECT_S).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def imported(module: str, package: str, option: str) -> ModuleType:
    """A library of the extra `encode`. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another torch raises RuntimeError
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{option}: {package} is not installed, or not for this torch ({why}); pip install {package}"
        ) from None


def loading_problem(option: str, error: Exception) -> UserError:
    """Of the many ways in which libraries say that there are no such weights, one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return UserError(
        f"{option}: cannot be loaded ({lines[0][:200]}); give the name of a model that is downloaded or can be, or a "
        "folder with its files"
    )
