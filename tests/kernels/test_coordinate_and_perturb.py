"""coordinate and perturb, tiled against the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uatmc_kernels import coordinate, perturb
from uatmc_kernels.tiled import coordinate as tiled_coordinate  # noqa: F401  (the module must import alone)


def rows(num_items, width, seed=0, zero_rows=True):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(num_items, width, generator=generator, dtype=torch.float64)
    if zero_rows and num_items > 2:
        g[1] = 0
    return (
        g,
        torch.randn(width, 5, generator=generator, dtype=torch.float64),
        torch.randn(width, 5, generator=generator, dtype=torch.float64),
    )


@settings(max_examples=40, deadline=None)
@given(num_items=st.integers(0, 40), width=st.integers(2, 9))
def test_coordinate_equals_automatic_differentiation(num_items, width):
    g, w_v, w_t = rows(num_items, width)
    mean, omega = coordinate(g, w_v, w_t)
    true_mean, true_omega = coordinate(g, w_v, w_t, implementation="reference")
    torch.testing.assert_close(mean, true_mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(omega, true_omega, rtol=1e-9, atol=1e-11)


def test_a_zero_row_has_no_direction_but_counts_in_the_mean():
    g, w_v, w_t = rows(4, 6)
    mean, omega = coordinate(g, w_v, w_t)
    kept = torch.tensor([0, 2, 3])
    mean_of_kept, _ = coordinate(g[kept], w_v, w_t)
    torch.testing.assert_close(mean, mean_of_kept * 3 / 4)
    assert (omega[1] == 0).all()
    delta_v, delta_t = perturb(g, w_v, w_t, torch.ones(4, 5).double(), torch.ones(4, 5).double(), 0.1)
    assert (delta_v[1] == 0).all() and (delta_t[1] == 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_perturb_lies_on_the_surface_and_equals_the_reference(norm):
    g, w_v, w_t = rows(70, 6)
    v, t = (torch.randn(70, 5, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2))
    deltas = perturb(g, w_v, w_t, v, t, 0.3, norm=norm)
    truths = perturb(g, w_v, w_t, v, t, 0.3, norm=norm, implementation="reference")
    for delta, truth, row in zip(deltas, truths, (v, t), strict=True):
        torch.testing.assert_close(delta, truth)
        size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(1)
        radius = 0.3 * row.norm(dim=1)
        radius[1] = 0
        torch.testing.assert_close(size, radius)


def test_wrong_arguments_are_named():
    g, w_v, w_t = rows(4, 6)
    with pytest.raises(ValueError, match="w_t"):
        coordinate(g, w_v, w_t[:3])
    with pytest.raises(ValueError, match="v_N"):
        perturb(g, w_v, w_t, torch.ones(4, 4).double(), torch.ones(4, 5).double(), 0.1)
    with pytest.raises(ValueError, match="norm"):
        perturb(g, w_v, w_t, torch.ones(4, 5).double(), torch.ones(4, 5).double(), 0.1, norm="l1")
