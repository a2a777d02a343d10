"""Tiled pass of `uatmc_kernels.perturb`: chunks of rows."""

from typing import Literal

import torch

from uatmc_kernels.tiled._tiles import ROWS_PER_CHUNK


def perturb(g_Nd, w_v, w_t, v_N, t_N, epsilon: float, norm: Literal["l2", "linf"]) -> tuple[torch.Tensor, torch.Tensor]:
    deltas = torch.empty_like(v_N), torch.empty_like(t_N)
    for start in range(0, len(g_Nd), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        for delta_N, weight, row_N in zip(deltas, (w_v, w_t), (v_N, t_N), strict=True):
            delta = torch.mm(g_Nd[rows], weight, out=delta_N[rows])
            radius = epsilon * row_N[rows].norm(dim=1, keepdim=True)
            if norm == "linf":
                delta.sign_().mul_(radius)
            else:
                length = delta.norm(dim=1, keepdim=True)
                delta.mul_(radius / length.masked_fill_(length == 0, float("inf")))
    return deltas
