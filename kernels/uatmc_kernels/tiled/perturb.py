"""Tiled passes of `uatmc_kernels.perturb` and `perturbed_content`: chunks of rows."""

from typing import Literal

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import lengths_are_safe, row_chunks, scale_rows

Norm = Literal["l2", "linf"]


def perturb(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    epsilon: float,
    norm: Norm,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(g_Nd.dtype)
    deltas = [torch.empty(rows.shape, dtype=rows.dtype, device=rows.device) for rows in (v_N, t_N)]
    weights = w_v.to(dtype), w_t.to(dtype)
    for rows in row_chunks(len(g_Nd), g_Nd.shape[1] + 2 * (v_N.shape[1] + t_N.shape[1])):
        g = g_Nd[rows].to(dtype)
        for delta_N, weight, row_N in zip(deltas, weights, (v_N, t_N), strict=True):
            target = delta_N[rows]
            out = target if target.dtype == dtype else None
            step = _step(g, weight, row_N[rows].to(dtype), epsilon, norm, out)
            if out is None:
                target.copy_(step)
    return deltas[0], deltas[1]


def perturbed_content(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    bias_d: torch.Tensor | None,
    epsilon: float,
    norm: Norm,
) -> torch.Tensor:
    dtype = accumulator_dtype(g_Nd.dtype)
    w_v, w_t = w_v.to(dtype), w_t.to(dtype)
    content_Nd = torch.empty(g_Nd.shape, dtype=g_Nd.dtype, device=g_Nd.device)
    bias = w_v.new_zeros(g_Nd.shape[1]) if bias_d is None else bias_d.to(dtype)
    for rows in row_chunks(len(g_Nd), g_Nd.shape[1] + 2 * (v_N.shape[1] + t_N.shape[1])):
        g, v, t = g_Nd[rows].to(dtype), v_N[rows].to(dtype), t_N[rows].to(dtype)
        moved_v = _step(g, w_v, v, epsilon, norm).add_(v)
        moved_t = _step(g, w_t, t, epsilon, norm).add_(t)
        content_Nd[rows] = torch.addmm(bias, moved_v, w_v.T).addmm_(moved_t, w_t.T)
    return content_Nd


def _step(
    g: torch.Tensor,
    weight: torch.Tensor,
    row: torch.Tensor,
    epsilon: float,
    norm: Norm,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    direction = torch.mm(g, weight, out=out)
    radius = row.norm(dim=1, keepdim=True).mul_(epsilon)
    if norm == "linf":
        return direction.sign_().mul_(radius)
    length = direction.norm(dim=1, keepdim=True)
    if not lengths_are_safe(length):
        direction = torch.mm(scale_rows(g)[0], weight, out=out)
        length = direction.norm(dim=1, keepdim=True)
    return direction.mul_(radius.div_(length.masked_fill_(length == 0, float("inf"))))
