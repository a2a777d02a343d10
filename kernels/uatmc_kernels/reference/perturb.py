"""Reference of `uatmc_kernels.perturb`: one normalised ascent step, row by row."""

from typing import Literal

import torch


def perturb(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    epsilon: float,
    norm: Literal["l2", "linf"],
) -> tuple[torch.Tensor, torch.Tensor]:
    def step(gradient_N: torch.Tensor, row_N: torch.Tensor) -> torch.Tensor:
        radius = epsilon * row_N.norm(dim=1, keepdim=True)
        if norm == "linf":
            return radius * gradient_N.sign()
        length = gradient_N.norm(dim=1, keepdim=True)
        return radius * torch.where(length > 0, gradient_N / length, torch.zeros_like(gradient_N))

    return step(g_Nd @ w_v, v_N), step(g_Nd @ w_t, t_N)
