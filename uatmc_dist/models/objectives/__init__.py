"""The objectives over item blocks: BPR, sampled (paper) or full catalog, and softmax (docs/algorithm.md, section 2).

B  pairs of the global batch    n  active items of this rank    K = d + C, [identity | content]
"""

from uatmc_dist.models.objectives.base import Objective, user_moments
from uatmc_dist.models.objectives.full_catalog import FullCatalog
from uatmc_dist.models.objectives.sampled import Sampled
from uatmc_dist.models.objectives.softmax import Softmax, popularity_offset

__all__ = ["FullCatalog", "Objective", "Sampled", "Softmax", "popularity_offset", "user_moments"]
