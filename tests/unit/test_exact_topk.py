"""Float64 lists from float32 candidates: those of ranking all in float64, with ties, known positives and rounding."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uatmc_dist.evaluation import exact_topk as module
from uatmc_dist.evaluation.exact_topk import ExactTopk
from uatmc_kernels import topk_all_items


def whole(users_BK, items_nK, k, seen):
    return topk_all_items(users_BK.double(), items_nK.double(), k, seen=seen, implementation="reference")


@pytest.fixture(autouse=True, params=[True, False], ids=["bfloat16 first", "float32 first"])
def few_items_are_worth_it(monkeypatch, request):
    monkeypatch.setattr(module, "_WORTH_RESCORING", 0)
    monkeypatch.setattr(module, "_WORTH_ROUNDING", 1)
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: request.param)
    return request.param


def assert_same(found, expected):
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 40),
    items=st.integers(1, 120),
    k=st.integers(1, 30),
    levels=st.sampled_from([0, 1, 2, 5]),
    scale=st.sampled_from([1e-30, 1e-12, 1.0, 1e6]),
)
def test_the_lists_are_those_of_float64(seed, users, items, k, levels, scale):
    """`levels`: rows of few different values, so that many scores are equal; 0: of any."""
    generator = torch.Generator().manual_seed(seed)
    users_BK = scale * torch.randn(users, 7, generator=generator)
    items_nK = torch.randn(items, 7, generator=generator)
    if levels:
        users_BK, items_nK = (users_BK / scale).round() * scale, (items_nK * levels).round() / levels
    seen_BN = torch.rand(users, items, generator=generator) < 0.3
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), seen_BN.sum(1).cumsum(0)])
    seen = offsets, seen_BN.nonzero()[:, 1]
    k = min(k, items)
    assert_same(ExactTopk(items_nK)(users_BK, k, seen), whole(users_BK, items_nK, k, seen))
    assert_same(ExactTopk(items_nK)(users_BK, k), whole(users_BK, items_nK, k, None))


def test_most_users_are_proven_and_the_others_ranked_anew(monkeypatch, few_items_are_worth_it):
    generator = torch.Generator().manual_seed(0)
    users_BK, items_nK = torch.randn(64, 32, generator=generator), torch.randn(3000, 32, generator=generator)
    items_nK[100:200] = items_nK[100]  # a hundred equal items: for whom they are best nothing can be proven
    users_BK[:5] = items_nK[100]
    passes = passes_of(monkeypatch)
    found = ExactTopk(items_nK)(users_BK, 50)
    dtypes, users = zip(*passes, strict=True)
    assert dtypes == (torch.bfloat16, torch.float32, torch.float64)[0 if few_items_are_worth_it else 1 :]
    assert users[0] == 64 and all(5 <= fewer <= 12 for fewer in users[1:])
    assert_same(found, whole(users_BK, items_nK, 50, None))


@pytest.mark.parametrize("few_items_are_worth_it", [True], indirect=True)
def test_items_that_bfloat16_does_not_tell_apart_are_ranked_without_it(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    users_BK, items_nK = torch.randn(20, 32, generator=generator), torch.randn(3000, 32, generator=generator)
    items_nK = items_nK[0] + 1e-3 * items_nK
    ranked = ExactTopk(items_nK)
    passes = passes_of(monkeypatch)
    for _ in range(2):
        assert_same(ranked(users_BK, 50), whole(users_BK, items_nK, 50, None))
    assert [dtype for dtype, _ in passes].count(torch.bfloat16) == 1


@pytest.mark.parametrize("cache_bytes", [0, 1 << 25], ids=["copies", "in place"])
def test_items_beyond_the_cache_and_within_it_are_rescored_alike(monkeypatch, cache_bytes):
    """Users without an item left and such that are not in one piece; parts of a few users."""
    monkeypatch.setattr(module, "_SHARED_CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(module, "_CACHE_BYTES", 8 * 7 * 40 * 3)
    generator = torch.Generator().manual_seed(0)
    users_BK, items_nK = torch.randn(20, 14, generator=generator)[:, ::2], torch.randn(40, 7, generator=generator)
    seen_BN = torch.rand(20, 40, generator=generator) < torch.linspace(0, 1, 20)[:, None]
    seen = torch.cat([torch.zeros(1, dtype=torch.int64), seen_BN.sum(1).cumsum(0)]), seen_BN.nonzero()[:, 1]
    assert_same(ExactTopk(items_nK)(users_BK, 10, seen), whole(users_BK, items_nK, 10, seen))
    assert_same(ExactTopk(items_nK)(users_BK[:0], 10), whole(users_BK[:0], items_nK, 10, None))


def passes_of(monkeypatch):
    """(dtype, users) of each ranking from now on."""
    passes = []

    def told(users_BK, *given, **named):
        passes.append((users_BK.dtype, len(users_BK)))
        return topk_all_items(users_BK, *given, **named)

    monkeypatch.setattr(module, "topk_all_items", told)
    return passes


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_ranked_as_in_float64(bad):
    generator = torch.Generator().manual_seed(0)
    users_BK, items_nK = torch.randn(4, 8, generator=generator), torch.randn(90, 8, generator=generator)
    items_nK[7] = bad
    assert_same(ExactTopk(items_nK)(users_BK, 10), topk_all_items(users_BK.double(), items_nK.double(), 10))
