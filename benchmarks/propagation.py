"""One product with the mean-normalised adjacency, forward and backward: torch.sparse CSR (what MMGCN uses),
scatter-adds, segment reductions, and torch_geometric's, where it is installed.

python -m benchmarks.propagation data/hmfashion data/baby
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import append, median_ratio, quantile, timed
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.propagation import csr, sparse_product

Product = Callable[[torch.Tensor], torch.Tensor]
OURS = "torch.sparse CSR"


def products(rows_E: torch.Tensor, columns_E: torch.Tensor, num_rows: int, num_columns: int) -> dict[str, Product]:
    """[columns, w] -> [rows, w], by name; edges sorted by row."""
    counts = torch.bincount(rows_E, minlength=num_rows)
    weights_E = 1 / counts.float()[rows_E]
    shape = num_rows, num_columns
    matrix, transposed = csr(rows_E, columns_E, weights_E, shape), csr(columns_E, rows_E, weights_E, shape[::-1])

    def scatter(dense: torch.Tensor) -> torch.Tensor:
        parts = dense[columns_E] * weights_E[:, None]
        return dense.new_zeros(num_rows, dense.shape[1]).index_add(0, rows_E, parts)

    found: dict[str, Product] = {
        OURS: lambda dense: sparse_product(dense, matrix, transposed),
        "scatter-add": scatter,
        "segment reduce": lambda dense: torch.segment_reduce(dense[columns_E], "mean", lengths=counts, initial=0),
    }
    try:
        from torch_geometric.nn import SimpleConv
    except ImportError:
        print("torch_geometric is not installed: left out (pip install torch_geometric)")
        return found
    layer, edges = SimpleConv(aggr="mean"), torch.stack([columns_E, rows_E])
    return found | {"torch_geometric": lambda dense: layer((dense, dense.new_zeros(num_rows, 1)), edges)}


def both_ways(product: Product, dense: torch.Tensor) -> torch.Tensor:
    leaf = dense.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(product(leaf).sum(), leaf)
    return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogs", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    for path in arguments.catalogs:
        catalog = Catalog(path)
        users_E, items_E = KnownPositives.of_training(catalog).pairs()  # a user's next to each other
        named = products(users_E, items_E, catalog.num_users, catalog.num_items)
        for width in (64, 256):
            dense = torch.randn(catalog.num_items, width)
            truth = named[OURS](dense)
            for product in named.values():
                torch.testing.assert_close(product(dense), truth, rtol=1e-4, atol=1e-5)
            seconds = timed({n: partial(both_ways, p, dense) for n, p in named.items()}, arguments.repeats)
            sizes = {"edges": len(users_E), "width": width}
            for name, values in seconds.items():
                append("propagation", name, sizes, values, None)
                ratio = median_ratio(values, seconds[OURS])
                print(f"{path.name}, width {width}: {name}: {1e3 * quantile(values, 0.5):.1f} ms, {ratio:.1f} times")


if __name__ == "__main__":
    main()
