"""Full ranking and certificates under torchrun: the trained model in row blocks, as in training. No rank ever holds all
users, items or features; lists are merged, so that every rank knows the figures.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from uatmc_dist.config import Config
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.certificate import check_certifiable
from uatmc_dist.evaluation.ranking import Progress, RankedUsers, rank_split
from uatmc_dist.evaluation.sweep import Swept, lowered
from uatmc_dist.models.backbone import TrainingModel, backbone
from uatmc_dist.models.trained import ModelFile
from uatmc_dist.parallel.item_parallel import ItemBlock, merge_topk
from uatmc_dist.parallel.process_group import World
from uatmc_kernels import topk_all_items

_USERS_AT_ONCE = 1024


def is_launched() -> bool:
    """Whether torchrun has started several ranks of this command."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def load_blocks(run: Path, config: Config, catalog: Catalog, world: World, progress: Progress) -> TrainingModel:
    """This rank's rows of a finished run's final weights. Collective.

    Raises UserError for a run without a whole model, or of another catalog."""
    file = ModelFile(run)
    file.check_fits(catalog)
    weights = file.dense_weights() or None
    exact = config.model_copy(
        update={"adversarial": config.adversarial.model_copy(update={"projected_precision": "fp32"})}
    )
    # The phase whose projectors are frozen: features are projected once, block by block.
    phase = "adversarial" if config.model.content else "clean"
    known = KnownPositives.of_training(catalog)
    model = backbone(config.model).training_model(catalog, known, exact, world, phase, weights, progress)
    for table in model.tables:
        table.local_weight.copy_(file.rows(table.name, table.block.lo, table.block.hi))
    return model


def rank_on_ranks(
    model: TrainingModel,
    catalog: Catalog,
    world: World,
    split: str,
    users_per_batch: int,
    progress: Progress = lambda done, total: None,
    on_ranked: Callable[[RankedUsers], None] | None = None,
) -> dict[str, float]:
    """`rank_split` of a model in blocks; the same on every rank. Collective."""
    ranking = model.ranking()
    return rank_split(
        ranking.user_rows,
        ranking.items_nK,
        ItemBlock(catalog.num_items, world.rank, world.size),
        KnownPositives.of_training(catalog),
        catalog.split(split),
        catalog.num_users,
        users_per_batch,
        progress,
        on_ranked,
    )


def swept_on_ranks(model: TrainingModel, config: Config, catalog: Catalog, world: World) -> Swept:
    """What a certificate goes over. Collective. Raises UserError for a model without a certificate."""
    check_certifiable(config.model.content, backbone(config.model).trained_model.is_linear)
    ranking, block = model.ranking(), ItemBlock(catalog.num_items, world.rank, world.size)
    users = lambda chosen: ranking.user_rows(torch.arange(chosen.start, chosen.stop)).cpu()  # noqa: E731
    items_in_float64, bars = ranking.items_nK.double(), []
    for start in range(0, catalog.num_users, _USERS_AT_ONCE):
        users_BK = ranking.user_rows(torch.arange(start, min(start + _USERS_AT_ONCE, catalog.num_users)))
        scores_Bk, ids_Bk = topk_all_items(users_BK.double(), items_in_float64, config.attack.k)
        bars.append(merge_topk(scores_Bk.cpu(), ids_Bk.cpu())[0][:, -1])
    v_nd, t_nd = model.modalities(torch.arange(block.lo, block.hi))  # type: ignore[attr-defined]
    rows = (rows.detach().cpu() for rows in (ranking.items_nK, v_nd, t_nd))
    dense = model.dense.cpu().requires_grad_(False)
    return Swept(catalog.num_users, block, users, lowered(torch.cat(bars)), *rows, dense)
