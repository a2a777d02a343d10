"""count_above against all scores and one comparison."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.problems import on
from uatmc_kernels import count_above, topk_all_items


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_users=st.integers(1, 80), num_items=st.integers(0, 80), width=st.integers(1, 20))
@pytest.mark.parametrize("implementation", ["tiled", "triton"])
def test_counts_equal_the_reference(triton_device, implementation, num_users, num_items, width):
    # Small integers: every score is exact, and many equal their threshold.
    generator = torch.Generator().manual_seed(num_users)
    integers = lambda *shape: torch.randint(-2, 3, shape, generator=generator).float()  # noqa: E731
    inputs = integers(num_users, width), integers(num_items, width), integers(num_users), integers(num_users)
    truth = count_above(*inputs, implementation="reference")
    device = triton_device if implementation == "triton" else "cpu"
    counts = count_above(*on(device, *inputs), implementation=implementation)
    assert counts.dtype == torch.int64
    assert torch.equal(counts.cpu(), truth)
    boni = integers(num_users, 3)
    truths = [count_above(*inputs[:3], bonus, implementation="reference") for bonus in boni.unbind(1)]
    of_all = count_above(*on(device, *inputs[:3], boni), implementation=implementation)
    assert of_all.dtype == torch.int64 and torch.equal(of_all.cpu(), torch.stack(truths))


def test_more_users_than_a_byte_counts():
    users, items = torch.ones(600, 2), torch.ones(3, 2)
    boni = torch.stack([torch.zeros(600), torch.arange(600.0)], dim=1)
    counts = count_above(users, items, torch.full((600,), 100.0), boni)
    assert counts.tolist() == [[0] * 3, [501] * 3]


def test_hits_of_a_ranking_are_counts_above_the_next_score():
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(50, 6, generator=generator), torch.randn(90, 6, generator=generator)
    scores, ids = topk_all_items(users.double(), items.double(), 11)
    hits = torch.bincount(ids[:, :10].flatten(), minlength=90)
    assert torch.equal(
        count_above(users.double(), items.double(), scores[:, 10].double() + 1e-6, torch.zeros(50)), hits
    )


def test_wrong_arguments_are_named():
    users, items = torch.ones(4, 3), torch.ones(5, 3)
    with pytest.raises(ValueError, match="thresholds_B"):
        count_above(users, items, torch.ones(5), torch.ones(4))
    for shape in (5,), (5, 1), (4, 1, 1), ():
        with pytest.raises(ValueError, match="bonus_B"):
            count_above(users, items, torch.ones(4), torch.ones(shape))
