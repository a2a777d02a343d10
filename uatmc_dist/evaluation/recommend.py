"""Lists for somebody whose history is given: no training has to have seen him."""

from dataclasses import dataclass

import torch

from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.models.trained import TrainedModel


@dataclass(frozen=True)
class Recommendation:
    source_id: str
    title: str
    score: float


def recommend(model: TrainedModel, catalog: Catalog, history: list[str], k: int) -> list[Recommendation]:
    """The k best items, best first, those of the history left out. `history`: item ids of the source.

    Raises UserError for ids that the catalog does not know, and for a model without histories.
    """
    source_ids, titles = catalog.titles()
    number_of = {source_id: number for number, source_id in enumerate(source_ids)}
    unknown = [name for name in history if name not in number_of]
    if unknown:
        told = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise UserError(f"--history: the catalog {catalog.path} has no item {told}; ids are those of its items.parquet")
    items_E = torch.tensor(sorted({number_of[name] for name in history}))
    scores_N = (model.items().double() @ model.user_of_history(items_E).double()).float()
    scores_N[items_E] = -torch.inf
    best_k = scores_N.topk(min(k, len(scores_N) - len(items_E))).indices.tolist()
    return [Recommendation(source_ids[item], titles[item], float(scores_N[item])) for item in best_k]
