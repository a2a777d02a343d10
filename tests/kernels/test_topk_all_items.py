"""topk_all_items: streaming against one stable sort, with ties, exclusions and short catalogs."""

import importlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.problems import known_positives, on
from uatmc_kernels import topk_all_items

TILED = importlib.import_module("uatmc_kernels.tiled.topk_all_items")


def rankings(num_users, num_items, k, integer_scores, seed, implementation, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(num_users, 3, generator=generator, dtype=torch.float64)
    items = torch.randn(num_items, 3, generator=generator, dtype=torch.float64)
    if integer_scores:  # many exact ties
        users, items = users.round(), items.round()
    seen = known_positives(num_users, num_items, seed, share=0.3)
    truth = topk_all_items(users.to(dtype), items.to(dtype), k, seen=seen, implementation="reference")
    users, items, seen = on(device, users.to(dtype), items.to(dtype), seen)
    scores, ids = topk_all_items(users, items, k, seen=seen, implementation=implementation)
    return (scores.cpu(), ids.cpu()), truth


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_users=st.integers(1, 9),
    num_items=st.integers(0, 150),
    k=st.integers(1, 12),
    integer_scores=st.booleans(),
    seed=st.integers(0, 99),
    widest=st.sampled_from([1 << 13, 16, 9]),
)
def test_tiles_equal_one_stable_sort(monkeypatch, num_users, num_items, k, integer_scores, seed, widest):
    monkeypatch.setattr(TILED, "_WIDEST", widest)
    sizes = num_users, num_items, k, integer_scores, seed
    (scores, ids), (true_scores, true_ids) = rankings(*sizes, "tiled", torch.float64)
    # Sums of three terms, which narrow and wide products need not round alike; of integers they are exact.
    rounding = 0 if integer_scores else 1e-14
    torch.testing.assert_close(scores, true_scores, rtol=rounding, atol=rounding)
    assert torch.equal(ids, true_ids)


@pytest.mark.parametrize("integer_scores", [False, True])
def test_many_tiles_equal_one_stable_sort(monkeypatch, integer_scores):
    monkeypatch.setattr(TILED, "_WIDEST", 64)
    for k in (3, 13, 50, 63, 64, 65):
        (scores, ids), (true_scores, true_ids) = rankings(30, 500, k, integer_scores, k, "tiled", torch.float64)
        torch.testing.assert_close(scores, true_scores, rtol=1e-14, atol=1e-14)
        assert torch.equal(ids, true_ids)


@pytest.mark.parametrize("num_users", [1, 40])
def test_rounded_scores_are_those_of_bfloat16(num_users):
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(num_users, 96, generator=generator), torch.randn(1500, 96, generator=generator)
    users, items = users.bfloat16(), items.bfloat16()
    seen = known_positives(num_users, len(items), 0, share=0.3)
    scores, ids = topk_all_items(users, items, 20, seen=seen, rounded=True)
    exact, _ = topk_all_items(users.double(), items.double(), 20, seen=seen)
    torch.testing.assert_close(scores, exact, rtol=2**-8, atol=0)
    assert torch.equal(scores, scores.bfloat16().float())
    products = (users.double() @ items.double().T).gather(1, ids).float()
    torch.testing.assert_close(scores, products, rtol=2**-8, atol=0)
    owners = torch.arange(num_users).repeat_interleave(seen[0].diff())
    taken = set(zip(owners.tolist(), seen[1].tolist(), strict=True))
    assert not taken & {(row, item) for row, items_k in enumerate(ids.tolist()) for item in items_k}


