"""bpr_all_items and its HVP: tiles and kernels against the reference, and against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

import uatmc_kernels
from tests.kernels.problems import SPLIT, derivatives, few, known_positives, many, on, problem, worst_errors
from uatmc_kernels import bpr_all_items, bpr_all_items_hvp


@many
@given(num_users=st.integers(1, 20), num_items=st.integers(0, 70), width=st.integers(1, 9), with_seen=st.booleans())
def test_tiles_equal_the_reference_to_second_order(num_users, num_items, width, with_seen):
    inputs = problem(num_users, num_items, width)
    seen = known_positives(num_users, num_items) if with_seen else None
    weights = torch.rand(num_users, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, truths = (derivatives(inputs, name, seen=seen, weights=weights) for name in ("tiled", "reference"))
    for result, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-10, atol=1e-10)


def slices_of_wider_rows(tensor):
    wide = torch.zeros(tensor.shape[0], tensor.shape[1] + 3, dtype=tensor.dtype, device=tensor.device)
    wide[:, 2:-1] = tensor
    return wide[:, 2:-1]


STRIDES = {
    "contiguous": lambda tensor: tensor,
    "slices": slices_of_wider_rows,
    "transposed": lambda tensor: tensor.T.contiguous().T,
}


@few
@example(num_users=1, num_items=40, width=11, with_seen=True, strides="slices", same_weights=False)
@given(
    num_users=st.integers(1, 40),
    num_items=st.integers(0, 40),
    width=st.integers(1, 40),
    with_seen=st.booleans(),
    strides=st.sampled_from(sorted(STRIDES)),
    same_weights=st.booleans(),
)
@pytest.mark.parametrize("implementation", ["triton", "triton_atomic"])
def test_kernels_equal_float64_to_second_order(
    triton_device, implementation, num_users, num_items, width, with_seen, strides, same_weights
):
    inputs = problem(num_users, num_items, width, torch.float32)
    seen = known_positives(num_users, num_items) if with_seen else None
    weights = None if same_weights else torch.rand(num_users, generator=torch.Generator().manual_seed(2))
    exact = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    truths = derivatives(exact, "reference", seen=seen, weights=None if weights is None else weights.double())
    users, items, positive, skip = on(triton_device, *inputs)
    users, items = STRIDES[strides](users), STRIDES[strides](items)
    seen, weights = seen and on(triton_device, seen), None if weights is None else weights.to(triton_device)
    ours = derivatives((users, items, positive, skip), implementation, seen=seen, weights=weights)
    # The inputs are standard normal; what a direction adds up over all items may cancel, of terms that reach three.
    assert max(worst_errors(ours, truths, term=1.0)) < 8 * SPLIT


@pytest.mark.real_tiles
@pytest.mark.parametrize("sizes", [(1, 1, 64), (70, 130, 32), (70, 150, 200), (5, 90, 300)], ids=str)
def test_kernels_with_their_own_launches(triton_device, sizes):
    inputs = problem(*sizes, torch.float32)
    seen = known_positives(*sizes[:2])
    truths = derivatives(tuple(t.double() if t.is_floating_point() else t for t in inputs), "reference", seen=seen)
    ours = derivatives(on(triton_device, *inputs), "triton", seen=on(triton_device, seen))
    assert max(worst_errors(ours, truths)) < 4 * SPLIT


@pytest.mark.real_tiles
@pytest.mark.parametrize("implementation", ["triton", "triton_atomic"])
def test_scores_that_are_all_equal_do_not_overflow(triton_device, implementation):
    """As of users without a history: each factor of the product that a row's logarithm is taken of is 2."""
    users, items, positive, skip = problem(130, 400, 32, torch.float32)
    inputs = torch.zeros_like(users), items, torch.zeros_like(positive), skip
    truths = derivatives(tuple(t.double() if t.is_floating_point() else t for t in inputs), "reference")
    ours = derivatives(on(triton_device, *inputs), implementation)
    assert max(worst_errors(ours, truths)) < 4 * SPLIT


@pytest.mark.real_tiles
@pytest.mark.parametrize("implementation", ["triton", "triton_atomic"])
@pytest.mark.parametrize("score", [0.0, 3e-8, torch.nan])
def test_rows_of_128_equal_scores(triton_device, monkeypatch, implementation, score):
    """The largest tiles: the product of 128 factors of 2 is infinite, of a little less it may be; NaN stays NaN."""
    from uatmc_kernels.triton import _launches

    launch = dict.fromkeys(next(iter(_launches.TABLE.values())), (128, 128, 32, 32, 8, 2, True))
    monkeypatch.setattr(_launches, "TABLE", dict.fromkeys(_launches.TABLE, launch))
    users, items = torch.full((3, 1), score), torch.ones(260, 1)
    inputs = users, items, torch.zeros(3), torch.tensor([-1, 0, 259])
    truths = derivatives(tuple(t.double() if t.is_floating_point() else t for t in inputs), "reference", second=False)
    ours = derivatives(on(triton_device, *inputs), implementation, second=False)
    for result, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(result, truth, rtol=2 * SPLIT, atol=0, equal_nan=True)


