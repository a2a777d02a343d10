"""An evaluation of a promotion attack on MMGCN with its gradient: what lies within three hops of the target recomputed,
and everything, for the same targets.

python -m benchmarks.graph_attack runs/my-mmgcn

Prints the time of both and how far scores, bars and gradients lie apart, in float64.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.common import append
from uatmc_dist.attacks.graph import GraphTargets
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.config import load_config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.scenes import draw_ids, strata
from uatmc_dist.models.mmgcn import MMGCNModel
from uatmc_dist.models.neighbourhood import CleanState, OwnMMGCN
from uatmc_dist.models.trained import TrainedModel

Values = tuple[torch.Tensor, torch.Tensor]


def everything(model: MMGCNModel, anchors_A: torch.Tensor, items_T: torch.Tensor, k: int) -> Values:
    """(mean loss by target [T], its gradient in both rows [T, 2d]); the whole propagation for each target."""
    values, pulls = [], []
    for item in items_T.tolist():
        leaves = [rows[item].clone().requires_grad_() for rows in (model.v_Nd, model.t_Nd)]
        moved = [
            rows.index_copy(0, torch.tensor([item]), leaf[None])
            for rows, leaf in zip((model.v_Nd, model.t_Nd), leaves, strict=True)
        ]
        users_Ud, items_Nd = model.embed(*moved)
        scores_AN = users_Ud[anchors_A] @ items_Nd.T
        others_AN = scores_AN.index_fill(1, torch.tensor([item]), -torch.inf)
        excess_A = scores_AN[:, item] - others_AN.topk(k, dim=1).values[:, -1]
        value = torch.relu(excess_A + PGD.loss.margin).mean()
        values.append(value.detach())
        pulls.append(torch.cat(torch.autograd.grad(value, leaves)))
    return torch.stack(values), torch.stack(pulls)


def three_hops(targets: GraphTargets) -> Values:
    evaluation = targets.evaluate(targets.zeros(), PGD.loss)
    return evaluation.value_T, evaluation.pull_Td


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    config = load_config(arguments.run / "config.yaml")
    catalog = Catalog(config.catalog)
    model = TrainedModel.load(arguments.run, catalog)
    if not isinstance(model, MMGCNModel):
        raise SystemExit(f"{arguments.run}: not an MMGCN; give a run with model.backbone=mmgcn")
    chosen, anchors_A = draw_ids(config.attack, 1, "random", strata(catalog)["random"], catalog.num_users)
    items_T = chosen[: arguments.targets]

    def of(dtype: torch.dtype) -> GraphTargets:
        return GraphTargets.of(CleanState(OwnMMGCN.whole(model), dtype), anchors_A, items_T, config.attack.k, False)

    fast, ours_s, theirs_s = of(torch.float32), [], []
    three_hops(fast)  # neighbourhoods are found once for all steps of an attack
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        three_hops(fast)
        ours_s.append((time.perf_counter() - start) / len(items_T))
        start = time.perf_counter()
        everything(model, anchors_A, items_T, config.attack.k)
        theirs_s.append((time.perf_counter() - start) / len(items_T))
    exact = three_hops(of(torch.float64))
    model.dense.double()
    model.identity = type(model.identity)(*(rows.double() for rows in model.identity))
    model.preference = {name: rows.double() for name, rows in model.preference.items()}
    model.v_Nd, model.t_Nd = model.v_Nd.double(), model.t_Nd.double()
    truth = everything(model, anchors_A, items_T, config.attack.k)
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(exact, truth, strict=True)]
    sizes = {"targets": len(items_T), "anchors": len(anchors_A), "items": catalog.num_items}
    append("graph_attack", "three hops", sizes, ours_s, None)
    append("graph_attack", "everything", sizes, theirs_s, None)
    ratio = statistics.median(b / a for a, b in zip(ours_s, theirs_s, strict=True))
    print(
        f"{sizes}: {1e3 * statistics.median(ours_s):.0f} ms a target within three hops, "
        f"{1e3 * statistics.median(theirs_s):.0f} ms with everything: {ratio:.1f} times as fast\n"
        f"apart, relative to the largest: loss {apart[0]:.1e}, gradient {apart[1]:.1e}"
    )


if __name__ == "__main__":
    main()
