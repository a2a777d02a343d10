"""Kernels that work item by item: the gradient's projections, their alignment, and the perturbation.

    BO  rows of a tile    D  width of the content    M  width of a modality    DC, MC  columns of one product
    DO  columns of one output slice

Where MC covers M a tile's projections stay in registers; else they are made twice, chunk by chunk: once for
their lengths, once for what needs the lengths.
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
def add_squares(visual, text, squares_v, squares_t, inner):
    squares_v += tl.sum(visual * visual, 1)
    squares_t += tl.sum(text * text, 1)
    inner += tl.sum(visual * text, 1)
    return squares_v, squares_t, inner


@triton.jit
def pull_back(
    omega,
    visual,
    text,
    w_v,
    w_t,
    both,
    for_visual,
    for_text,
    d,
    m,
    D: tl.constexpr,
    M: tl.constexpr,
    MC: tl.constexpr,
    DO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """omega + alpha W_v^T + tau W_t^T for columns m .. m + MC of the modalities."""
    alpha = narrow(text * both - visual * for_visual, w_v.dtype.element_ty)
    omega = dot(alpha, tl.trans(load_weight(w_v, d, m, D, M, DO, MC)), omega, PRECISION)
    tau = narrow(visual * both - text * for_text, w_t.dtype.element_ty)
    return dot(tau, tl.trans(load_weight(w_t, d, m, D, M, DO, MC)), omega, PRECISION)


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
    squares_v = tl.zeros([BO], tl.float32)
    squares_t = tl.zeros([BO], tl.float32)
    inner = tl.zeros([BO], tl.float32)
    if MC >= M:
        visual = project(g, w_v, scale, row, num_rows, 0, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        text = project(g, w_t, scale, row, num_rows, 0, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        squares_v, squares_t, inner = add_squares(visual, text, squares_v, squares_t, inner)
    else:
        for m in range(0, M, MC):
            part_v = project(g, w_v, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            part_t = project(g, w_t, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            squares_v, squares_t, inner = add_squares(part_v, part_t, squares_v, squares_t, inner)
    # A row without a direction in either modality adds nothing: its inverse lengths are zero, not infinite.
    kept = (squares_v > 0) & (squares_t > 0)
    inverse_v = tl.where(kept, 1.0 / tl.sqrt_rn(tl.where(kept, squares_v, 1.0)), 0.0)
    inverse_t = tl.where(kept, 1.0 / tl.sqrt_rn(tl.where(kept, squares_t, 1.0)), 0.0)
    cosine = inner * inverse_v * inverse_t
    if slice_d == 0:
        tl.store(cosines_out + tl.program_id(0), tl.sum(tl.where(rows < num_rows, cosine, 0.0), 0))
    both = (inverse_v * inverse_t)[:, None]
    for_v = (cosine * inverse_v * inverse_v)[:, None]
    for_t = (cosine * inverse_t * inverse_t)[:, None]
    omega = tl.zeros([BO, DO], tl.float32)
    if MC >= M:
        omega = pull_back(omega, visual, text, w_v, w_t, both, for_v, for_t, slice_d, 0, D, M, MC, DO, PRECISION)
    else:
        for m in range(0, M, MC):
            part_v = project(g, w_v, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            part_t = project(g, w_t, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            omega = pull_back(omega, part_v, part_t, w_v, w_t, both, for_v, for_t, slice_d, m, D, M, MC, DO, PRECISION)
    omega = omega * scale[:, None] / num_rows
    put_rows(omega_out, row, num_rows, D, slice_d, omega, D, BO, DO, False)


@triton.jit
def ball_radius(
    rows_in,
    epsilon,
    row,
    num_rows,
    ROW_STRIDE: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    """epsilon times the length of each row."""
    squares = tl.zeros([BO], tl.float32)
    for m in range(0, M, MC):
        original = load_rows(rows_in, row, num_rows, ROW_STRIDE, m, M, BO, MC).to(tl.float32)
        squares += tl.sum(original * original, 1)
    return epsilon * tl.sqrt_rn(squares)


@triton.jit
def over_length(radius, squares):
    """radius / length; zero for a row without a direction."""
    return tl.where(squares > 0, radius / tl.sqrt_rn(tl.where(squares > 0, squares, 1.0)), 0.0)


@triton.jit
def step_factor(
    radius,
    g,
    w,
    scale,
    row,
    num_rows,
    LINF: tl.constexpr,
    G_STRIDE: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    DC: tl.constexpr,
    MC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a direction (its sign for linf) is multiplied by to lie on the surface, where it takes several products."""
    factor = radius
    if not LINF:
        squares = tl.zeros([BO], tl.float32)
        for m in range(0, M, MC):
            direction = project(g, w, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            squares += tl.sum(direction * direction, 1)
        factor = over_length(radius, squares)
    return factor


@triton.jit
def step(direction, factor, LINF: tl.constexpr):
    if LINF:
        direction = (direction > 0).to(tl.float32) - (direction < 0).to(tl.float32)
    return factor[:, None] * direction


@triton.jit
def whole_step(direction, radius, LINF: tl.constexpr):
    """The step where the whole direction is at hand."""
    factor = radius
    if not LINF:
        factor = over_length(radius, tl.sum(direction * direction, 1))
    return step(direction, factor, LINF)


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
    radius = ball_radius(rows_in, epsilon, row, num_rows, ROW_STRIDE, M, BO, MC)
    if MC >= M:
        direction = project(g, w, scale, row, num_rows, 0, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        put_rows(delta_out, row, num_rows, M, 0, whole_step(direction, radius, LINF), M, BO, MC, False)
    else:
        factor = step_factor(radius, g, w, scale, row, num_rows, LINF, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        for m in range(0, M, MC):
            part = project(g, w, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            put_rows(delta_out, row, num_rows, M, m, step(part, factor, LINF), M, BO, MC, False)


@triton.jit
def moved_rows(
    delta,
    rows_in,
    row,
    num_rows,
    m,
    ROW_STRIDE: tl.constexpr,
    M: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    """Columns m .. m + MC of row + delta, in the dtype of the rows."""
    original = load_rows(rows_in, row, num_rows, ROW_STRIDE, m, M, BO, MC)
    return narrow(original.to(tl.float32) + delta, original.dtype)


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
    d,
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
    radius = ball_radius(rows_in, epsilon, row, num_rows, ROW_STRIDE, M, BO, MC)
    if MC >= M:
        direction = project(g, w, scale, row, num_rows, 0, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        delta = whole_step(direction, radius, LINF)
        moved = moved_rows(delta, rows_in, row, num_rows, 0, ROW_STRIDE, M, BO, MC)
        content = dot(moved, tl.trans(load_weight(w, d, 0, D, M, DO, MC)), content, PRECISION)
    else:
        factor = step_factor(radius, g, w, scale, row, num_rows, LINF, G_STRIDE, D, M, BO, DC, MC, PRECISION)
        for m in range(0, M, MC):
            part = project(g, w, scale, row, num_rows, m, G_STRIDE, D, M, BO, DC, MC, PRECISION)
            moved_part = moved_rows(step(part, factor, LINF), rows_in, row, num_rows, m, ROW_STRIDE, M, BO, MC)
            content = dot(moved_part, tl.trans(load_weight(w, d, m, D, M, DO, MC)), content, PRECISION)
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
