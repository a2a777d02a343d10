"""Plain PyTorch, materialises everything, any float dtype: what the other implementations are held against."""

from uatmc_kernels.reference.bpr_all_items import bpr_all_items
from uatmc_kernels.reference.bpr_all_items_hvp import bpr_all_items_hvp
from uatmc_kernels.reference.coordinate import coordinate
from uatmc_kernels.reference.count_above import count_above
from uatmc_kernels.reference.perturb import perturb, perturbed_content
from uatmc_kernels.reference.topk_all_items import topk_all_items

__all__ = [
    "bpr_all_items",
    "bpr_all_items_hvp",
    "coordinate",
    "count_above",
    "perturb",
    "perturbed_content",
    "topk_all_items",
]
