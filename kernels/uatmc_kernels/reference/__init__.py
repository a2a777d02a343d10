"""Plain PyTorch, materialises everything, any float dtype: what the other implementations are held against."""

from uatmc_kernels.reference.bpr_all_items import bpr_all_items
from uatmc_kernels.reference.bpr_all_items_hvp import bpr_all_items_hvp
from uatmc_kernels.reference.coordinate import coordinate
from uatmc_kernels.reference.count_above import count_above
from uatmc_kernels.reference.logsumexp_all_items import logsumexp_all_items
from uatmc_kernels.reference.perturb import perturb, perturbed_content
from uatmc_kernels.reference.softmax_all_items_hvp import softmax_all_items_hvp, softmax_mean_change
from uatmc_kernels.reference.topk_all_items import topk_all_items

__all__ = [
    "bpr_all_items",
    "bpr_all_items_hvp",
    "coordinate",
    "count_above",
    "logsumexp_all_items",
    "perturb",
    "perturbed_content",
    "softmax_all_items_hvp",
    "softmax_mean_change",
    "topk_all_items",
]
