"""What content is worth, by item and by user: the default beside the same model without content, on the test split.

python -m benchmarks.content_lift data/hmfashion data/baby --write docs/results.md

Takes the runs of benchmarks.accuracy. Of the relevant items of a kind (by training interactions of the item, or by the
length of the user's history), the share that is among the user's first 20; means with 95 % intervals over the seeds.
"""

from pathlib import Path

import torch

from benchmarks.accuracy import Run
from benchmarks.common import document_parser, replace_block, with_interval
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.ranking import RankedUsers, rank_model
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.tables.markdown import markdown_table

SEEDS = (0, 1, 2)
VARIANTS = ("default", "without content")
BUCKETS = {
    "items with": ((0, 5), (5, 10), (10, 20), (20, 50), (50, None)),
    "users with": ((0, 5), (5, 10), (10, None)),
}
"""By training interactions: from the first number on, below the second."""


class Found:
    """Which relevant items of the test split are in the lists of a run."""

    def __init__(self, run: Path, catalog: Catalog) -> None:
        self._lists = torch.full((catalog.num_users, 20), -1)
        rank_model(TrainedModel.load(run, catalog), catalog, "test", 1024, on_ranked=self._keep)
        users, items = map(torch.from_numpy, catalog.split("test"))
        self.hits = (self._lists[users] == items[:, None]).any(1)

    def _keep(self, ranked: RankedUsers) -> None:
        self._lists[ranked.users_B] = ranked.items_Bk[:, :20]


def counted(catalog: Catalog) -> dict[str, torch.Tensor]:
    """Training interactions of the item and of the user of each relevant item."""
    known = KnownPositives.of_training(catalog)
    users, items = map(torch.from_numpy, catalog.split("test"))
    return {"items with": known.counts_of_items()[items], "users with": known.num_items_of(users)}


def table(path: Path) -> str:
    catalog = Catalog(path)
    hits = {name: [Found(Run(path, name, seed).path, catalog).hits for seed in SEEDS] for name in VARIANTS}
    rows = []
    for what, counts in counted(catalog).items():
        for low, high in BUCKETS[what]:
            chosen = (counts >= low) & (counts < (high or 1 << 62))
            if not chosen.any():
                continue
            shares = {name: [float(each[chosen].double().mean()) for each in found] for name, found in hits.items()}
            lift = [a - b for a, b in zip(*shares.values(), strict=True)]
            title = f"{what} {low} to {high - 1}" if high else f"{what} {low} or more"
            cells = [title, f"{chosen.double().mean():.3f}", *(with_interval(s, ".4f") for s in shares.values())]
            rows.append([*cells, with_interval(lift, "+.4f")])
    return markdown_table(["", "relevant", *VARIANTS, "difference"], rows)


def main() -> None:
    parser = document_parser(__doc__)
    parser.add_argument("catalogs", type=Path, nargs="+")
    arguments = parser.parse_args()
    text = "\n\n".join(f"{path.name}:\n\n{table(path)}" for path in arguments.catalogs)
    print(text)
    if arguments.write is not None:
        replace_block(arguments.write, "content-lift", text)


if __name__ == "__main__":
    main()
