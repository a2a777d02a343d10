"""Per-modality projection of the item gradients, their alignment, and its gradient."""

import torch

from uatmc_kernels import reference, tiled
from uatmc_kernels._dispatch import Implementation, check_float, resolve


def coordinate(
    g_Nd: torch.Tensor, w_v: torch.Tensor, w_t: torch.Tensor, *, implementation: Implementation = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cosine between g W_v and g W_t, and its gradient with respect to g (docs/algorithm.md, section 4.1).

    g_Nd [N, d] gradients of the content rows; w_v [d, d_v], w_t [d, d_t], whose widths may differ.
    A row with a zero projection has no direction: it adds nothing to the mean (the divisor stays N)
    and its omega is zero.

    Returns (mean_cosine [], omega_Nd). Raises ValueError, naming the argument, for what does not fit.
    """
    check_float("g_Nd", g_Nd, (None, None), g_Nd)
    check_float("w_v", w_v, (g_Nd.shape[1], None), g_Nd)
    check_float("w_t", w_t, (g_Nd.shape[1], None), g_Nd)
    if w_v.shape[1] != w_t.shape[1]:
        raise ValueError(f"w_t: {w_t.shape[1]} columns, w_v {w_v.shape[1]}; a cosine needs equal widths")
    run = reference.coordinate if resolve(implementation) == "reference" else tiled.coordinate
    with torch.no_grad():
        return run(g_Nd, w_v, w_t)
