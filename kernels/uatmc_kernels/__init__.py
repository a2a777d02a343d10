"""Fused passes over all items: tensors in, tensors out, nothing of the trainer.

Every op takes `implementation="auto" | "reference" | "tiled" | "triton"`. `reference` is plain PyTorch that
materialises everything (the truth of the tests), `tiled` walks over tiles of items in flat memory on any
device, `triton` runs fused kernels on NVIDIA GPUs; `auto` takes Triton for CUDA tensors and tiles for others.
All ops are registered with torch.library (namespace uatmc), so torch.compile takes them as they are.

Shape suffixes, here and in every file of this package:
    B  user-positive pairs of a batch        N  items of this block
    K  width of a user or item embedding     d  width of the content part of an embedding
    T  items of one tile                     k  length of a ranking
    E  entries left out of a pass
"""

from uatmc_kernels.bpr_all_items import bpr_all_items
from uatmc_kernels.bpr_all_items_hvp import bpr_all_items_hvp
from uatmc_kernels.coordinate import coordinate
from uatmc_kernels.count_above import count_above
from uatmc_kernels.logsumexp_all_items import logsumexp_all_items
from uatmc_kernels.perturb import perturb, perturbed_content
from uatmc_kernels.softmax_all_items_hvp import softmax_all_items_hvp, softmax_mean_change
from uatmc_kernels.topk_all_items import topk_all_items

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

__version__ = "0.1.0"  # of both packages