@pytest.mark.parametrize("size", [600, 5000])
@pytest.mark.parametrize("shape", ["one good group", "neighbours alike", "few left", "all equal", "no number"])
def test_a_first_tile_of_unusual_scores_equals_one_stable_sort(size, shape):
    """What is chosen by maxima of groups of columns, or is not."""
    generator = torch.Generator().manual_seed(0)
    users, items = torch.rand(5, 2, generator=generator) + 0.5, torch.randn(size, 2, generator=generator)
    seen = known_positives(5, size, 0, share=0.99 if shape == "few left" else 0.3)
    if shape == "one good group":
        groups = size // (size // (4 * 13))
        items[7::groups] += 100
    elif shape == "neighbours alike":
        items = items[:40].repeat_interleave(size // 40, 0) + 1e-6 * items
    elif shape == "all equal":
        items[:] = 1.0
    elif shape == "no number":
        items[::9] = torch.nan
    found = topk_all_items(users.double(), items.double(), 13, seen=seen)
    truth = topk_all_items(users.double(), items.double(), 13, seen=seen, implementation="reference")
    assert torch.equal(found[1], truth[1])
    torch.testing.assert_close(found[0], truth[0], rtol=1e-6, atol=0, equal_nan=True)


def test_left_out_stays_left_out_beside_a_negative_nan(monkeypatch):
    items = torch.full((60, 1), torch.nan).copysign(torch.tensor(-1.0))
    seen = torch.tensor([0, 30]), torch.arange(30, 60)
    monkeypatch.setattr(TILED, "_WIDEST", 24)
    assert topk_all_items(torch.ones(1, 1), items, 20, seen=seen)[1].tolist() == [list(range(20))]


def test_no_users(monkeypatch):
    monkeypatch.setattr(TILED, "_WIDEST", 24)
    scores, ids = topk_all_items(torch.ones(0, 2), torch.ones(60, 2), 5)
    assert scores.shape == ids.shape == (0, 5)


@pytest.mark.parametrize("order", ["ascending", "equal", "infinite", "no number", "mostly left out"])
def test_many_tiles_of_unusual_scores_equal_one(monkeypatch, order):
    num_users, num_items = 3, 200
    users = torch.ones(num_users, 1)
    items = torch.arange(float(num_items))[:, None] if order == "ascending" else torch.ones(num_items, 1)
    if order in ("infinite", "no number"):
        generator = torch.Generator().manual_seed(0)
        items = torch.randn(num_items, 1, generator=generator)
        items[::7], items[::11] = -torch.inf, torch.nan if order == "no number" else torch.inf
    seen = known_positives(num_users, num_items, 0, share=0.97 if order == "mostly left out" else 0.3)
    for k in (1, 5, 20):
        one = topk_all_items(users, items, k, seen=seen)
        with monkeypatch.context() as narrow:
            narrow.setattr(TILED, "_WIDEST", 24)
            scores, ids = topk_all_items(users, items, k, seen=seen)
        torch.testing.assert_close(scores, one[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ids, one[1])


def test_an_infinite_score_is_best_and_what_is_left_out_never_shows():
    users = torch.ones(2, 1)
    items = torch.tensor([1.0, -3.0, 2.0, torch.inf, -3.0, 0.5])[:, None]
    seen = torch.tensor([0, 2, 2]), torch.tensor([0, 3])
    found = [topk_all_items(users, items, 5, seen=seen, implementation=name) for name in ("tiled", "reference")]
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].tolist() == [[2, 5, 1, 4, -1], [3, 2, 0, 5, 1]]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_users=st.integers(1, 40),
    num_items=st.integers(0, 150),
    k=st.sampled_from([1, 5, 64, 65, 128]),
    integer_scores=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_equals_one_stable_sort(triton_device, num_users, num_items, k, integer_scores, seed):
    sizes = num_users, num_items, k, integer_scores, seed
    (scores, ids), (true_scores, true_ids) = rankings(*sizes, "triton", torch.float32, triton_device)
    torch.testing.assert_close(scores, true_scores, rtol=1e-5, atol=1e-5)
    if integer_scores:  # exact: the order of ties is part of the answer
        assert torch.equal(ids, true_ids)


def test_a_ranking_too_long_for_registers_says_so(triton_device):
    users, items = on(triton_device, torch.ones(2, 3), torch.ones(300, 3))
    with pytest.raises(ValueError, match="k = 129 is more than 128"):
        topk_all_items(users, items, 129, implementation="triton")
    with pytest.raises(ValueError, match="k: 0"):
        topk_all_items(users, items, 0)
