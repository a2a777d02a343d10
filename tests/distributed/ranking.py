"""Run by torchrun from test_ranking_ranks.py: each rank ranks its own block of a saved model."""

import json
import sys
from pathlib import Path

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.ranking import rank_split
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.parallel import process_group
from uatmc_dist.parallel.item_parallel import ItemBlock


def main(run: str, catalog_path: str, out: str) -> None:
    world = process_group.join()
    catalog = Catalog(Path(catalog_path))
    model = TrainedModel.load(Path(run), catalog)
    block = ItemBlock(catalog.num_items, world.rank, world.size)
    metrics = rank_split(
        lambda users_B: model.users_UK[users_B],
        model.items()[block.lo : block.hi],
        block,
        KnownPositives.of_training(catalog),
        catalog.split("test"),
        catalog.num_users,
        users_per_batch=70,
    )
    Path(f"{out}.{world.rank}").write_text(json.dumps(metrics))
    process_group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
