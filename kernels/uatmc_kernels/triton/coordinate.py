"""Triton pass of `uatmc_kernels.coordinate`: one read of g, one write of omega."""

import torch
import triton

from uatmc_kernels.triton._launches import as_rows
from uatmc_kernels.triton._variants import prepare


def coordinate(g_Nd: torch.Tensor, w_v: torch.Tensor, w_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    g = as_rows(g_Nd)
    w_v, w_t = w_v.to(g.dtype).contiguous(), w_t.to(g.dtype).contiguous()
    (num_rows, width), modality = g.shape, w_v.shape[1]
    omega_Nd = g.new_empty(num_rows, width, dtype=torch.float32)
    if not (num_rows and width and modality):
        return g.new_zeros((), dtype=torch.float32), omega_Nd.zero_()
    prepared = prepare("coordinate", {"D": width, "M": modality}, g)
    num_tiles = triton.cdiv(num_rows, prepared.blocks["BO"])
    cosines = g.new_empty(num_tiles, dtype=torch.float32)
    prepared.kernel[num_tiles, 1, triton.cdiv(width, prepared.blocks["DO"])](
        g,
        w_v,
        w_t,
        omega_Nd,
        cosines,
        num_rows,
        G_STRIDE=g.stride(0),
        D=width,
        M=modality,
        **prepared.constants,
    )
    return (cosines.sum(dtype=torch.float64) / num_rows).float(), omega_Nd
