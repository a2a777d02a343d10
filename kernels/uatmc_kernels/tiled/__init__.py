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
from uatmc_kernels.tiled.logsumexp_all_items import logsumexp, logsumexp_gradients, logsumexp_second_order
from uatmc_kernels.tiled.perturb import perturb, perturbed_content
from uatmc_kernels.tiled.softmax_all_items_hvp import softmax_all_items_hvp, softmax_mean_change
from uatmc_kernels.tiled.topk_all_items import topk_all_items

__all__ = [
    "bpr_all_items_hvp",
    "bpr_item_gradients",
    "bpr_loss",
    "bpr_loss_and_gradients",
    "bpr_second_order",
    "coordinate",
    "count_above",
    "logsumexp",
    "logsumexp_gradients",
    "logsumexp_second_order",
    "perturb",
    "perturbed_content",
    "softmax_all_items_hvp",
    "softmax_mean_change",
    "tile_width",
    "topk_all_items",
]
