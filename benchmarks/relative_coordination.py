"""Trains against an adversary whose alignment term is scaled to the length of the loss gradient, item by item:

    g + weight ||g|| HVP(omega) / ||HVP(omega)||    instead of    g + lambda HVP(omega)

so that neither drowns; a negative weight turns the gradients apart. An experiment (docs/log.md): it was not taken
into the trainer.

python -m benchmarks.relative_coordination 0.5 configs/vbpr-hm-fashion.yaml name=... start_from=... [option=value ...]
"""

import sys

import torch

from uatmc_dist.adversary import coordination
from uatmc_dist.adversary.coordination import AscentRule, LinearView
from uatmc_dist.launch import main
from uatmc_kernels import coordinate


def relative(weight: float, view: LinearView, items_nK: torch.Tensor, gradient_nd: torch.Tensor) -> torch.Tensor:
    _, omega_nd = coordinate(gradient_nd, view.w_v, view.w_t)
    hvp_nd = view.content_hvp(items_nK, omega_nd)
    lengths = hvp_nd.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return gradient_nd + weight * gradient_nd.norm(dim=1, keepdim=True) / lengths * hvp_nd


def patched(weight: float) -> None:
    def coordinated(
        view: LinearView, rule: AscentRule, items_nK: torch.Tensor, gradient_nd: torch.Tensor
    ) -> torch.Tensor:
        return relative(weight, view, items_nK, gradient_nd)

    coordination._coordinated = coordinated


if __name__ == "__main__":
    patched(float(sys.argv.pop(1)))
    main()
