"""One normalised ascent step from zero for both modalities of every item."""

from typing import Literal

import torch
from torch import Tensor

from uatmc_kernels import reference
from uatmc_kernels._dispatch import Implementation, backend, check_float, check_same_dtype, resolve
from uatmc_kernels._op import op


@torch.no_grad()
def perturb(
    g_Nd: Tensor,
    w_v: Tensor,
    w_t: Tensor,
    v_N: Tensor,
    t_N: Tensor,
    epsilon: float,
    *,
    norm: Literal["l2", "linf"] = "l2",
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Perturbations on the surface of the relative ball of radius epsilon ||row|| (docs/algorithm.md, section 4).

    g_Nd [N, d] ascent direction in the content rows; w_v [d, d_v], w_t [d, d_t] take it to the
    modalities; v_N [N, d_v], t_N [N, d_t] are the rows whose L2 norm scales the radius.
    norm "l2": epsilon ||v_j|| u / ||u|| with u = g_j W_v. norm "linf": epsilon ||v_j|| sign(u).
    A row with a zero gradient gets zero.

    Returns (delta_v, delta_t). Raises ValueError, naming the argument, for what does not fit.
    """
    name = _checked(g_Nd, w_v, w_t, v_N, t_N, norm, implementation)
    if name == "reference":
        return reference.perturb(g_Nd, w_v, w_t, v_N, t_N, epsilon, norm)
    return _perturb(g_Nd, w_v, w_t, v_N, t_N, epsilon, norm, name)


@torch.no_grad()
def perturbed_content(
    g_Nd: Tensor,
    w_v: Tensor,
    w_t: Tensor,
    v_N: Tensor,
    t_N: Tensor,
    epsilon: float,
    *,
    bias_d: Tensor | None = None,
    norm: Literal["l2", "linf"] = "l2",
    implementation: Implementation = "auto",
) -> Tensor:
    """Content rows after `perturb`: (v + delta_v) W_v^T + (t + delta_t) W_t^T + bias, without writing a delta.

    Arguments as in `perturb`, where W_v and W_t are those of linear fusion; bias_d [d].

    Returns content_Nd. Raises ValueError, naming the argument, for what does not fit.
    """
    name = _checked(g_Nd, w_v, w_t, v_N, t_N, norm, implementation)
    if bias_d is not None:
        check_float("bias_d", bias_d, (g_Nd.shape[1],), g_Nd)
        check_same_dtype("bias_d", bias_d, "g_Nd", g_Nd)
    if name == "reference":
        return reference.perturbed_content(g_Nd, w_v, w_t, v_N, t_N, bias_d, epsilon, norm)
    return _perturbed_content(g_Nd, w_v, w_t, v_N, t_N, bias_d, epsilon, norm, name)


def _checked(g_Nd: Tensor, w_v: Tensor, w_t: Tensor, v_N: Tensor, t_N: Tensor, norm: str, implementation: str) -> str:
    check_float("g_Nd", g_Nd, (None, None), g_Nd)
    for name, weight, row_name, rows in (("w_v", w_v, "v_N", v_N), ("w_t", w_t, "t_N", t_N)):
        check_float(name, weight, (g_Nd.shape[1], None), g_Nd)
        check_float(row_name, rows, (g_Nd.shape[0], weight.shape[1]), g_Nd)
        check_same_dtype(name, weight, "g_Nd", g_Nd)
        check_same_dtype(row_name, rows, "g_Nd", g_Nd)
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm: {norm!r} is not one of 'l2', 'linf'")
    return resolve(implementation, g_Nd)


@op("perturb")
def _perturb(
    g: Tensor, w_v: Tensor, w_t: Tensor, v: Tensor, t: Tensor, epsilon: float, norm: str, implementation: str
) -> tuple[Tensor, Tensor]:
    return backend(implementation).perturb(g, w_v, w_t, v, t, epsilon, norm)


@_perturb.register_fake
def _(g, w_v, w_t, v, t, *rest):  # type: ignore[no-untyped-def]
    return v.new_empty(v.shape), t.new_empty(t.shape)


@op("perturbed_content")
def _perturbed_content(
    g: Tensor,
    w_v: Tensor,
    w_t: Tensor,
    v: Tensor,
    t: Tensor,
    bias: Tensor | None,
    epsilon: float,
    norm: str,
    implementation: str,
) -> Tensor:
    return backend(implementation).perturbed_content(g, w_v, w_t, v, t, bias, epsilon, norm)


@_perturbed_content.register_fake
def _(g, *rest):  # type: ignore[no-untyped-def]
    return g.new_empty(g.shape)
