"""MMGCN beside MMRec's on the same files and for as many epochs, one process and one thread each, one after the other.

python -m benchmarks.peers.mmgcn data/hmfashion --mmrec ../MMRec --epochs 20

MMRec's needs torch_geometric beside (docs/benchmarks.md says how it was run); none of its code is here. Ours:
configs/mmgcn.yaml, and the same with the published objective of one sampled negative.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.peers.__main__ import mmrec, ours
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.tables.markdown import markdown_table

CONFIG = "configs/mmgcn.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--mmrec", type=Path, required=True, help="clone of MMRec")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    catalog, epochs = (
        Catalog(arguments.catalog),
        [f"clean.epochs={arguments.epochs}", f"clean.patience={arguments.epochs}"],
    )
    found = [
        mmrec("MMGCN", catalog, arguments.mmrec, arguments.epochs),
        ours("MMGCN sampled, ours", catalog, [*epochs, "clean.objective=sampled"], CONFIG),
        ours("MMGCN, configs/mmgcn.yaml", catalog, epochs, CONFIG),
    ]
    rows = [[one.name, f"{one.train_s:.2f}", f"{max(one.valid):.4f}", f"{one.test:.4f}"] for one in found]
    print(markdown_table(["", "epoch, s", "best valid Recall@20", "test"], rows))


if __name__ == "__main__":
    main()
