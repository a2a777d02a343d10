"""Reference of `uatmc_kernels.coordinate`: omega by automatic differentiation of the mean cosine."""

import torch

from uatmc_kernels._dispatch import accumulator_dtype


def coordinate(g_Nd: torch.Tensor, w_v: torch.Tensor, w_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(g_Nd.dtype)
    with torch.enable_grad():
        leaf_Nd = g_Nd.detach().to(dtype).requires_grad_()
        visual_N, text_N = leaf_Nd @ w_v.detach().to(dtype), leaf_Nd @ w_t.detach().to(dtype)
        kept_N = (visual_N.norm(dim=1) > 0) & (text_N.norm(dim=1) > 0)
        visual, text = visual_N[kept_N], text_N[kept_N]
        cosines = (visual * text).sum(1) / (visual.norm(dim=1) * text.norm(dim=1))
        mean = cosines.sum() / max(len(g_Nd), 1)
        (omega_Nd,) = torch.autograd.grad(mean, leaf_Nd)
    return mean.detach(), omega_Nd
