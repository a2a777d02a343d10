"""What stands in for TorchRec, DeepSpeed, collectives and Triton's launches on the pretend GPU."""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.pretend_gpu.device import GPU
from uatmc_dist.parallel.item_parallel import ItemBlock

COLLECTIVES: Counter[tuple[str, str]] = Counter()
"""(name, backend that its tensors would go to)."""
LAUNCHES: Counter[str] = Counter()


class Table:
    """Of uatmc_dist/models/tables.py, ShardedTable and ShardedBags."""

    def __init__(self, name: str, num_rows: int, dim: int, config: Any, device: torch.device) -> None:
        self.name, self.dim = name, dim
        self.block = ItemBlock(num_rows, dist.get_rank(), dist.get_world_size())
        self._rows = torch.empty(self.block.hi - self.block.lo, dim, device=GPU, requires_grad=True)

    def initialise(self, std: float, seed: int) -> None:
        pass

    def _looked_up(self, count: int) -> torch.Tensor:
        return self._rows.sum() + torch.zeros(count, self.dim, device=GPU)

    def own_rows(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.device.type == "cpu"
        return self._looked_up(len(ids))

    def own_sums(self, bags: Any) -> torch.Tensor:
        assert bags.items_E.device.type == "cpu"
        return self._looked_up(len(bags.lengths_m))

    @property
    def local_weight(self) -> torch.Tensor:
        return self._rows.detach()


class Engine:
    """Of uatmc_dist/parallel/engine.py, DenseEngine."""

    def __init__(self, module: torch.nn.Module, training: Any, config: Any, world: Any) -> None:
        self._size = world.size
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def backward(self, partial_loss: torch.Tensor) -> None:
        (partial_loss * self._size).backward()

    def step(self) -> None:
        pass

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            assert (weights[name].device, weights[name].dtype) == (GPU, parameter.dtype), name
            parameter.data.copy_(weights[name])


class _Product(torch.autograd.Function):
    """Of uatmc_dist/models/propagation.py, sparse_product: no sparse tensor lives on the pretend GPU."""

    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, matrix: Any, transposed: Any) -> torch.Tensor:
        assert dense.device == GPU
        ctx.matrices = transposed, matrix
        return dense.new_zeros(matrix.shape[0], dense.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Product.apply(gradient, *ctx.matrices), None, None


def sparse_product(dense: torch.Tensor, matrix: Any, transposed: Any) -> torch.Tensor:
    return _Product.apply(dense, matrix, transposed)


class Matrix:
    def __init__(self, row_E: Any, column_E: Any, value_E: Any, shape: tuple[int, int]) -> None:
        self.shape = shape

    def to(self, device: torch.device) -> "Matrix":
        return self


def in_format(self: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Of Module.to, which swaps tensors that the pretend GPU has references to."""
    for module in self.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False))
    return self


def projected_items(model: Any, catalog: Any, lo: int, hi: int, device: Any, dtype: Any, progress: Any = None) -> Any:
    return tuple(torch.empty(hi - lo, model.dim, dtype=dtype, device=device) for _ in range(2))


def join(rank: int, size: int) -> None:
    """A process group of which this is one rank; collectives are counted and leave their tensors as they are."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    for name in (
        "all_reduce",
        "all_to_all_single",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "broadcast",
    ):
        setattr(dist, name, _counted(name))


def _counted(name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = [one for one in args if isinstance(one, torch.Tensor)]
        assert len({tensor.device for tensor in tensors}) == 1, f"{name}: tensors on several devices"
        COLLECTIVES[name, "nccl" if tensors[0].device.type == GPU.type else "gloo"] += 1
        if name == "all_to_all_single" and tensors[0].device.type == "cpu":
            tensors[0].copy_(tensors[1])  # how many rows each rank has of something: as many as this one
        return _Done() if kwargs.get("async_op") else None

    return call


class _Done:
    def wait(self) -> bool:
        return True


class Guard:
    """Of torch.cuda.device_of: Triton launches on the current device, whichever the tensors are on."""

    current: torch.device | None = None

    def __init__(self, like: torch.Tensor) -> None:
        self._device = like.device

    def __enter__(self) -> None:
        Guard.current = self._device

    def __exit__(self, *error: Any) -> None:
        Guard.current = None


class Kernel:
    """Of Triton: every pointer must lie on the device, which must be the current one; every argument must be there."""

    def __init__(self, name: str, kernel: Any) -> None:
        self._name, self.arg_names = name, kernel.arg_names

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            bound = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
            missing = [name for name in self.arg_names if name not in bound]
            assert not missing, f"{self._name}: {missing} missing"
            pointers = {name: value for name, value in bound.items() if isinstance(value, torch.Tensor)}
            elsewhere = [name for name, value in pointers.items() if value.device != GPU]
            assert not elsewhere, f"{self._name}: {elsewhere} not on the GPU"
            assert Guard.current == GPU, f"{self._name}: launched on the current device, not on that of its tensors"
            assert all(isinstance(size, int) and 0 < size < 1 << 31 for size in grid), f"{self._name}: grid {grid}"
            LAUNCHES[self._name] += 1

        return launch
