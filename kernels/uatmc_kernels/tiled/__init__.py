"""Tiles over items, flat memory, any device: what runs where there is no GPU."""

from uatmc_kernels.tiled.bpr_all_items import bpr_loss, bpr_loss_and_gradients, bpr_second_order
from uatmc_kernels.tiled.bpr_all_items_hvp import bpr_all_items_hvp
from uatmc_kernels.tiled.coordinate import coordinate
from uatmc_kernels.tiled.perturb import perturb
from uatmc_kernels.tiled.topk_all_items import topk_all_items

__all__ = [
    "bpr_all_items_hvp",
    "bpr_loss",
    "bpr_loss_and_gradients",
    "bpr_second_order",
    "coordinate",
    "perturb",
    "topk_all_items",
]
