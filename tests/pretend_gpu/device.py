"""A pretend GPU on a CPU build: operations on its tensors give shapes and devices (FakeTensorMode), all others run.

What would make the host wait for the device is recorded with the function that asked for it. Values, streams and what
happens inside TorchRec, FBGEMM and DeepSpeed are not seen. Importing this registers the device `pretend`, so it belongs
into a process of its own, which ends in os._exit.
"""

import traceback
from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
GPU = torch.device("pretend", 0)
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
_WAITS = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "is_nonzero", "equal")
_INDEXED = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_", "_unsafe_index_put")


class PretendGpu(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        """(kind, function of the project that asked for it)."""
        self.operations = 0

    def clear(self) -> None:
        self.waits.clear()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors_of(args, kwargs)
        device = kwargs.get("device")
        is_asked = device is not None and torch.device(device).type == GPU.type
        if not is_asked and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return function(*args, **kwargs)
        name = function._schema.name.split("::")[1]
        if any(tensor.device.type == GPU.type for tensor in tensors):
            self.operations += 1
            if name == "_local_scalar_dense":
                self._note("to the host: item, tolist or bool")
                return True if tensors[0].dtype == torch.bool else 1
            self._look(name, args, kwargs)
            if name == "nonzero":  # as where nothing is zero
                with _FAKE:
                    return torch.empty(tensors[0].numel(), tensors[0].ndim, dtype=torch.int64, device=GPU)
        if name in ("_to_copy", "copy_"):
            self._look_at_copy(name, args, kwargs, tensors, device)
            if name == "copy_" and tensors[0].device.type != GPU.type and not isinstance(tensors[0], FakeTensor):
                return tensors[0]
            if device is not None and not is_asked:  # what the host got: numbers that it can go on with
                return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        with _FAKE:
            if not all(isinstance(tensor, FakeTensor) for tensor in tensors):
                args, kwargs = tree_map_only(torch.Tensor, _as_fake, (args, kwargs))
            return function(*args, **kwargs)

    def _look(self, name: str, args: Any, kwargs: Any) -> None:
        if name in _WAITS:
            self._note(f"to the host: {name}")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self._note("to the host: repeat_interleave without output_size")
        if name in _INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._note(f"to the host: {name} by a mask")
            if any(index.device.type == "cpu" for index in indices):
                self._note(f"to the device: {name} with an index on the CPU")

    def _look_at_copy(self, name: str, args: Any, kwargs: Any, tensors: Any, device: Any) -> None:
        source = tensors[0] if name == "_to_copy" else tensors[1]
        target = torch.device(device) if name == "_to_copy" and device is not None else tensors[0].device
        if source.device.type == target.type:
            return
        is_async = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if target.type != GPU.type:
            self._note("to the host: copy")
        elif not is_async:
            self._note("to the device: blocking copy")

    def _note(self, kind: str) -> None:
        frames = [
            f for f in traceback.extract_stack() if "/uatmc_dist/" in f.filename or "/uatmc_kernels/" in f.filename
        ]
        places = [f"{frame.filename.rsplit('/', 1)[1]}:{frame.name}" for frame in reversed(frames)]
        self.waits[kind, places[0] if places else "?"] += 1


def _tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """No operator has them deeper than in a list, and pytree takes a tenth of the time of all that is done here."""
    given = (
        one for many in (*args, *kwargs.values()) for one in (many if isinstance(many, (list, tuple)) else (many,))
    )
    return [one for one in given if isinstance(one, torch.Tensor)]


def _as_fake(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU beside those of the device: its shape is what counts."""
    if isinstance(tensor, FakeTensor):
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
