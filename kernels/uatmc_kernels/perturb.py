"""One normalised ascent step from zero for both modalities of every item."""

from typing import Literal

import torch

from uatmc_kernels import reference, tiled
from uatmc_kernels._dispatch import Implementation, check_float, resolve


def perturb(
    g_Nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    v_N: torch.Tensor,
    t_N: torch.Tensor,
    epsilon: float,
    *,
    norm: Literal["l2", "linf"] = "l2",
    implementation: Implementation = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Perturbations on the surface of the relative ball of radius epsilon ||row|| (docs/algorithm.md, section 4).

    g_Nd [N, d] ascent direction in the content rows; w_v [d, d_v], w_t [d, d_t] take it to the
    modalities; v_N [N, d_v], t_N [N, d_t] are the rows whose L2 norm scales the radius.
    norm "l2": epsilon ||v_j|| u / ||u|| with u = g_j W_v. norm "linf": epsilon ||v_j|| sign(u).
    A row with a zero gradient gets zero.

    Returns (delta_v, delta_t). Raises ValueError, naming the argument, for what does not fit.
    """
    check_float("g_Nd", g_Nd, (None, None), g_Nd)
    for name, weight, row_name, rows in (("w_v", w_v, "v_N", v_N), ("w_t", w_t, "t_N", t_N)):
        check_float(name, weight, (g_Nd.shape[1], None), g_Nd)
        check_float(row_name, rows, (g_Nd.shape[0], weight.shape[1]), g_Nd)
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: {norm!r} is not one of 'l2', 'linf'")
    run = reference.perturb if resolve(implementation) == "reference" else tiled.perturb
    with torch.no_grad():
        return run(g_Nd, w_v, w_t, v_N, t_N, epsilon, norm)
