"""Tiled pass of `uatmc_kernels.coordinate`: chunks of rows, the closed form of docs/algorithm.md, section 4.1."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import ROWS_PER_CHUNK


def coordinate(g_Nd: torch.Tensor, w_v: torch.Tensor, w_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(g_Nd.dtype)
    w_v, w_t = w_v.to(dtype), w_t.to(dtype)
    divisor = max(len(g_Nd), 1)
    omega_Nd = torch.empty_like(g_Nd, dtype=dtype)
    total = g_Nd.new_zeros((), dtype=torch.float64)
    for start in range(0, len(g_Nd), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        chunk = g_Nd[rows].to(dtype)
        visual, text = chunk @ w_v, chunk @ w_t
        visual_length, text_length = visual.norm(dim=1, keepdim=True), text.norm(dim=1, keepdim=True)
        kept = (visual_length > 0) & (text_length > 0)
        # Rows without a direction: divide by infinity instead of zero, and everything below is zero.
        visual_length.masked_fill_(~kept, float("inf"))
        text_length.masked_fill_(~kept, float("inf"))
        visual /= visual_length
        text /= text_length
        cosines = (visual * text).sum(1, keepdim=True)
        total += cosines.sum()
        alpha = torch.addcmul(text, cosines, visual, value=-1).div_(visual_length)
        tau = torch.addcmul(visual, cosines, text, value=-1).div_(text_length)
        torch.mm(alpha, w_v.T, out=omega_Nd[rows]).addmm_(tau, w_t.T).div_(divisor)
    return (total / divisor).to(dtype), omega_Nd
