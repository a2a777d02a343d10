"""What the score kernels share: the logistic pieces in base 2, tiles of rows, and entries left out.

Everything is in base 2: scores are multiplied by log2(e) once, in the same FMA that subtracts the positive's,
and exp2/log2 are what the hardware computes. See docs/kernels.md for the limits this is designed against.
"""

import triton
import triton.language as tl

from uatmc_kernels._dispatch import is_interpreted

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
# The interpreter (CPU) knows no inline assembly.
INTERPRETED = tl.constexpr(is_interpreted())
# Sums over the stream are flushed from registers after this many rows: errors grow with 4096 + N / 4096, not N.
FLUSH = tl.constexpr(4096)


@triton.jit
def exp2(x):
    """2^x, one special-function instruction: tl.exp2 adds five more for denormal results, which are flushed here."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """1/x to one unit in the last place, one special-function instruction; a division takes eight in all."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def opaque(x):
    """x, int32, of which the compiler knows nothing. Addresses made of it are computed where they stand: those of a
    program's outputs would be computed before its loops, and take registers, or spill, as long as they run."""
    if INTERPRETED:
        return x
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def sigmoid(x):
    """sigma of x / log2(e). Without |x| and selections: 2^-x may overflow, and 1 / inf is the zero wanted."""
    return reciprocal(1.0 + exp2(-x))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b on tensor cores. The interpreter would multiply the bits of bfloat16, so it gets float32; of bf16x3 it
    gets the parts that the compiler makes."""
    if INTERPRETED:
        if PRECISION == "bf16x3":
            a_high = narrow(a, tl.bfloat16).to(tl.float32)
            b_high = narrow(b, tl.bfloat16).to(tl.float32)
            a_low = narrow(a - a_high, tl.bfloat16).to(tl.float32)
            b_low = narrow(b - b_high, tl.bfloat16).to(tl.float32)
            low = tl.dot(a_low, b_high, tl.dot(a_high, b_low, acc))
            return tl.dot(a_high, b_high, low)
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to the dtype of an operand, to nearest even. The interpreter cuts off, so it gets rounded bits."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _one_plus(a, b):
    return (a + b) + a * b


@triton.jit
def softplus_sums(x, z, axis: tl.constexpr):
    """Sums of softplus over an axis of at most 128, in base 2, from x and z = 2^-|x|: one logarithm a row.

    q with 1 + q = product of (1 + z) is exact also where every z is tiny, as for most items of a catalog. Where all
    scores are equal each factor is 2; of 128 of them the product is infinite, and its logarithm that of the largest
    number, to a unit in the last place: no other product of 128 is.
    """
    tl.static_assert(x.shape[axis] <= 128, "the product of a row may be infinite")
    q = tl.reduce(z, axis, _one_plus)
    if x.shape[axis] > 64:
        q = tl.minimum(q, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.sum(tl.maximum(x, 0.0), axis) + log2_1p(q)


@triton.jit
def log2_1p(q):
    """log2(1 + q) without cancellation: the rounding of u = 1 + q is divided out again."""
    u = 1.0 + q
    exact = u == 1.0
    return tl.where(exact, q * LOG2E, tl.log2(u) * (q / tl.where(exact, 1.0, u - 1.0)))


@triton.jit
def load_rows(
    base, first, num_rows, STRIDE: tl.constexpr, k, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Tile [ROWS, COLS] at row `first`, column k. Rows beyond the last repeat it: the caller leaves them out.

    Only the scalar part of the address is 64 bits wide; within a tile offsets are constants of the compiler.
    """
    columns = tl.arange(0, COLS)
    rows = tl.minimum(tl.arange(0, ROWS), num_rows - 1 - first)
    tile = base + (tl.cast(first, tl.int64) * STRIDE + k) + (rows[:, None] * STRIDE + columns[None, :])
    if WIDTH % COLS == 0:
        return tl.load(tile)
    return tl.load(tile, mask=(k + columns < WIDTH)[None, :], other=0.0)


@triton.jit
def put(out, value, kept, ACCUMULATE: tl.constexpr):
    """Writes, or adds. An address that belongs to one program gets its additions in that program's order."""
    if ACCUMULATE:
        tl.atomic_add(out, value, mask=kept, sem="relaxed")
    else:
        tl.store(out, narrow(value, out.dtype.element_ty), mask=kept)