def test_long_streams_are_flushed_from_registers(triton_device, long_stream):
    inputs = problem(2, long_stream, 3, torch.float32)
    seen = known_positives(2, long_stream, share=0.03)
    truths = derivatives(tuple(t.double() if t.is_floating_point() else t for t in inputs), "reference", seen=seen)
    ours = derivatives(on(triton_device, *inputs), "triton", seen=on(triton_device, seen))
    assert max(worst_errors(ours, truths)) < 4 * SPLIT


def test_gradcheck_and_gradgradcheck():
    users, items, positive, skip = problem(5, 37, 3)
    seen = known_positives(5, 37)
    leaves = [tensor.clone().requires_grad_() for tensor in (users, items, positive)]

    def loss(users, items, positive):
        return bpr_all_items(users, items, positive, skip, seen=seen)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_a_third_derivative_is_refused():
    users, items, positive, skip = problem(4, 9, 3)
    leaf = users.requires_grad_()
    loss = bpr_all_items(leaf, items, positive, skip).square().sum()
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="bpr_second_order"):
        second.sum().backward()


def test_a_summed_loss_scales_the_gradients_of_the_forward_sweep(monkeypatch):
    users, items, positive, skip = problem(8, 50, 4)
    calls = []
    original = uatmc_kernels.tiled.bpr_item_gradients
    monkeypatch.setattr(uatmc_kernels.tiled, "bpr_item_gradients", lambda *a: calls.append(1) or original(*a))

    def gradient(implementation, reduce):
        leaf = items.clone().requires_grad_()
        reduce(bpr_all_items(users, leaf, positive, skip, implementation=implementation)).backward()
        return leaf.grad

    torch.testing.assert_close(gradient("tiled", torch.mean), gradient("reference", torch.mean))
    assert not calls
    weights = torch.linspace(0.1, 1, 8, dtype=torch.float64)
    ours, truth = (gradient(name, lambda loss: loss @ weights) for name in ("tiled", "reference"))
    torch.testing.assert_close(ours, truth)
    assert len(calls) == 1


def plain_pytorch(users, items, positive, skip):
    """The loss as one would write it, everything in the inputs' dtype."""
    losses = F.softplus(users @ items.T - positive[:, None], threshold=50)
    kept = torch.ones_like(losses)
    kept[(skip >= 0).nonzero().squeeze(1), skip[skip >= 0]] = 0
    return (losses * kept).sum(1)


