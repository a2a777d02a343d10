"""One coordinated full-catalog step against the same mathematics in eager PyTorch with double backward.

python -m benchmarks.adversarial_step
"""

import argparse

import torch

from benchmarks.common import append, median_ratio, quantile, timed
from benchmarks.problem import AdversarialStep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--items", type=int, default=7050)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sizes = {"B": arguments.pairs, "N": arguments.items, "d": arguments.dim}
    step = AdversarialStep(*sizes.values())
    for ours, eager in zip(step.ours(), step.eager(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-5)
    seconds = timed({"ours": step.ours, "eager double backward": step.eager}, arguments.repeats)
    for name, values in seconds.items():
        append("adversarial_step", name, sizes, values, None)
        print(f"{name}: {quantile(values, 0.5):.3f} s a step")
    ratio = median_ratio(seconds["eager double backward"], seconds["ours"])
    print(f"ours is {ratio:.1f} times as fast ({sizes}, {torch.get_num_threads()} threads, same results)")


if __name__ == "__main__":
    main()