@triton.jit
def put_rows(
    base,
    first,
    num_rows,
    STRIDE: tl.constexpr,
    k,
    value,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """`put` for a tile [ROWS, COLS] at row `first`, column k."""
    columns = tl.arange(0, COLS)
    rows = tl.arange(0, ROWS)
    tile = base + (tl.cast(first, tl.int64) * STRIDE + k) + (rows[:, None] * STRIDE + columns[None, :])
    put(tile, value, (first + rows < num_rows)[:, None] & (k + columns < WIDTH)[None, :], ACCUMULATE)


@triton.jit
def load_each(base, rows, num_rows, axis: tl.constexpr, other: tl.constexpr, RAGGED: tl.constexpr):
    """A number of each row, expanded along an axis; RAGGED: some rows may lie beyond the last, and get `other`."""
    if RAGGED:
        return tl.expand_dims(tl.load(base + rows, mask=rows < num_rows, other=other), axis)
    return tl.expand_dims(tl.load(base + rows), axis)


@triton.jit
def load_users(positive, skip, users, num_users, axis: tl.constexpr, RAGGED: tl.constexpr):
    """(positive's score in base 2, item left out) of users, expanded along an axis. Beyond the last user the score is
    infinite: all that follows from it is zero."""
    shift = load_each(positive, users, num_users, axis, float("inf"), RAGGED) * LOG2E
    return shift, load_each(skip, users, num_users, axis, -1, RAGGED)


@triton.jit
def tiles_of(chunk, stop, RAGGED: tl.constexpr, BS: tl.constexpr):
    """(begin, end) of the loop over whole tiles of the chunk that begins there, of a stream that ends at `stop`;
    RAGGED: over its last one, which alone asks which of its columns there are."""
    stop = tl.minimum(chunk + FLUSH, stop)
    whole = chunk + (stop - chunk) // BS * BS
    return (whole, stop) if RAGGED else (chunk, whole)


@triton.jit
def unless_equal(x, a, b):
    """x, or -inf where the integers a and b are equal.

    The comparison stands where x is: the compiler would make it before, and keep its results, a bit a score packed and
    unpacked again, while the product that x comes from is waited for.
    """
    if INTERPRETED:
        return tl.where(a != b, x, float("-inf"))
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p; }",
        "=f,f,r,r", [x, a, b], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def without_positive(x, skipped, first, stop, RAGGED: tl.constexpr, BS: tl.constexpr):
    """x [users, BS] of a tile of items, -inf for the item left out; RAGGED: for those beyond the last as well."""
    x = unless_equal(x, tl.arange(0, BS)[None, :], skipped - first)
    if RAGGED:
        x = tl.where((first + tl.arange(0, BS) < stop)[None, :], x, float("-inf"))
    return x


@triton.jit
def first_entry(first_entries, entry_rows, tile, start):
    """(position, row of the stream) of the first entry of a tile of owners at or behind row `start`. The last entry of
    each tile is a sentinel beyond the stream."""
    low = tl.load(first_entries + tile)
    high = tl.load(first_entries + tile + 1) - 1
    while low < high:
        middle = low + (high - low) // 2
        if tl.load(entry_rows + middle) < start:
            low = middle + 1
        else:
            high = middle
    return low, tl.load(entry_rows + low)


@triton.jit
def leave_out(x, nothing, entry_rows, entry_owners, entry, entry_row, first, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sets the entries of the tile at row `first` of the stream to `nothing`; returns x, the next entry and its row.

    The compiler copies no tile ahead for a loop with a loop in its body, unless that is in a branch; and it lays x out
    for the product it goes into only where it sees it go there outside of branches: hence the last selection, of which
    nothing is left in the end. A tile without entries takes one comparison of numbers in registers.
    """
    is_there = entry_row < first + COLS
    whole = x
    if is_there:
        while entry_row < first + COLS:
            owner = tl.load(entry_owners + entry)
            hit = (tl.arange(0, ROWS) == owner)[:, None] & (tl.arange(0, COLS) == entry_row - first)[None, :]
            x = tl.where(hit, nothing, x)
            entry += 1
            entry_row = tl.load(entry_rows + entry)
    return tl.where(is_there, x, whole), entry, entry_row
