"""Full ranking against a brute-force computation, user by user."""

import math

import numpy as np
import pytest
import torch

from uatmc_dist.config import METRIC_KS
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.evaluation.ranking import rank_split
from uatmc_dist.parallel.item_parallel import ItemBlock


def brute_force(users_UK, items_NK, train, split):
    totals: dict[str, float] = {}
    ranked_users = sorted({user for user, _ in split})
    for user in ranked_users:
        scores = (users_UK[user].double() @ items_NK.double().T).float().tolist()
        seen = {item for owner, item in train if owner == user}
        relevant = {item for owner, item in split if owner == user}
        order = sorted(
            (item for item in range(len(scores)) if item not in seen), key=lambda item: (-scores[item], item)
        )
        for k in METRIC_KS:
            hits = [item in relevant for item in order[:k]]
            ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
            values = {
                "recall": sum(hits) / len(relevant),
                "precision": sum(hits) / k,
                "ndcg": sum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits) if hit) / ideal,
                "map": sum(sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit)
                / min(k, len(relevant)),
            }
            for name, value in values.items():
                totals[f"{name}@{k}"] = totals.get(f"{name}@{k}", 0.0) + value
    return {name: value / len(ranked_users) for name, value in totals.items()}


@pytest.mark.parametrize("num_items", [30, 111])
def test_equals_brute_force(num_items):
    rng = np.random.default_rng(0)
    keys = rng.permutation(25 * num_items)[: 25 * num_items // 3]
    pairs = np.stack([keys // num_items, keys % num_items], axis=1)
    train, split = pairs[: len(pairs) * 2 // 3], pairs[len(pairs) * 2 // 3 :]
    split = split[split[:, 0] % 4 != 0]  # some users have nothing to find
    generator = torch.Generator().manual_seed(0)
    users_UK, items_NK = (torch.randn(rows, 6, generator=generator) for rows in (25, num_items))
    items_NK[7] = items_NK[3]  # an exact tie
    ours = rank_split(
        lambda users_B: users_UK[users_B],
        items_NK,
        ItemBlock(num_items, 0, 1),
        KnownPositives(train[:, 0], train[:, 1], 25, num_items),
        (split[:, 0], split[:, 1]),
        25,
        users_per_batch=7,
    )
    assert ours == pytest.approx(brute_force(users_UK, items_NK, train.tolist(), split.tolist()), rel=1e-12)
