"""Triton kernels for NVIDIA GPUs (compute capability 8.0 and newer); interpreted on a CPU with TRITON_INTERPRET=1."""

from uatmc_kernels.triton.bpr_all_items import (
    bpr_item_gradients,
    bpr_loss,
    bpr_loss_and_gradients,
    bpr_loss_and_gradients_atomic,
    bpr_second_order,
)
from uatmc_kernels.triton.bpr_all_items_hvp import bpr_all_items_hvp
from uatmc_kernels.triton.coordinate import coordinate
from uatmc_kernels.triton.count_above import count_above
from uatmc_kernels.triton.logsumexp_all_items import logsumexp, logsumexp_gradients, logsumexp_second_order
from uatmc_kernels.triton.perturb import perturb, perturbed_content
from uatmc_kernels.triton.softmax_all_items_hvp import softmax_all_items_hvp, softmax_mean_change
from uatmc_kernels.triton.topk_all_items import topk_all_items

__all__ = [
    "bpr_all_items_hvp",
    "bpr_item_gradients",
    "bpr_loss",
    "bpr_loss_and_gradients",
    "bpr_loss_and_gradients_atomic",
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
    "topk_all_items",
]
