"""Tiled pass of `uatmc_kernels.coordinate`: chunks of rows, the closed form of docs/algorithm.md, section 4.1."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype
from uatmc_kernels.tiled._tiles import lengths_are_safe, row_chunks, scale_rows


def coordinate(g_Nd: torch.Tensor, w_v: torch.Tensor, w_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(g_Nd.dtype)
    modality = w_v.shape[1]
    both = torch.cat([w_v, w_t], dim=1).to(dtype)
    omega_Nd = torch.empty(g_Nd.shape, dtype=dtype, device=g_Nd.device)
    total = g_Nd.new_zeros((), dtype=torch.float64)
    divisor = max(len(g_Nd), 1)
    for rows in row_chunks(len(g_Nd), g_Nd.shape[1] + 5 * modality):
        chunk = g_Nd[rows].to(dtype)
        scale: torch.Tensor | float = 1.0
        projected = chunk @ both
        lengths = projected.view(len(chunk), 2, modality).norm(dim=2)
        if not lengths_are_safe(lengths):
            chunk, scale = scale_rows(chunk)
            projected = chunk @ both
            lengths = projected.view(len(chunk), 2, modality).norm(dim=2)
        visual, text = projected.split(modality, dim=1)
        # Rows without a direction in either modality: zero instead of infinite inverses, and all below is zero.
        kept = (lengths > 0).all(dim=1, keepdim=True)
        inverse_visual, inverse_text = torch.where(kept, 1 / lengths, 0.0).split(1, dim=1)
        cosines = (visual * text).sum(1, keepdim=True) * inverse_visual * inverse_text
        total += cosines.sum()
        # alpha = (t^ - cos v^) / (N |v|), tau = (v^ - cos t^) / (N |t|); omega shrinks as its row was stretched.
        cross = inverse_visual * inverse_text * scale / divisor
        directions = torch.empty_like(projected)
        for here, one, other, inverse in zip(
            directions.split(modality, dim=1),
            (visual, text),
            (text, visual),
            (inverse_visual, inverse_text),
            strict=True,
        ):
            torch.mul(other, cross, out=here).addcmul_(one, cosines * inverse.square() * scale, value=-1 / divisor)
        torch.mm(directions, both.T, out=omega_Nd[rows])
    return (total / divisor).to(dtype), omega_Nd