@pytest.mark.parametrize("implementation", ["tiled", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_error_is_no_larger_than_plain_pytorch_at_the_same_dtype(triton_device, implementation, dtype, scale):
    *inputs, skip = problem(33, 500, 16, dtype, scale=scale)
    truths = derivatives((*(tensor.double() for tensor in inputs), skip), "reference", second=False)

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    loss = plain_pytorch(*leaves, skip)
    plain = [loss, *torch.autograd.grad(loss.sum(), leaves)]
    plain_errors = worst_errors([result.detach().double() for result in plain], truths)

    device = triton_device if implementation == "triton" else "cpu"
    ours = worst_errors(derivatives(on(device, *inputs, skip), implementation, second=False), truths)
    is_split = implementation == "triton" and dtype == torch.float32
    for error, allowed in zip(ours, plain_errors, strict=True):
        assert error <= allowed * 1.05 + (4 * SPLIT if is_split else 5e-7)


@pytest.mark.parametrize("implementation", ["tiled", "triton"])
@pytest.mark.parametrize("score", [-500.0, -100.0, -15.0, -5.0, 0.0, 5.0, 100.0, 500.0])
def test_every_magnitude_of_equal_scores(triton_device, implementation, score):
    """Equal scores round alike: errors that would average out add up here."""
    device = triton_device if implementation == "triton" else "cpu"
    users, items = torch.full((3, 1), score), torch.ones(100, 1)
    positive, skip = torch.zeros(3), torch.tensor([-1, 0, 99])
    truths = derivatives((users.double(), items.double(), positive.double(), skip), "reference", second=False)
    ours = derivatives(on(device, users, items, positive, skip), implementation, second=False)
    # exp(x) is off by |x| roundings of its argument, and some more; at 100 nothing of it is left in float32.
    roundings = 8 + (abs(score) if abs(score) < 100 else 0)
    allowed = max(1e-6, roundings * 2**-24) + (SPLIT if implementation == "triton" else 0)
    for result, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(result, truth, rtol=allowed, atol=1e-38)


@pytest.mark.real_tiles
def test_a_million_items_are_summed_without_drift():
    users, items, positive, skip = problem(3, 1_000_000, 4, torch.float32)
    ours = derivatives((users, items, positive, skip), "tiled", second=False)
    truths = derivatives((users.double(), items.double(), positive.double(), skip), "tiled", second=False)
    assert max(worst_errors(ours, truths)) < 1e-6


def hvp_problem(num_users, num_items, half, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    tangent = torch.randn(num_items, half, generator=generator, dtype=torch.float64).to(dtype)
    return tangent, torch.randn(num_users, generator=generator, dtype=torch.float64).to(dtype)


def hvp_by_autograd(inputs, tangents, content, seen):
    users, items, positive, skip = (t.double() if t.is_floating_point() else t for t in inputs)
    tangent, tangent_positive = (t.double() for t in tangents)
    leaf_items, leaf_positive = items.clone().requires_grad_(), positive.clone().requires_grad_()
    loss = bpr_all_items(users, leaf_items, leaf_positive, skip, seen=seen, implementation="reference").sum()
    g_items, g_positive = torch.autograd.grad(loss, (leaf_items, leaf_positive), create_graph=True)
    along = (g_items[:, content] * tangent).sum() + (g_positive * tangent_positive).sum()
    hvp_items, hvp_positive = torch.autograd.grad(along, (leaf_items, leaf_positive))
    return hvp_items[:, content], -hvp_positive


@many
@given(num_users=st.integers(1, 12), num_items=st.integers(0, 50), half=st.integers(1, 5), with_seen=st.booleans())
def test_hvp_equals_automatic_double_differentiation(num_users, num_items, half, with_seen):
    inputs, tangents = problem(num_users, num_items, 2 * half), hvp_problem(num_users, num_items, half)
    seen = known_positives(num_users, num_items) if with_seen else None
    truths = hvp_by_autograd(inputs, tangents, slice(half, 2 * half), seen)
    for implementation in ("tiled", "reference"):
        results = bpr_all_items_hvp(*inputs, *tangents, slice(half, None), seen=seen, implementation=implementation)
        for result, truth in zip(results, truths, strict=True):
            torch.testing.assert_close(result, truth, rtol=1e-10, atol=1e-10)


@few
@given(
    num_users=st.integers(1, 40),
    num_items=st.integers(0, 120),
    identity=st.integers(0, 20),
    content=st.integers(1, 40),
    with_seen=st.booleans(),
)
def test_hvp_kernel_equals_automatic_double_differentiation(
    triton_device, num_users, num_items, identity, content, with_seen
):
    inputs = problem(num_users, num_items, identity + content, torch.float32)
    tangents = hvp_problem(num_users, num_items, content, torch.float32)
    seen = known_positives(num_users, num_items) if with_seen else None
    truths = hvp_by_autograd(inputs, tangents, slice(identity, None), seen)
    results = bpr_all_items_hvp(
        *on(triton_device, *inputs, *tangents),
        slice(identity, None),
        seen=seen and on(triton_device, seen),
        implementation="triton",
    )
    assert max(worst_errors([result.double().cpu() for result in results], truths, term=1.0)) < 4 * SPLIT


def test_wrong_arguments_are_named():
    users, items, positive, skip = problem(4, 6, 3)
    offsets, columns = known_positives(4, 6)
    with pytest.raises(ValueError, match="items_NK"):
        bpr_all_items(users, items[:, :2], positive, skip)
    with pytest.raises(ValueError, match="items_NK: dtype"):
        bpr_all_items(users, items.float(), positive, skip)
    with pytest.raises(ValueError, match="users_BK: layout"):
        bpr_all_items(users.to_sparse(), items, positive, skip)
    with pytest.raises(ValueError, match="positive_scores_B"):
        bpr_all_items(users, items, positive[:3], skip)
    with pytest.raises(ValueError, match="skip_B"):
        bpr_all_items(users, items, positive, skip.int())
    with pytest.raises(ValueError, match="outside"):
        bpr_all_items(users, items, positive, torch.full_like(skip, 6))
    with pytest.raises(ValueError, match="seen: offsets"):
        bpr_all_items(users, items, positive, skip, seen=(offsets[:-1], columns))
    with pytest.raises(ValueError, match="seen: columns"):
        bpr_all_items(users, items, positive, skip, seen=(offsets, columns.int()))
    with pytest.raises(ValueError, match="columns: a step"):
        bpr_all_items_hvp(users, items, positive, skip, items[:, :2], positive, slice(0, 3, 2))
    with pytest.raises(ValueError, match="tangent_items_Nd"):
        bpr_all_items_hvp(users, items, positive, skip, items, positive, slice(1, 3))
