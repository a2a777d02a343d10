"""Tiles over items, flat memory, any device: what runs where there is no GPU."""

from uatmc_kernels.tiled._tiles import tile_width
from uatmc_kernels.tiled.bpr_all_items import (
    bpr_item_gradients,
    bpr_loss,
    bpr_loss_and_gradients,
    bpr_second_order,
)
from uatmc_kernels.tiled.bpr_all_items_hvp import bpr_all_items_hvp
from uatmc_kernels.tiled.coordinate import coordinate
from uatmc_kernels.tiled.count_above import count_above
from uatmc_kernels.tiled.perturb import perturb, perturbed_content
from uatmc_kernels.tiled.topk_all_items import topk_all_items

__all__ = [
    "bpr_all_items_hvp",
    "bpr_item_gradients",
    "bpr_loss",
    "bpr_loss_and_gradients",
    "bpr_second_order",
    "coordinate",
    "count_above",
    "perturb",
    "perturbed_content",
    "tile_width",
    "topk_all_items",
]
