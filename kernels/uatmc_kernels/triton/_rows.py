"""Kernels that work item by item: the gradient's projections, their alignment, and the perturbation.

    BO  rows of a tile    D  width of the content    M  width of a modality    DC, MC  columns of one product
    DO  columns of one output slice

Where MC covers M a tile's projections stay in registers; else they are made twice, chunk by chunk: once for
the norms, once for what needs the norms.
"""

import triton
import triton.language as tl

from uatmc_kernels.triton._math import dot, load_rows, narrow, put_rows


@triton.jit
def power_of_two_scale(largest):
    """2^-e for 2^e <= largest < 2^(e+1): squares of tiny gradients do not vanish, and scaling is exact."""
    exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
    return (0x7F000000 - tl.minimum(exponent, 0x7E800000)).to(tl.float32, bitcast=True)


@triton.jit
def row_scale(g, row, num_rows, G_STRIDE: tl.constexpr, D: tl.constexpr, BO: tl.constexpr, DC: tl.constexpr):
    largest = tl.zeros([BO], tl.float32)
    for k in range(0, D, DC):
        part = load_rows(g, row, num_rows, G_STRIDE, k, D, BO, DC)
        largest = tl.maximum(largest, tl.max(tl.abs(part.to(tl.float32)), 1))
    return power_of_two_scale(largest)


