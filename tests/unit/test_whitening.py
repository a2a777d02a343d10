"""Whitening of the users' tastes (docs/algorithm.md, section 4.7)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uatmc_dist.config import Config
from uatmc_dist.models.whitening import flattening


def moment(seed, dim, rank=None):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, dim, dtype=torch.float64)
    tastes = torch.randn(50, dim, generator=generator, dtype=torch.float64) * scales
    if rank is not None:
        tastes[:, rank:] = 0
    return tastes.T @ tastes / len(tastes)


@given(seed=st.integers(0, 50), dim=st.integers(1, 12), power=st.sampled_from([0.0, 0.3, 0.75, 1.0]))
def test_second_moments_go_to_a_power_and_keep_their_sum(seed, dim, power):
    before = moment(seed, dim)
    factor = flattening(before, power)
    after = factor @ before @ factor
    values, vectors = torch.linalg.eigh(before)
    expected = (vectors * values.pow(1 - power)) @ vectors.T
    torch.testing.assert_close(after, expected * (before.trace() / expected.trace()), rtol=1e-9, atol=1e-12)


def test_what_nobody_has_a_taste_for_is_not_raised_without_bound():
    before = moment(0, 6, rank=4)
    factor = flattening(before, 1.0)
    assert factor.isfinite().all()
    torch.testing.assert_close((factor @ before @ factor).trace(), before.trace())
    assert torch.equal(flattening(torch.zeros(3, 3), 0.5), torch.eye(3))


def test_no_direction_suits_the_users_better_than_a_white_one():
    """Of all ways to spread the same sum, the largest moment along a direction is least where it is white."""
    before = moment(1, 5)
    largest = [
        float(torch.linalg.eigvalsh(factor @ before @ factor)[-1])
        for factor in (flattening(before, power) for power in (0.0, 0.25, 0.5, 0.75, 1.0))
    ]
    assert largest == sorted(largest, reverse=True)
    assert largest[-1] == pytest.approx(float(before.trace()) / 5)


@pytest.mark.parametrize(
    "sections, told",
    [
        ({"adversarial": {"whitening": 0.5}}, "adversarial.epochs to at least 1"),
        ({"adversarial": {"whitening": 0.5, "epochs": 1}, "model": {"backbone": "mmgcn"}}, "adversarial.whitening=0"),
        ({"adversarial": {"whitening": 1.5, "epochs": 1}}, "less than or equal to 1"),
    ],
)
def test_where_it_means_nothing_it_is_refused(sections, told):
    with pytest.raises(ValueError, match=told):
        Config.model_validate({"name": "x", "catalog": "y", **sections})
