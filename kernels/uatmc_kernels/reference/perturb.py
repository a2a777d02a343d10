"""Reference of `uatmc_kernels.perturb` and `perturbed_content`: one normalised ascent step, row by row."""

from typing import Literal

import torch

from uatmc_kernels._dispatch import accumulator_dtype


def perturb(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    epsilon: float,
    norm: Literal["l2", "linf"],
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulator_dtype(g_Nd.dtype)

    def step(gradient_N: torch.Tensor, row_N: torch.Tensor) -> torch.Tensor:
        radius = epsilon * row_N.to(dtype).norm(dim=1, keepdim=True)
        if norm == "linf":
            return (radius * gradient_N.sign()).to(row_N.dtype)
        length = gradient_N.norm(dim=1, keepdim=True)
        unit_N = torch.where(length > 0, gradient_N / length, torch.zeros_like(gradient_N))
        return (radius * unit_N).to(row_N.dtype)

    return step(g_Nd.to(dtype) @ w_v.to(dtype), v_N), step(g_Nd.to(dtype) @ w_t.to(dtype), t_N)


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
    delta_v, delta_t = perturb(g_Nd, w_v, w_t, v_N, t_N, epsilon, norm)
    content_Nd = (v_N + delta_v) @ w_v.T + (t_N + delta_t) @ w_t.T
    return content_Nd if bias_d is None else content_Nd + bias_d