@triton.jit
def project(
    g,
    w,
    scale,
    row,
    num_rows,
    m,
    G_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns m .. m + MC of (scale g) W, for rows of g and W [D, M]."""
    result = tl.zeros([BO, MC], tl.float32)
    for k in range(0, D, DC):
        part = load_rows(g, row, num_rows, G_STRIDE, k, D, BO, DC)
        part = narrow(part.to(tl.float32) * scale[:, None], part.dtype)
        weight = load_weight(w, k, m, D, M, DC, MC)
        result = dot(part, weight, result, PRECISION)
    return result


@triton.jit
def load_weight(w, k, m, D: tl.constexpr, M: tl.constexpr, DC: tl.constexpr, MC: tl.constexpr):
    """Tile [DC, MC] of W [D, M]; zero beyond it."""
    ks = k + tl.arange(0, DC)
    ms = m + tl.arange(0, MC)
    tile = w + ks[:, None] * M + ms[None, :]
    if (D % DC == 0) and (M % MC == 0):
        return tl.load(tile)
    return tl.load(tile, mask=(ks < D)[:, None] & (ms < M)[None, :], other=0.0)


@triton.jit
def coordinate(
    g,
    w_v,
    w_t,
    omega_out,
    cosines_out,
    num_rows,
    G_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    DO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """omega (docs/algorithm.md, section 4.1) and each program's sum of cosines. Grid (tiles, 1, slices of D)."""
    row = tl.program_id(0) * BO
    slice_d = tl.program_id(2) * DO
    rows = row + tl.arange(0, BO)
    scale = row_scale(g, row, num_rows, G_STRIDE, D, BO, DC)
    visual_squares = tl.zeros([BO], tl.float32)
    text_squares = tl.zeros([BO], tl.float32)
    inner = tl.zeros([BO], tl.float32)
    for m in range(0, M, MC):
        visual = project(g, w_v, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        text = project(g, w_t, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        visual_squares += tl.sum(visual * visual, 1)
        text_squares += tl.sum(text * text, 1)
        inner += tl.sum(visual * text, 1)
    # A row without a direction in either modality adds nothing: its inverse lengths are zero, not infinite.
    kept = (visual_squares > 0) & (text_squares > 0)
    inverse_visual = tl.where(kept, 1.0 / tl.sqrt_rn(tl.where(kept, visual_squares, 1.0)), 0.0)
    inverse_text = tl.where(kept, 1.0 / tl.sqrt_rn(tl.where(kept, text_squares, 1.0)), 0.0)
    cosine = inner * inverse_visual * inverse_text
    if slice_d == 0:
        tl.store(cosines_out + tl.program_id(0), tl.sum(tl.where(rows < num_rows, cosine, 0.0), 0))
    both = (inverse_visual * inverse_text)[:, None]
    for_visual = (cosine * inverse_visual * inverse_visual)[:, None]
    for_text = (cosine * inverse_text * inverse_text)[:, None]
    omega = tl.zeros([BO, DO], tl.float32)
    for m in range(0, M, MC):
        if MC < M:
            visual = project(g, w_v, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            text = project(g, w_t, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        alpha = narrow(text * both - visual * for_visual, w_v.dtype.element_ty)
        omega = dot(alpha, tl.trans(load_weight(w_v, slice_d, m, D, M, DO, MC)), omega, PRECISION)
        tau = narrow(visual * both - text * for_text, w_t.dtype.element_ty)
        omega = dot(tau, tl.trans(load_weight(w_t, slice_d, m, D, M, DO, MC)), omega, PRECISION)
    omega = omega * scale[:, None] / num_rows
    put_rows(omega_out, row, num_rows, D, slice_d, omega, D, BO, DO, False)


@triton.jit
def step_factor(
    g,
    w,
    rows_in,
    scale,
    epsilon,
    row,
    num_rows,
    LINF: tl.constexpr,
    G_STRIDE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a row's direction (its sign for linf) is multiplied by to lie on the surface; zero without direction."""
    row_squares = tl.zeros([BO], tl.float32)
    squares = tl.zeros([BO], tl.float32)
    for m in range(0, M, MC):
        original = load_rows(rows_in, row, num_rows, ROW_STRIDE, m, M, BO, MC).to(tl.float32)
        row_squares += tl.sum(original * original, 1)
        if not LINF:
            direction = project(g, w, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            squares += tl.sum(direction * direction, 1)
    radius = epsilon * tl.sqrt_rn(row_squares)
    if LINF:
        return radius
    return tl.where(squares > 0, radius / tl.sqrt_rn(tl.where(squares > 0, squares, 1.0)), 0.0)


@triton.jit
def step(direction, factor, LINF: tl.constexpr):
    if LINF:
        sign = (direction > 0).to(tl.float32) - (direction < 0).to(tl.float32)
        return factor[:, None] * sign
    return factor[:, None] * direction


@triton.jit
def perturb(
    g,
    w,
    rows_in,
    delta_out,
    epsilon,
    num_rows,
    LINF: tl.constexpr,
    G_STRIDE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """delta of one modality. Grid (tiles,)."""
    row = tl.program_id(0) * BO
    scale = row_scale(g, row, num_rows, G_STRIDE, D, BO, DC)
    factor = step_factor(
        g, w, rows_in, scale, epsilon, row, num_rows, LINF, G_STRIDE, ROW_STRIDE, D, M, BO, DC, MC, PRECISION
    )
    for m in range(0, M, MC):
        direction = project(g, w, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        put_rows(delta_out, row, num_rows, M, m, step(direction, factor, LINF), M, BO, MC, False)


@triton.jit
def perturbed_modality(
    content,
    g,
    w,
    rows_in,
    scale,
    epsilon,
    row,
    num_rows,
    slice_d,
    LINF: tl.constexpr,
    G_STRIDE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    DO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """content + (row + delta) W^T for one modality; delta lives in registers only."""
    factor = step_factor(
        g, w, rows_in, scale, epsilon, row, num_rows, LINF, G_STRIDE, ROW_STRIDE, D, M, BO, DC, MC, PRECISION
    )
    for m in range(0, M, MC):
        direction = project(g, w, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        original = load_rows(rows_in, row, num_rows, ROW_STRIDE, m, M, BO, MC)
        moved = narrow(original.to(tl.float32) + step(direction, factor, LINF), original.dtype)
        weight = tl.trans(load_weight(w, slice_d, m, D, M, DO, MC))
        content = dot(moved, weight, content, PRECISION)
    return content


@triton.jit
def perturbed_content(
    g,
    w_v,
    w_t,
    v,
    t,
    bias,
    content_out,
    epsilon,
    num_rows,
    LINF: tl.constexpr,
    G_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    T_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M_V: tl.constexpr,
    M_T: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    DO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(v + delta_v) W_v^T + (t + delta_t) W_t^T + bias. Grid (tiles, 1, slices of D)."""
    row = tl.program_id(0) * BO
    slice_d = tl.program_id(2) * DO
    scale = row_scale(g, row, num_rows, G_STRIDE, D, BO, DC)
    columns = slice_d + tl.arange(0, DO)
    start = tl.load(bias + columns, mask=columns < D, other=0.0).to(tl.float32)
    content = tl.zeros([BO, DO], tl.float32) + start[None, :]
    content = perturbed_modality(
        content, g, w_v, v, scale, epsilon, row, num_rows, slice_d,
        LINF, G_STRIDE, V_STRIDE, D, M_V, BO, DC, MC, DO, PRECISION,
    )  # fmt: skip
    content = perturbed_modality(
        content, g, w_t, t, scale, epsilon, row, num_rows, slice_d,
        LINF, G_STRIDE, T_STRIDE, D, M_T, BO, DC, MC, DO, PRECISION,
    )  # fmt: skip
    put_rows(content_out, row, num_rows, D, slice_d, content, D, BO, DO, False)
