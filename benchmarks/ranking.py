"""Full ranking, training items masked: ours beside the score matrix of a batch and its top-k, as libraries do it.

python -m benchmarks.ranking                                     # 19,445 users, 7,050 items: the size of Amazon Baby
python -m benchmarks.ranking --users 10000 --items 1000000
"""

import argparse

import numpy as np
import torch

from benchmarks.common import append, median_ratio, quantile, timed
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.evaluation.ranking import rank_split
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_kernels import topk_all_items

_K, _HISTORY = 50, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=19_445)
    parser.add_argument("--items", type=int, default=7_050)
    parser.add_argument("--width", type=int, default=256, help="K")
    parser.add_argument("--at-once", type=int, default=1024, help="users at a time")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    users_UK = torch.randn(arguments.users, arguments.width, generator=generator).to(device)
    items_NK = torch.randn(arguments.items, arguments.width, generator=generator).to(device)
    users = np.repeat(np.arange(arguments.users), _HISTORY)
    known = KnownPositives(users, rng.integers(0, arguments.items, len(users)), arguments.users, arguments.items)
    test = np.arange(arguments.users), rng.integers(0, arguments.items, arguments.users)
    block = ItemBlock(arguments.items, 0, 1)

    def ours() -> None:
        rank_split(lambda users_B: users_UK[users_B], items_NK, block, known, test, arguments.users, arguments.at_once)

    def matrix_and_topk() -> None:
        for start in range(0, arguments.users, arguments.at_once):
            users_B = torch.arange(start, min(start + arguments.at_once, arguments.users))
            scores_BN = users_UK[users_B] @ items_NK.T
            rows_E, columns_E = known.entries(users_B)
            scores_BN[rows_E.to(device), columns_E.to(device)] = -torch.inf
            scores_BN.topk(_K, dim=1).indices.cpu()

    def in_float64() -> None:
        items_in_float64 = items_NK.double()
        for start in range(0, arguments.users, arguments.at_once):
            users_B = torch.arange(start, min(start + arguments.at_once, arguments.users))
            seen = known.within(users_B, 0, arguments.items)
            seen = (seen[0].to(device), seen[1].to(device))
            topk_all_items(users_UK[users_B].double(), items_in_float64, _K, seen=seen)[1].cpu()

    ways = {"ours": ours, "matrix and topk": matrix_and_topk, "all in float64": in_float64}
    seconds = timed(ways, arguments.repeats)
    sizes = {"U": arguments.users, "N": arguments.items, "K": arguments.width}
    for name, values in seconds.items():
        append("ranking", name, sizes, values, None, device=device.type)
        print(f"{name}: {quantile(values, 0.5):.2f} s")
    for name in ("matrix and topk", "all in float64"):
        print(f"ours takes {median_ratio(seconds['ours'], seconds[name]):.2f} times as long as {name}")


if __name__ == "__main__":
    main()
