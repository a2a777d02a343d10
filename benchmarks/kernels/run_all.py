"""All microbenchmarks of the kernels, one after the other; arguments go to each.

python -m benchmarks.kernels.run_all                    # what a CPU can run
python -m benchmarks.kernels.run_all --device cuda      # all of it, on one GPU
"""

import subprocess
import sys

_OPS = (
    "bpr_all_items",
    "bpr_all_items_hvp",
    "logsumexp_all_items",
    "coordinate",
    "perturb",
    "topk_all_items",
    "count_above",
)


def main() -> None:
    failed = []
    for op in _OPS:
        # A process for each: what one op leaves in memory would count for the next.
        command = [sys.executable, "-m", f"benchmarks.kernels.{op}", *sys.argv[1:]]
        if subprocess.run(command, check=False).returncode:
            failed.append(op)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
