"""What the items of a rank show in one training phase: raw features that projectors read, or, where the projectors are
frozen, rows that were projected once.

n  items asked for, of this rank's block    d  embedding_dim    D  width of a modality's raw features
"""

import numpy as np
import torch

from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.backbone import Progress
from uatmc_dist.models.projected import projected_items
from uatmc_dist.models.projectors import Projectors, movable, project_items, raw_rows
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.upload import upload

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class OwnContent:
    """In the adversarial phase the projectors are frozen, unless the encoder's features are what is perturbed."""

    frozen: dict[str, torch.Tensor]
    """float32 weights on the CPU, by parameter name, that do not train in this phase."""
    is_moved_at_encoder: bool
    """Whether an adversary moves raw rows (adversarial.at=encoder); projected ones otherwise."""

    def __init__(
        self,
        dense: Projectors,
        catalog: Catalog,
        block: ItemBlock,
        config: Config,
        phase: PhaseName,
        device: torch.device,
        progress: Progress,
    ) -> None:
        """`dense`: on `device`; its projectors are frozen here. `progress`: of the items that are projected."""
        self._dense, self._catalog, self._block, self._device = dense, catalog, block, device
        self._features = OwnFeatures(catalog, block, device)
        self._projected: tuple[torch.Tensor, torch.Tensor] | None = None
        self.frozen = {}
        self.is_moved_at_encoder = phase == "adversarial" and config.adversarial.at == "encoder"
        if phase == "adversarial" and not self.is_moved_at_encoder:
            dense.freeze_projectors()
            dtype = NUMBER_FORMATS[config.adversarial.projected_precision]
            self._projected = projected_items(dense, catalog, block.lo, block.hi, device, dtype, progress)
            named = dense.named_parameters()
            self.frozen = {name: p.detach().cpu().clone() for name, p in named if not p.requires_grad}

    def movable(self, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What an adversary may move, ids ascending: projected rows v, t [n, d], constants in the adversarial phase; or
        raw ones [n, D], leaves of a graph."""
        if self.is_moved_at_encoder:
            return movable(self._features.rows(ids_n), len(ids_n), self._dense)
        if self._projected is None:
            return self._dense.project(self._features.rows(ids_n))
        v_nd, t_nd = self._projected
        if len(ids_n) < len(v_nd):
            index_n = upload(ids_n - self._block.lo, self._device)
            v_nd, t_nd = v_nd[index_n], t_nd[index_n]
        return v_nd.float(), t_nd.float()

    def shown(self, visual: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected rows [n, d] of movable ones, moved or not; differentiable."""
        return self._dense.project_moved(visual, text) if self.is_moved_at_encoder else (visual, text)

    @torch.no_grad()
    def projected(self, ids_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected rows v, t [n, d], ids ascending, with the weights of this moment."""
        return self.shown(*self.movable(ids_n))

    @torch.no_grad()
    def of_block(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected rows v, t of all of this rank's items, with the weights of this moment."""
        if self._projected is None:
            return project_items(self._dense, self._catalog, self._block.lo, self._block.hi, self._device)
        v_nd, t_nd = self._projected
        return v_nd.float(), t_nd.float()


class OwnFeatures:
    """Raw feature rows of this rank's items. What asks for all of them at every step has them from the GPU, in the
    catalog's number format, where a quarter of the memory that is free there holds them: the float32 copy that the
    projectors' backward pass keeps is two more of them."""

    def __init__(self, catalog: Catalog, block: ItemBlock, device: torch.device) -> None:
        self._catalog, self._block, self._device = catalog, block, device
        self._kept: dict[str, torch.Tensor] = {}
        size = sum(catalog.features[name].width * catalog.features[name].dtype.itemsize for name in catalog.modalities)
        self._fits = 4 * (block.hi - block.lo) * size <= _free_bytes(device)

    def rows(self, ids_n: torch.Tensor) -> dict[str, torch.Tensor]:
        """[n, D] in float32, by modality."""
        if not self._fits or len(ids_n) < self._block.hi - self._block.lo:
            return raw_rows(self._catalog, ids_n.numpy(), self._device)
        if not self._kept:
            for name, rows in raw_rows(self._catalog, ids_n.numpy(), torch.device("cpu")).items():
                stored = torch.from_numpy(np.empty(0, self._catalog.features[name].dtype)).dtype
                self._kept[name] = rows.to(stored).to(self._device)
        return {name: rows.float() for name, rows in self._kept.items()}


def _free_bytes(device: torch.device) -> int:
    """Of a GPU; on a CPU none: the catalog is mapped into memory there."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
