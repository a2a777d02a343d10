"""How attackable a model is while it trains: a cheap attack with each evaluation (evaluation.attack_epsilon)."""

import numpy as np
import torch

from uatmc_dist.adversary.budget import Ball
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.on_ranks import content_rows
from uatmc_dist.evaluation.scenes import Bars, Cast
from uatmc_dist.evaluation.stage import lengths
from uatmc_dist.models.backbone import TrainingModel
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import World
from uatmc_dist.seeding import generator

_ITEMS, _USERS = 64, 512


@torch.no_grad()
def attacked_now(model: TrainingModel, config: Config, catalog: Catalog, world: World) -> dict[str, float]:
    """attack/hit@k_before, attack/hit@k_after and attack/certified_hit@k of the same items and users each time; nothing
    where no attack is asked for. Collective. Weights and the streams of random numbers stay as they are."""
    epsilon, attack = config.evaluation.attack_epsilon, config.attack
    if epsilon is None:
        return {}
    rng = np.random.default_rng((config.seed, *b"attacked while training"))
    items_T = torch.from_numpy(rng.choice(catalog.num_items, min(_ITEMS, catalog.num_items), replace=False))
    users_A = torch.from_numpy(rng.choice(catalog.num_users, min(_USERS, catalog.num_users), replace=False))
    ranking, block = model.ranking(), ItemBlock(catalog.num_items, world.rank, world.size)
    ks = lengths(attack.k, catalog.num_items)

    def user_rows(positions_B: torch.Tensor) -> torch.Tensor:
        return ranking.user_rows(users_A[positions_B])

    bars = Bars.ranked(user_rows, len(users_A), ranking.items_nK, ks)
    cast = Cast(block, user_rows, bars, lambda ids_m: content_rows(model, ids_m), model.dense)
    scene = cast.scene(attack.k, items_T, torch.arange(len(users_A)), None)
    budget = Ball.of_attack(epsilon, "linf", "paper", scene.targets.v_Td.shape[1])
    (deltas,) = PGD(attack.pgd_steps)(scene.targets, budget, generator(config.seed))
    after = scene.moved(deltas, budget)
    return {
        f"attack/hit@{attack.k}_before": float(scene.hits(scene.clean).mean()),
        f"attack/hit@{attack.k}_after": float(scene.hits(after).mean()),
        f"attack/certified_hit@{attack.k}": float(scene.certified_hits(budget).mean()),
    }


def told(attacked: dict[str, float]) -> str:
    """For the line of an evaluation."""
    if not attacked:
        return ""
    before, after, certified = attacked.values()
    return f"; attacked: {before:.2%} of the lists before, {after:.2%} after, {certified:.2%} at most"
