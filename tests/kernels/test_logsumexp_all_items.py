"""logsumexp_all_items and the softmax loss's HVP: tiles and kernels against the reference, and against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.problems import SPLIT, few, known_positives, many, on, problem, worst_errors
from tests.kernels.test_bpr_all_items import STRIDES
from uatmc_kernels import logsumexp_all_items, softmax_all_items_hvp, softmax_mean_change


def offset_of(items):
    """An offset for each item, and none for blocks of odd size."""
    return None if len(items) % 2 else torch.linspace(-2, 1, len(items)).to(items)


def derivatives(users, items, skip, implementation, *, seen=None, weights=None, second=True):
    """[lse, first-order gradients, second-order ones], as float64."""
    leaves = [tensor.clone().requires_grad_() for tensor in (users, items)]
    offset = offset_of(items)
    lse = logsumexp_all_items(*leaves, skip, seen=seen, item_offset_N=offset, implementation=implementation)
    kept = lse.isfinite()  # a user without items has no sum
    total = torch.where(kept, lse, 0.0) @ (torch.ones_like(lse) if weights is None else weights.to(lse.dtype))
    results = [torch.where(kept, lse, -1.0)]
    first = torch.autograd.grad(total, leaves, create_graph=second)
    results += first
    if second:
        generator = torch.Generator().manual_seed(7)
        directions = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]
        along = sum((g * direction).sum() for g, direction in zip(first, directions, strict=True))
        results += torch.autograd.grad(along, leaves)
    return [result.detach().double().cpu() for result in results]


@many
@given(num_users=st.integers(1, 20), num_items=st.integers(0, 70), width=st.integers(1, 9), with_seen=st.booleans())
def test_tiles_equal_the_reference_to_second_order(num_users, num_items, width, with_seen):
    users, items, _, skip = problem(num_users, num_items, width)
    seen = known_positives(num_users, num_items) if with_seen else None
    weights = torch.rand(num_users, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, truths = (
        derivatives(users, items, skip, name, seen=seen, weights=weights) for name in ("tiled", "reference")
    )
    for result, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-10, atol=1e-10)


@few
@given(
    num_users=st.integers(1, 40),
    num_items=st.integers(0, 60),
    width=st.integers(1, 40),
    with_seen=st.booleans(),
    strides=st.sampled_from(sorted(STRIDES)),
)
def test_kernels_equal_float64_to_second_order(triton_device, num_users, num_items, width, with_seen, strides):
    users, items, _, skip = problem(num_users, num_items, width, torch.float32, scale=0.3)
    seen = known_positives(num_users, num_items) if with_seen else None
    weights = torch.rand(num_users, generator=torch.Generator().manual_seed(2))
    truths = derivatives(users.double(), items.double(), skip, "reference", seen=seen, weights=weights)
    users, items, skip, weights = on(triton_device, users, items, skip, weights)
    seen = seen and on(triton_device, seen)
    ours = derivatives(STRIDES[strides](users), STRIDES[strides](items), skip, "triton", seen=seen, weights=weights)
    assert max(worst_errors(ours, truths)) < 4 * SPLIT


@pytest.mark.real_tiles
@pytest.mark.parametrize("sizes", [(1, 1, 64), (70, 130, 32), (5, 90, 300)], ids=str)
def test_kernels_with_their_own_launches(triton_device, sizes):
    users, items, _, _ = problem(*sizes, torch.float32, scale=0.1)
    skip = torch.full((sizes[0],), -1)
    truths = derivatives(users.double(), items.double(), skip, "reference")
    ours = derivatives(*on(triton_device, users, items, skip), "triton")
    assert max(worst_errors(ours, truths)) < 4 * SPLIT


def test_long_streams_are_flushed_from_registers(triton_device, long_stream):
    users, items, _, skip = problem(2, long_stream, 3, torch.float32)
    seen = known_positives(2, long_stream, share=0.03)
    truths = derivatives(users.double(), items.double(), skip, "reference", seen=seen)
    ours = derivatives(*on(triton_device, users, items, skip), "triton", seen=on(triton_device, seen))
    assert max(worst_errors(ours, truths)) < 10 * SPLIT  # |u| |v| is up to 10, and exp is off by as much of itself


def test_gradcheck_and_gradgradcheck():
    users, items, _, skip = problem(5, 37, 3)
    seen = known_positives(5, 37)
    leaves = [tensor.clone().requires_grad_() for tensor in (users, items)]

    def lse(users, items):
        return logsumexp_all_items(users, items, skip, seen=seen)

    assert torch.autograd.gradcheck(lse, leaves)
    assert torch.autograd.gradgradcheck(lse, leaves)


def test_a_third_derivative_is_refused():
    users, items, _, skip = problem(4, 9, 3)
    leaf = users.requires_grad_()
    (first,) = torch.autograd.grad(logsumexp_all_items(leaf, items, skip).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="lse_second_order"):
        second.sum().backward()


def test_a_user_without_items_has_no_sum_and_no_gradient():
    users, items, _, _ = problem(2, 3, 4)
    seen = torch.tensor([0, 3, 4]), torch.tensor([0, 1, 2, 1])
    for implementation in ("tiled", "reference"):
        leaves = users.clone().requires_grad_(), items.clone().requires_grad_()
        lse = logsumexp_all_items(*leaves, torch.tensor([-1, 2]), seen=seen, implementation=implementation)
        assert lse[0] == -torch.inf and float(lse[1]) == pytest.approx(float(users[1] @ items[0]))
        softplus = F.softplus(lse - 1)
        gradients = torch.autograd.grad(softplus.sum(), leaves)
        assert all(gradient.isfinite().all() for gradient in gradients) and not gradients[0][0].any()


@pytest.mark.parametrize("implementation", ["tiled", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_error_is_no_larger_than_plain_pytorch_at_the_same_dtype(triton_device, implementation, dtype, scale):
    users, items, _, skip = problem(33, 500, 16, dtype, scale=scale)
    truths = derivatives(users.double(), items.double(), skip, "reference", second=False)
    leaves = [users.clone().requires_grad_(), items.clone().requires_grad_()]
    scores = leaves[0] @ leaves[1].T + offset_of(items)
    kept = (skip >= 0).nonzero().squeeze(1)
    lse = torch.logsumexp(scores.index_put((kept, skip[kept]), scores.new_tensor(-torch.inf)), 1)
    plain = [lse, *torch.autograd.grad(lse.sum(), leaves)]
    allowed = worst_errors([result.detach().double() for result in plain], truths)
    device = triton_device if implementation == "triton" else "cpu"
    ours = worst_errors(derivatives(*on(device, users, items, skip), implementation, second=False), truths)
    # Scores are rounded to float32, by sums in another order, and exp makes of that an error of as much of itself.
    is_split = implementation == "triton" and dtype == torch.float32
    rounding = (SPLIT if is_split else 2**-23) * float(scores.abs().max())
    for error, bound in zip(ours, allowed, strict=True):
        assert error <= bound * 1.05 + rounding


@pytest.mark.real_tiles
def test_a_million_items_are_summed_without_drift():
    users, items, _, skip = problem(3, 1_000_000, 4, torch.float32)
    ours = derivatives(users, items, skip, "tiled", second=False)
    truths = derivatives(users.double(), items.double(), skip, "tiled", second=False)
    # Scores and their sum are up to 20 here, so their difference is off by 20 x 2^-23, and exp by as much of itself.
    assert max(worst_errors(ours, truths)) < 20 * 2**-23


@many
@given(num_users=st.integers(1, 12), num_items=st.integers(2, 50), half=st.integers(1, 5), with_seen=st.booleans())
def test_hvp_equals_automatic_double_differentiation(num_users, num_items, half, with_seen):
    truth, ours = hvps(num_users, num_items, half, with_seen, torch.float64, {"tiled": "cpu", "reference": "cpu"})
    for result in ours:
        torch.testing.assert_close(result, truth, rtol=1e-10, atol=1e-10)


@few
@given(num_users=st.integers(1, 40), num_items=st.integers(2, 120), half=st.integers(1, 20), with_seen=st.booleans())
def test_hvp_kernel_equals_automatic_double_differentiation(triton_device, num_users, num_items, half, with_seen):
    truth, (ours,) = hvps(num_users, num_items, half, with_seen, torch.float32, {"triton": triton_device})
    assert max(worst_errors([ours], [truth])) < 4 * SPLIT


def hvps(num_users, num_items, half, with_seen, dtype, implementations):
    """Of the softmax loss in two blocks: lse over the others, then softplus(lse - positive score)."""
    users, items, _, _ = problem(num_users, num_items, 2 * half, scale=0.3)
    positives = torch.arange(num_users) % num_items
    seen = known_positives(num_users, num_items) if with_seen else None
    content = slice(half, 2 * half)
    tangent = torch.randn(num_items, half, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf = items.clone().requires_grad_()
    offset = torch.linspace(-2, 1, num_items, dtype=torch.float64)
    lse = logsumexp_all_items(users, leaf, positives, seen=seen, item_offset_N=offset, implementation="reference")
    positive = (users * leaf[positives]).sum(1) + offset[positives]
    (gradient,) = torch.autograd.grad(F.softplus(lse - positive).sum(), leaf, create_graph=True)
    (truth,) = torch.autograd.grad((gradient[:, content] * tangent).sum(), leaf)

    total = torch.logaddexp(lse, positive).detach()
    share, change = torch.exp(positive.detach() - total), (users[:, content] * tangent[positives]).sum(1)
    ours = []
    for name, device in implementations.items():
        given = on(device, users.to(dtype), items.to(dtype), total.to(dtype), positives, tangent.to(dtype))
        options = {"seen": seen and on(device, seen), "implementation": name, "item_offset_N": offset.to(device, dtype)}
        mean = softmax_mean_change(*given, content, **options).double().cpu() + share * change
        hvp = softmax_all_items_hvp(*given, mean.to(device, dtype), content, **options).double().cpu()
        hvp.index_add_(0, positives, (share * (change - mean))[:, None] * users[:, content])
        ours.append(hvp)
    return truth[:, content], ours


def test_wrong_arguments_are_named():
    users, items, total, skip = problem(4, 6, 3)
    tangent = items[:, 1:]
    with pytest.raises(ValueError, match="items_NK"):
        logsumexp_all_items(users, items[:, :2], skip)
    with pytest.raises(ValueError, match="skip_B"):
        logsumexp_all_items(users, items, skip.int())
    with pytest.raises(ValueError, match="item_offset_N"):
        logsumexp_all_items(users, items, skip, item_offset_N=total)
    with pytest.raises(ValueError, match="columns: a step"):
        softmax_mean_change(users, items, total, skip, tangent, slice(0, 3, 2))
    with pytest.raises(ValueError, match="tangent_items_Nd"):
        softmax_mean_change(users, items, total, skip, items, slice(1, 3))
    with pytest.raises(ValueError, match="mean_change_B"):
        softmax_all_items_hvp(users, items, total, skip, tangent, total[:3], slice(1, 3))
