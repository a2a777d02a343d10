"""TorchRec row-wise sharded embedding tables with in-backward fused optimisers."""

from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.shard import shard
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from uatmc_dist.config import TablesConfig
from uatmc_dist.data.histories import Bags
from uatmc_dist.models.initial import initial_rows
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import ranks_of_a_machine
from uatmc_dist.parallel.upload import upload

_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


def _row_wise_plan(collection: torch.nn.Module, sharder: Any, name: str, world_size: int, device_type: str) -> Any:
    """Rank r of several machines lies on GPU r mod their ranks."""
    return construct_module_sharding_plan(
        collection,
        {name: row_wise(compute_kernel="fused")},
        sharder=sharder,
        local_size=ranks_of_a_machine(world_size),
        world_size=world_size,
        device_type=device_type,
    )


class _Sharded:
    """Rows of one table, shared out over the ranks; rank r holds the rows of its `ItemBlock`. One use of the rows a
    step: two would run the optimiser twice.

    A rank looks up in its own block alone, and what it finds travels in one collective (parallel/item_parallel.py):
    every rank knows the whole batch, so that TorchRec's exchange of ids, lengths and rows would send what is known."""

    _sharder: Any
    """TorchRec's sharder of this kind of collection."""

    def __init__(self, name: str, num_rows: int, dim: int, config: TablesConfig, device: torch.device) -> None:
        self.name, self.dim = name, dim
        self.block = ItemBlock(num_rows, dist.get_rank(), dist.get_world_size())
        self._device, self._lr = device, config.lr
        fused: dict[str, Any] = {"optimizer": _OPTIMIZERS[config.optimizer], "learning_rate": config.lr}
        if config.optimizer != "sgd":
            fused["eps"] = 1e-8
        sharder = self._sharder(fused_params=fused)
        collection = self._collection(num_rows)
        plan = _row_wise_plan(collection, sharder, name, dist.get_world_size(), device.type)
        env = ShardingEnv.from_process_group(dist.group.WORLD)
        self._sharded = shard(collection, plan, env=env, device=device, sharder=sharder)
        if self.block.lo == self.block.hi:
            self._skip_kernel()

    def _collection(self, num_rows: int) -> torch.nn.Module:
        """The unsharded collection, on the meta device."""
        raise NotImplementedError

    def _without_rows(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """What the kernel gives on a rank without rows."""
        raise NotImplementedError

    def _skip_kernel(self) -> None:
        """FBGEMM takes a table without rows for one on a GPU, and fails on a CPU. No id comes here, so the kernel has
        nothing to look up; the leaf keeps the collectives of the backward pass going on this rank, too."""
        for lookup in self._sharded._lookups:
            for kernel in lookup._emb_modules:
                kernel.forward = self._without_rows

    @property
    def local_weight(self) -> torch.Tensor:
        """This rank's rows, sharing storage with the table."""
        raise NotImplementedError

    def _features(
        self, ids_E: torch.Tensor, lengths_m: torch.Tensor, weights_E: torch.Tensor | None = None
    ) -> KeyedJaggedTensor:
        """On the device. How long they are is said here: TorchRec would wait for the device to count."""
        values, lengths = (upload(part, self._device) for part in (ids_E - self.block.lo, lengths_m))
        weights = None if weights_E is None else upload(weights_E, self._device)
        sizes = {"length_per_key": [len(ids_E)], "offset_per_key": [0, len(ids_E)]}
        return KeyedJaggedTensor([self.name], values, weights, lengths, stride=len(lengths_m), **sizes)

    def _looked_up(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """In this rank's block, by its own numbers."""
        (lookup,) = self._sharded._lookups
        found = lookup(features)
        ranks = self.block.world_size
        if found.requires_grad and ranks > 1:
            found.register_hook(lambda gradient: gradient / ranks)  # as TorchRec's exchange does
        return found

    def initialise(self, std: float, seed: int) -> None:
        """Seeded normal rows."""
        self.local_weight.copy_(initial_rows(self.name, self.block.lo, self.block.hi, self.dim, std, seed))

    def set_lr(self, lr: float) -> None:
        if lr == self._lr:
            return
        self._lr = lr
        for group in self._sharded.fused_optimizer.param_groups:
            group["lr"] = lr
        self._sharded.fused_optimizer.zero_grad()  # hands the new rate to the fused kernel

    def weights(self) -> dict[str, Any]:
        """Sharded tensors by global name, for a distributed checkpoint."""
        return self._sharded.state_dict()

    def optimizer_state(self) -> dict[str, Any]:
        return self._sharded.fused_optimizer.state_dict()["state"]

    def load(self, weights: dict[str, Any], optimizer_state: dict[str, Any] | None) -> None:
        self._sharded.load_state_dict(weights)
        if optimizer_state is not None:
            whole = self._sharded.fused_optimizer.state_dict()
            whole["state"] = optimizer_state
            self._sharded.fused_optimizer.load_state_dict(whole)


class ShardedTable(_Sharded):
    """One embedding table, looked up row by row."""

    _sharder = EmbeddingCollectionSharder

    def _collection(self, num_rows: int) -> torch.nn.Module:
        config = EmbeddingConfig(
            name=self.name, embedding_dim=self.dim, num_embeddings=num_rows, feature_names=[self.name]
        )
        return EmbeddingCollection(tables=[config], device=torch.device("meta"))

    def _without_rows(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return torch.empty(0, self.dim, device=self._device, requires_grad=True)

    @property
    def local_weight(self) -> torch.Tensor:
        return self._sharded.embeddings[self.name].weight.detach()

    def own_rows(self, ids_n: torch.Tensor) -> torch.Tensor:
        """Rows of these ids, all of this rank's block: nothing travels. The optimiser runs in the backward pass."""
        # A sample for each id. TorchRec needs one even where there is no id: of length zero.
        lengths = torch.ones(len(ids_n), dtype=torch.int32) if len(ids_n) else torch.zeros(1, dtype=torch.int32)
        return self._looked_up(self._features(ids_n, lengths)).view(-1, self.dim)


class ShardedBags(_Sharded):
    """One embedding table whose rows are summed by bag on the ranks that own them."""

    _sharder = EmbeddingBagCollectionSharder

    def _collection(self, num_rows: int) -> torch.nn.Module:
        config = EmbeddingBagConfig(
            name=self.name,
            embedding_dim=self.dim,
            num_embeddings=num_rows,
            feature_names=[self.name],
            pooling=PoolingType.SUM,
        )
        return EmbeddingBagCollection(tables=[config], is_weighted=True, device=torch.device("meta"))

    def _without_rows(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return torch.zeros(features.stride(), self.dim, device=self._device, requires_grad=True)

    @property
    def local_weight(self) -> torch.Tensor:
        return self._sharded.embedding_bags[self.name].weight.detach()

    def own_sums(self, bags: Bags) -> torch.Tensor:
        """Weighted sums [m, dim] of the bags' rows, all of this rank's block: nothing travels. The optimiser runs in
        the backward pass."""
        return self._looked_up(self._features(bags.items_E, bags.lengths_m.int(), bags.weights_E))
