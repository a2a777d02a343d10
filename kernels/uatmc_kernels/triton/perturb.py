"""Triton passes of `uatmc_kernels.perturb` and `uatmc_kernels.perturbed_content`."""

from typing import Literal

import torch
import triton

from uatmc_kernels.triton._launches import as_rows
from uatmc_kernels.triton._variants import prepare


def perturb(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    epsilon: float,
    norm: Literal["l2", "linf"],
) -> tuple[torch.Tensor, torch.Tensor]:
    return _perturb_modality(g_Nd, w_v, v_N, epsilon, norm), _perturb_modality(g_Nd, w_t, t_N, epsilon, norm)


def _perturb_modality(
    g_Nd: torch.Tensor, w: torch.Tensor, rows_N: torch.Tensor, epsilon: float, norm: Literal["l2", "linf"]
) -> torch.Tensor:
    g, rows = as_rows(g_Nd), as_rows(rows_N.to(g_Nd.dtype))
    w = w.to(g.dtype).contiguous()
    (num_rows, width), modality = g.shape, w.shape[1]
    delta = torch.zeros_like(rows_N, memory_format=torch.contiguous_format)
    if not (num_rows and width and modality):
        return delta
    prepared = prepare("perturb", {"D": width, "M": modality}, g, LINF=norm == "linf")
    prepared.kernel[triton.cdiv(num_rows, prepared.blocks["BO"]),](
        g,
        w,
        rows,
        delta,
        epsilon,
        num_rows,
        G_STRIDE=g.stride(0),
        ROW_STRIDE=rows.stride(0),
        D=width,
        M=modality,
        **prepared.constants,
    )
    return delta


def perturbed_content(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    bias_d: torch.Tensor | None,
    epsilon: float,
    norm: Literal["l2", "linf"],
) -> torch.Tensor:
    g = as_rows(g_Nd)
    v, t = as_rows(v_N.to(g.dtype)), as_rows(t_N.to(g.dtype))
    w_v, w_t = w_v.to(g.dtype).contiguous(), w_t.to(g.dtype).contiguous()
    num_rows, width = g.shape
    bias = g.new_zeros(width) if bias_d is None else bias_d.to(g.dtype).contiguous()
    content = torch.empty(num_rows, width, dtype=v_N.dtype, device=g.device)
    if not (num_rows and width):
        return content
    widest = max(width, w_v.shape[1], w_t.shape[1])
    prepared = prepare("perturbed_content", {"D": width, "M": widest}, g, LINF=norm == "linf")
    prepared.kernel[triton.cdiv(num_rows, prepared.blocks["BO"]), 1, triton.cdiv(width, prepared.blocks["DO"])](
        g,
        w_v,
        w_t,
        v,
        t,
        bias,
        content,
        epsilon,
        num_rows,
        G_STRIDE=g.stride(0),
        V_STRIDE=v.stride(0),
        T_STRIDE=t.stride(0),
        D=width,
        M_V=w_v.shape[1],
        M_T=w_t.shape[1],
        **prepared.constants,
    )
    return content
