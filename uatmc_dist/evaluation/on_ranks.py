"""Full ranking under torchrun: the trained model in row blocks, as in training. No rank ever holds all users, items or
features; lists are merged, so that every rank knows the figures.
"""

import os
from collections.abc import Callable
from pathlib import Path

from uatmc_dist.config import Config
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.ranking import Progress, RankedUsers, rank_split
from uatmc_dist.models.backbone import Ranking, backbone
from uatmc_dist.models.trained import ModelFile
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import World


def is_launched() -> bool:
    """Whether torchrun has started several ranks of this command."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def load_blocks(run: Path, config: Config, catalog: Catalog, world: World, progress: Progress) -> Ranking:
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
    return model.ranking()


def rank_on_ranks(
    ranking: Ranking,
    catalog: Catalog,
    world: World,
    split: str,
    users_per_batch: int,
    progress: Progress = lambda done, total: None,
    on_ranked: Callable[[RankedUsers], None] | None = None,
) -> dict[str, float]:
    """`rank_split` of a model in blocks; the same on every rank. Collective."""
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
