"""Every launcher of the Triton kernels on the pretend GPU: all arguments there, all pointers on the device, no wait.

python -m tests.pretend_gpu.launches    # prints [what each op did, the same without the guard of the device]
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from tests.pretend_gpu import stand_ins
from tests.pretend_gpu.device import GPU, PretendGpu

B, N, K, D = 2048, 125_000, 128, 64


def ops(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    import uatmc_kernels.triton as kernels
    from uatmc_kernels._dispatch import ScorePass

    def rows(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device=GPU)

    users, items = rows(B, K, of=dtype), rows(N, K, of=dtype)
    seen = rows(B + 1, of=torch.int64), rows(5000, of=torch.int64)
    scores = ScorePass(users, items, rows(B), rows(B, of=torch.int64), seen)
    g, w, features = rows(N, D, of=dtype), rows(D, D, of=dtype), rows(N, D, of=dtype)
    found = {
        "bpr_loss": lambda: kernels.bpr_loss(scores),
        "bpr_loss_and_gradients": lambda: kernels.bpr_loss_and_gradients(scores),
        "bpr_loss_and_gradients_atomic": lambda: kernels.bpr_loss_and_gradients_atomic(scores),
        "bpr_item_gradients": lambda: kernels.bpr_item_gradients(scores, rows(B)),
        "bpr_second_order": lambda: kernels.bpr_second_order(rows(B), scores, (rows(B, K), rows(N, K), rows(B))),
        "bpr_all_items_hvp": lambda: kernels.bpr_all_items_hvp(scores, rows(N, D), rows(B), slice(D, K)),
        "logsumexp": lambda: kernels.logsumexp(scores),
        "logsumexp_gradients": lambda: kernels.logsumexp_gradients(scores, rows(B)),
        "logsumexp_second_order": lambda: kernels.logsumexp_second_order(rows(B), scores, (rows(B, K), rows(N, K))),
        "softmax_mean_change": lambda: kernels.softmax_mean_change(scores, rows(N, D), slice(D, K)),
        "softmax_all_items_hvp": lambda: kernels.softmax_all_items_hvp(scores, rows(N, D), rows(B), slice(D, K)),
        "coordinate": lambda: kernels.coordinate(g, w, w),
        "perturb": lambda: kernels.perturb(g, w, w, features, features, 0.1, "l2"),
        "perturbed_content": lambda: kernels.perturbed_content(g, w, w, features, features, None, 0.1, "l2"),
        "topk_all_items": lambda: kernels.topk_all_items(users, items, 50, seen),
        "count_above": lambda: kernels.count_above(users, items, rows(B), rows(B, 2)),
    }
    assert found.keys() == {*kernels.__all__}
    return found


def done() -> dict[str, Any]:
    """Launches and waits of each op."""
    found: dict[str, Any] = {}
    mode = PretendGpu()
    for dtype in (torch.float32, torch.bfloat16):
        with mode:
            of_dtype = ops(dtype)
        for name, op in of_dtype.items():
            result: dict[str, Any] = {}
            stand_ins.LAUNCHES.clear()
            mode.clear()
            try:
                with mode:
                    op()
            except Exception as error:
                result["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            result["launches"] = dict(stand_ins.LAUNCHES)
            result["waits"] = [[*place, count] for place, count in sorted(mode.waits.items())]
            found[f"{name}, {dtype}"] = result
    return found


def main() -> None:
    from uatmc_kernels.triton import _launches, _variants

    _launches._device = lambda index: (90, 132)
    torch.cuda.device_of = stand_ins.Guard  # type: ignore[assignment,misc]
    for name, variant in _variants.VARIANTS.items():
        object.__setattr__(variant, "kernel", stand_ins.Kernel(name, variant.kernel))
    as_it_is = done()
    _variants._OnDevice.__getitem__ = lambda self, grid: self.kernel[grid]
    print(json.dumps([as_it_is, done()]))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
