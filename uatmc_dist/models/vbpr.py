"""VBPR: a user has one content half, which meets the fused content c = W_v v + W_t t + beta (arXiv 1510.01784)."""

from functools import partial
from typing import Any

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.linear_model import LinearModel, linear_tables
from uatmc_dist.models.projectors import ContentModel, content_model

tables = partial(linear_tables, 1)


def dense_module(config: Config, catalog: Catalog) -> ContentModel:
    return content_model(ContentModel, config, catalog)


def training_model(*arguments: Any) -> Any:
    from uatmc_dist.models.linear_fusion import LinearFusion  # TorchRec takes seconds to import

    return LinearFusion(*arguments)


trained_model = LinearModel
