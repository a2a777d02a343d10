"""topk_all_items: streaming against one stable sort, with ties, exclusions and short catalogs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uatmc_kernels import topk_all_items


@settings(max_examples=60, deadline=None)
@given(
    num_users=st.integers(1, 9),
    num_items=st.integers(0, 150),
    k=st.integers(1, 12),
    integer_scores=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_one_stable_sort(num_users, num_items, k, integer_scores, seed):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(num_users, 3, generator=generator, dtype=torch.float64)
    items = torch.randn(num_items, 3, generator=generator, dtype=torch.float64)
    if integer_scores:  # many exact ties
        users, items = users.round(), items.round()
    mask = torch.rand(num_users, num_items, generator=generator) < 0.3
    offsets = torch.zeros(num_users + 1, dtype=torch.int64)
    offsets[1:] = mask.sum(1).cumsum(0)
    seen = (offsets, mask.nonzero()[:, 1])
    scores, ids = topk_all_items(users, items, k, seen=seen)
    true_scores, true_ids = topk_all_items(users, items, k, seen=seen, implementation="reference")
    torch.testing.assert_close(scores, true_scores, rtol=0, atol=0)
    assert torch.equal(ids, true_ids)
