"""VBPR with a content half of the user for each modality.

    p_u = [a_u, h^v_u, h^t_u]    e_j = [q_j, W_v v_j + beta_v, W_t t_j + beta_t]

What GRCN's concatenation has at its output (docs/algorithm.md, section 1.2): different users can make up the gradients
of the two modalities, which one content half does not allow.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.linear_model import LinearModel, linear_tables
from uatmc_dist.models.projectors import ContentModel, content_model


class OwnUsersContent(ContentModel):
    """Fusion by the rectangular [W_v; 0] and [0; W_t], [2d, d] each: linear, so that every closed form holds."""

    num_halves = 2

    def fusion(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dim = self.w_v.shape[1]
        return F.pad(self.w_v, (0, 0, 0, dim)), F.pad(self.w_t, (0, 0, dim, 0)), self.bias

    def fuse(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> torch.Tensor:
        dtype = self.bias.dtype
        halves = F.linear(v_nd.to(dtype), self.w_v.to(dtype)), F.linear(t_nd.to(dtype), self.w_t.to(dtype))
        return (torch.cat(halves, dim=1) + self.bias).float()


tables = partial(linear_tables, 2)


def dense_module(config: Config, catalog: Catalog) -> OwnUsersContent:
    return content_model(OwnUsersContent, config, catalog)


def training_model(*arguments: Any) -> Any:
    from uatmc_dist.models.linear_fusion import LinearFusion  # TorchRec takes seconds to import

    return LinearFusion(*arguments)


trained_model = LinearModel
