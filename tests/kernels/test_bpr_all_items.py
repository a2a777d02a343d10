"""bpr_all_items and its HVP, tiled against the reference and against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import uatmc_kernels
from uatmc_kernels import bpr_all_items, bpr_all_items_hvp
from uatmc_kernels.tiled import _tiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of a few columns, so that small problems cross many tile borders."""
    monkeypatch.setattr(_tiles, "TILE_BYTES", 1)
    monkeypatch.setattr(_tiles, "MIN_TILE", 16)


def problem(num_users, num_items, width, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(num_users, width, generator=generator, dtype=torch.float64) * scale
    items = torch.randn(num_items, width, generator=generator, dtype=torch.float64)
    positive = torch.randn(num_users, generator=generator, dtype=torch.float64) * scale
    skip = torch.randint(-1, max(num_items, 1), (num_users,), generator=generator).clamp(max=num_items - 1)
    return users.to(dtype), items.to(dtype), positive.to(dtype), skip


def known_positives(num_users, num_items, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_users, num_items, generator=generator) < 0.2
    offsets = torch.zeros(num_users + 1, dtype=torch.int64)
    offsets[1:] = mask.sum(1).cumsum(0)
    return offsets, mask.nonzero()[:, 1]


@settings(max_examples=40, deadline=None)
@given(num_users=st.integers(1, 20), num_items=st.integers(0, 70), width=st.integers(1, 9), with_seen=st.booleans())
def test_loss_gradients_and_second_order_equal_the_reference(num_users, num_items, width, with_seen):
    inputs = problem(num_users, num_items, width)
    seen = known_positives(num_users, num_items) if with_seen else None
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(num_users, generator=generator, dtype=torch.float64)

    def everything(implementation):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
        loss = bpr_all_items(*leaves, inputs[3], seen=seen, implementation=implementation)
        first = torch.autograd.grad((loss * weights).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((gradient.sin()).sum() for gradient in first), leaves)
        return [loss, *first, *second]

    for ours, truth in zip(everything("tiled"), everything("reference"), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_gradcheck_and_gradgradcheck():
    users, items, positive, skip = problem(5, 37, 3)
    seen = known_positives(5, 37)
    leaves = [tensor.clone().requires_grad_() for tensor in (users, items, positive)]

    def loss(users, items, positive):
        return bpr_all_items(users, items, positive, skip, seen=seen)

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_a_summed_loss_scales_the_gradients_of_the_forward_sweep(monkeypatch):
    users, items, positive, skip = problem(8, 50, 4)
    calls = []
    original = uatmc_kernels.tiled.bpr_loss_and_gradients
    monkeypatch.setattr(
        uatmc_kernels.tiled, "bpr_loss_and_gradients", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    leaf = items.clone().requires_grad_()
    (bpr_all_items(users, leaf, positive, skip).sum() * 0.25).backward()
    assert len(calls) == 1
    truth = items.clone().requires_grad_()
    (bpr_all_items(users, truth, positive, skip, implementation="reference").sum() * 0.25).backward()
    torch.testing.assert_close(leaf.grad, truth.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_error_is_no_larger_than_plain_pytorch_at_the_same_dtype(dtype, scale):
    inputs = problem(33, 500, 16, dtype, scale=scale)
    skip = inputs[3]
    exact_inputs = [tensor.double().requires_grad_() for tensor in inputs[:3]]
    exact = bpr_all_items(*exact_inputs, skip, implementation="reference")
    exact_gradients = torch.autograd.grad(exact.sum(), exact_inputs)

    def errors(implementation):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
        loss = bpr_all_items(*leaves, skip, implementation=implementation)
        results = [loss, *torch.autograd.grad(loss.sum(), leaves)]
        truths = [exact, *exact_gradients]
        return [
            (result.double() - truth).abs().max() / truth.abs().max()
            for result, truth in zip(results, truths, strict=True)
        ]

    for ours, plain in zip(errors("tiled"), errors("reference"), strict=True):
        assert ours <= plain * 1.05 + 2e-7


@settings(max_examples=30, deadline=None)
@given(num_users=st.integers(1, 12), num_items=st.integers(0, 50), half=st.integers(1, 5), with_seen=st.booleans())
def test_hvp_equals_automatic_double_differentiation(num_users, num_items, half, with_seen):
    users, items, positive, skip = problem(num_users, num_items, 2 * half)
    seen = known_positives(num_users, num_items) if with_seen else None
    generator = torch.Generator().manual_seed(3)
    tangent = torch.randn(num_items, half, generator=generator, dtype=torch.float64)
    tangent_positive = torch.randn(num_users, generator=generator, dtype=torch.float64)
    content = slice(half, 2 * half)

    leaf_items, leaf_positive = items.clone().requires_grad_(), positive.clone().requires_grad_()
    loss = bpr_all_items(users, leaf_items, leaf_positive, skip, seen=seen, implementation="reference").sum()
    g_items, g_positive = torch.autograd.grad(loss, (leaf_items, leaf_positive), create_graph=True)
    along = (g_items[:, content] * tangent).sum() + (g_positive * tangent_positive).sum()
    hvp_items, hvp_positive = torch.autograd.grad(along, (leaf_items, leaf_positive))

    for implementation in ("tiled", "reference"):
        hvp, row_sums = bpr_all_items_hvp(
            users, items, positive, skip, tangent, tangent_positive, content, seen=seen, implementation=implementation
        )
        torch.testing.assert_close(hvp, hvp_items[:, content], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(-row_sums, hvp_positive, rtol=1e-10, atol=1e-10)


def test_wrong_arguments_are_named():
    users, items, positive, skip = problem(4, 6, 3)
    with pytest.raises(ValueError, match="items_NK"):
        bpr_all_items(users, items[:, :2], positive, skip)
    with pytest.raises(ValueError, match="positive_scores_B"):
        bpr_all_items(users, items, positive[:3], skip)
    with pytest.raises(ValueError, match="skip_B"):
        bpr_all_items(users, items, positive, skip.int())
    with pytest.raises(ValueError, match="outside"):
        bpr_all_items(users, items, positive, torch.full_like(skip, 6))
    with pytest.raises(ValueError, match="implementation"):
        bpr_all_items(users, items, positive, skip, implementation="fast")
