"""Full ranking and certificates under torchrun: the trained model in row blocks, as in training. No rank ever holds all
users, items or features.
"""

import os
from pathlib import Path

import torch

from uatmc_dist.config import Config
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.certificate import check_certifiable
from uatmc_dist.evaluation.ranking import Progress
from uatmc_dist.evaluation.scenes import best_scores
from uatmc_dist.evaluation.sweep import Swept, lowered
from uatmc_dist.models.backbone import TrainingModel, backbone
from uatmc_dist.models.trained import ModelFile
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import World


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


def swept_on_ranks(model: TrainingModel, config: Config, catalog: Catalog, world: World) -> Swept:
    """What a certificate goes over. Collective. Raises UserError for a model without a certificate."""
    check_certifiable(config.model.content, backbone(config.model).trained_model.is_linear)
    ranking, block = model.ranking(), ItemBlock(catalog.num_items, world.rank, world.size)
    users = lambda chosen: ranking.user_rows(torch.arange(chosen.start, chosen.stop)).cpu()  # noqa: E731
    best = best_scores(ranking.user_rows, catalog.num_users, ranking.items_nK, config.attack.k)
    bars_U = torch.cat([scores_Bk[:, -1] for scores_Bk in best])
    v_nd, t_nd = model.modalities(torch.arange(block.lo, block.hi))  # type: ignore[attr-defined]
    rows = (rows.detach().cpu() for rows in (ranking.items_nK, v_nd, t_nd))
    dense = model.dense.cpu().requires_grad_(False)
    return Swept(catalog.num_users, block, users, lowered(bars_U), *rows, dense)
