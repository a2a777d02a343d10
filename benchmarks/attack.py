"""PGD(10) on 100 targets at four radii: all targets at once, and one by one with full score matrices.

python -m benchmarks.attack runs/vbpr-hm-fashion-clean-s0

One by one, as evaluation code for small catalogs does it: for each step the whole catalog with the moved item is scored
for all anchors and differentiated. That is timed on a few targets and multiplied.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.common import append, device_name
from uatmc_dist.adversary.budget import Ball
from uatmc_dist.attacks.base import Targets, best_of
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import load_config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.scenes import Cast, Scene, draw_ids, strata
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.seeding import generator


def at_once(scene: Scene, epsilons: list[float]) -> torch.Tensor:
    """Exact hits after the attack, [radii, targets]."""
    hits = []
    for epsilon in epsilons:
        budget = Ball(epsilon, "linf")
        deltas = best_of(scene.targets, PGD(10)(scene.targets, budget, generator(0)))
        hits.append(scene.hits(scene.moved(deltas, budget)))
    return torch.stack(hits)


def one_by_one(scene: Scene, row: int, item: int, epsilons: list[float]) -> torch.Tensor:
    """The same for one target, scoring the whole catalog at every step, [radii]."""
    targets, items_NK, hits = scene.targets, scene.bars.items_nK, []
    users_AK, dim = targets.users_aK, targets.v_Td.shape[1]
    bar_A = (users_AK @ items_NK.T).topk(scene.k, dim=1).values[:, -1]
    for epsilon in epsilons:
        deltas = users_AK.new_zeros(2, dim)
        for _ in range(10):
            leaf = deltas.clone().requires_grad_()
            scores_AN = users_AK @ _replaced(targets, items_NK, row, item, leaf).T
            loss = torch.relu(scores_AN[:, item] - bar_A + PGD.loss.margin).mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
            deltas = (deltas + 1.25 * epsilon / 10 * gradient.sign()).clamp(-epsilon, epsilon)
        scores_AN = users_AK @ _replaced(targets, items_NK, row, item, deltas).T
        hits.append((scores_AN.topk(scene.k, dim=1).indices == item).any(1).double().mean())
    return torch.stack(hits)


def _replaced(targets: Targets, items_NK: torch.Tensor, row: int, item: int, deltas: torch.Tensor) -> torch.Tensor:
    v, t = targets.v_Td[row] + deltas[0], targets.t_Td[row] + deltas[1]
    content = targets.w_v @ v + targets.w_t @ t + targets.bias
    moved = torch.cat([targets.identity_Td[row], content])
    is_item_N = torch.arange(len(items_NK), device=items_NK.device) == item
    return torch.where(is_item_N[:, None], moved, items_NK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sample", type=int, default=3, help="targets that are attacked one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    config = load_config(arguments.run / "config.yaml")
    catalog = Catalog(config.catalog)
    model = TrainedModel.load(arguments.run, catalog)
    epsilons = config.attack.epsilons
    pool = strata(catalog)["random"]
    chosen, anchors = draw_ids(config.attack, 1, "random", pool, catalog.num_users)
    ratios, ours_s, theirs_s = [], [], []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        cast = Cast.whole(model, (config.attack.k,), torch.device(arguments.device))
        scene = cast.scene(config.attack.k, chosen, anchors, None)
        ours = at_once(scene, epsilons).cpu()
        ours_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = [one_by_one(scene, row, int(chosen[row]), epsilons).cpu() for row in range(arguments.sample)]
        theirs_s.append((time.perf_counter() - start) * len(chosen) / arguments.sample)
        ratios.append(theirs_s[-1] / ours_s[-1])
        difference = (torch.stack(theirs, dim=1) - ours[:, : arguments.sample]).abs().max()
        assert difference < 2e-3, f"the two attacks differ by {difference}"
    sizes = {"targets": len(chosen), "anchors": len(anchors), "items": catalog.num_items, "radii": len(epsilons)}
    append("attack_pgd", "all targets at once", sizes, ours_s, None, device=arguments.device)
    append("attack_pgd", f"one by one ({arguments.sample} timed)", sizes, theirs_s, None, device=arguments.device)
    print(
        f"{sizes} on {device_name(arguments.device)}\n"
        f"all at once, thresholds included: {statistics.median(ours_s):.2f} s\n"
        f"one by one: {statistics.median(theirs_s):.0f} s ({arguments.sample} targets timed)\n"
        f"ratio: {statistics.median(ratios):.0f}"
    )


if __name__ == "__main__":
    main()
