"""Per-modality projection of the item gradients, their alignment, and its gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import (
    Implementation,
    accumulator_dtype,
    backend,
    check_float,
    check_same_dtype,
    resolve,
)
from uatmc_kernels._op import op


@torch.no_grad()
def coordinate(
    g_Nd: Tensor, w_v: Tensor, w_t: Tensor, *, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """Mean cosine between g W_v and g W_t, and its gradient with respect to g (docs/algorithm.md, section 4.1).

    g_Nd [N, d] gradients of the content rows; w_v [d, d_v] and w_t [d, d_t] take them to the modalities. Where
    the widths differ, the narrower modality counts as padded with zeros: a cosine needs one space for both.
    A row with a zero projection has no direction: it adds nothing to the mean (the divisor stays N) and its
    omega is zero.

    Returns (mean_cosine [], omega_Nd) in the accumulator's dtype: float32, float64 for float64.
    Raises ValueError, naming the argument, for what does not fit.
    """
    check_float("g_Nd", g_Nd, (None, None), g_Nd)
    for name, weight in (("w_v", w_v), ("w_t", w_t)):
        check_float(name, weight, (g_Nd.shape[1], None), g_Nd)
        check_same_dtype(name, weight, "g_Nd", g_Nd)
    widest = max(w_v.shape[1], w_t.shape[1])
    w_v, w_t = (F.pad(weight, (0, widest - weight.shape[1])) for weight in (w_v, w_t))
    name = resolve(implementation, g_Nd)
    return reference.coordinate(g_Nd, w_v, w_t) if name == "reference" else _coordinate(g_Nd, w_v, w_t, name)


@op("coordinate")
def _coordinate(g: Tensor, w_v: Tensor, w_t: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    return backend(implementation).coordinate(g, w_v, w_t)


@_coordinate.register_fake
def _(g, w_v, w_t, implementation):  # type: ignore[no-untyped-def]
    dtype = accumulator_dtype(g.dtype)
    return g.new_empty((), dtype=dtype), g.new_empty(g.shape, dtype=dtype)
