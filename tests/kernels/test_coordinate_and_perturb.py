"""coordinate, perturb and perturbed_content: chunks and kernels against the reference in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.problems import few, many, on, worst_errors
from uatmc_kernels import coordinate, perturb, perturbed_content


def problem(num_items, width, width_v=5, width_t=5, dtype=torch.float64, scale=1.0):
    """g [N, d] with zero rows, w_v, w_t, v, t."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    g = normal(num_items, width) * scale
    g[1::7] = 0
    tensors = g, normal(width, width_v), normal(width, width_t), normal(num_items, width_v), normal(num_items, width_t)
    return tuple(tensor.to(dtype) for tensor in tensors)


@many
@given(num_items=st.integers(0, 40), width=st.integers(2, 9), width_t=st.integers(1, 9))
def test_coordinate_equals_automatic_differentiation(num_items, width, width_t):
    g, w_v, w_t, *_ = problem(num_items, width, 5, width_t)
    mean, omega = coordinate(g, w_v, w_t)
    true_mean, true_omega = coordinate(g, w_v, w_t, implementation="reference")
    torch.testing.assert_close(mean, true_mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(omega, true_omega, rtol=1e-9, atol=1e-11)


def cancellation(g, w):
    """How much shorter than usual a row of g w is, at most: its direction feels rounding by as much more."""
    usual = g.norm(dim=1) * w.norm() / len(w) ** 0.5
    return max([1.0, *(usual / (g @ w).norm(dim=1))[usual > 0].tolist()])


def sign_is_sure(g, w):
    """Rows of g w whose entries all keep their sign in float32: a sum of d terms is off by d 2^-24 of their sizes."""
    return ((g @ w).abs() >= len(w) * 2**-24 * (g.abs() @ w.abs())).all(dim=1)


@few
@given(
    num_items=st.integers(0, 70),
    width=st.integers(2, 70),
    width_v=st.integers(2, 70),
    width_t=st.integers(2, 70),
    norm=st.sampled_from(["l2", "linf"]),
)
def test_kernels_equal_float64(triton_device, num_items, width, width_v, width_t, norm):
    inputs = problem(num_items, width, width_v, width_t, torch.float32)
    exact, ours = tuple(tensor.double() for tensor in inputs), on(triton_device, *inputs)
    bias = torch.linspace(-1, 1, width)
    truths = [
        *coordinate(*exact[:3], implementation="reference"),
        *perturb(*exact, 0.3, norm=norm, implementation="reference"),
        perturbed_content(*exact, 0.3, norm=norm, bias_d=bias.double(), implementation="reference"),
    ]
    results = [
        *coordinate(*ours[:3], implementation="triton"),
        *perturb(*ours, 0.3, norm=norm, implementation="triton"),
        perturbed_content(*ours, 0.3, norm=norm, bias_d=bias.to(triton_device), implementation="triton"),
    ]
    (mean, *results), (true_mean, *truths) = [result.double().cpu() for result in results], truths
    g, *weights = exact[:3]
    if norm == "linf":
        sure = sign_is_sure(g, weights[0]) & sign_is_sure(g, weights[1])
        results[1:], truths[1:] = [result[sure] for result in results[1:]], [truth[sure] for truth in truths[1:]]
    # A row of g that nearly vanishes in one modality has a huge omega: its error is relative to all of it. Cosines may
    # cancel in the mean: its error is relative to 1.
    errors = [*worst_errors([mean], [true_mean], term=1.0), *worst_errors(results, truths)]
    assert max(errors) < 1e-5 * max(cancellation(g, w) for w in weights)


@pytest.mark.real_tiles
def test_kernels_with_their_own_launches(triton_device):
    inputs = problem(200, 48, 64, 32, torch.float32)
    exact, ours = tuple(tensor.double() for tensor in inputs), on(triton_device, *inputs)
    truths = [*coordinate(*exact[:3], implementation="reference"), *perturb(*exact, 0.3, implementation="reference")]
    results = [*coordinate(*ours[:3], implementation="triton"), *perturb(*ours, 0.3, implementation="triton")]
    assert max(worst_errors([result.double().cpu() for result in results], truths)) < 1e-5


@pytest.mark.parametrize("implementation", ["tiled", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_no_larger_than_plain_pytorch_at_the_same_dtype(triton_device, implementation, dtype):
    inputs = problem(60, 24, 24, 24, dtype)
    exact = tuple(tensor.double() for tensor in inputs)
    truths = [
        *perturb(*exact, 0.3, implementation="reference"),
        perturbed_content(*exact, 0.3, implementation="reference"),
    ]
    g, w_v, w_t, v, t = inputs

    def plain_step(w, rows):
        direction = g @ w
        length = direction.norm(dim=1, keepdim=True)
        return torch.where(length > 0, 0.3 * rows.norm(dim=1, keepdim=True) * direction / length, 0.0)

    delta_v, delta_t = plain_step(w_v, v), plain_step(w_t, t)
    plain = [delta_v, delta_t, (v + delta_v) @ w_v.T + (t + delta_t) @ w_t.T]
    allowed = worst_errors([result.double() for result in plain], truths)
    moved = on(triton_device if implementation == "triton" else "cpu", *inputs)
    ours = [*perturb(*moved, 0.3, implementation=implementation)]
    ours.append(perturbed_content(*moved, 0.3, implementation=implementation))
    for error, most in zip(worst_errors([r.double().cpu() for r in ours], truths), allowed, strict=True):
        assert error <= most * 1.05 + 1e-6


@pytest.mark.parametrize("implementation", ["tiled", "triton"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e10])
def test_tiny_and_huge_gradients_keep_their_direction(triton_device, implementation, scale):
    """Squares of these leave the range of float32; the direction does not depend on the scale."""
    device = triton_device if implementation == "triton" else "cpu"
    g, w_v, w_t, v, t = problem(20, 6, dtype=torch.float32)
    at_one = perturb(g.double(), w_v.double(), w_t.double(), v.double(), t.double(), 0.1)
    scaled = perturb(*on(device, g * scale, w_v, w_t, v, t), 0.1, implementation=implementation)
    for result, truth in zip(scaled, at_one, strict=True):
        torch.testing.assert_close(result.double().cpu(), truth, rtol=1e-4, atol=1e-5)
    mean, omega = coordinate(*on(device, g * scale, w_v, w_t), implementation=implementation)
    true_mean, true_omega = coordinate(g.double(), w_v.double(), w_t.double())
    torch.testing.assert_close(mean.double().cpu(), true_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(omega.double().cpu() * scale, true_omega, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "tiled", "triton"])
def test_a_zero_row_has_no_direction_but_counts_in_the_mean(triton_device, implementation):
    device = triton_device if implementation == "triton" else "cpu"
    dtype = torch.float32 if implementation == "triton" else torch.float64
    g, w_v, w_t, v, t = on(device, *problem(4, 6, dtype=dtype))
    mean, omega = coordinate(g, w_v, w_t, implementation=implementation)
    kept = torch.tensor([0, 2, 3], device=device)
    mean_of_kept, _ = coordinate(g[kept], w_v, w_t, implementation=implementation)
    torch.testing.assert_close(mean, mean_of_kept * 3 / 4)
    assert (omega[1] == 0).all()
    for delta in perturb(g, w_v, w_t, v, t, 0.1, implementation=implementation):
        assert (delta[1] == 0).all()
    _, omega = coordinate(g, w_v, torch.zeros_like(w_t), implementation=implementation)
    assert (omega == 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_perturb_lies_on_the_surface_and_equals_the_reference(norm):
    g, w_v, w_t, v, t = problem(70, 6, 5, 3)
    deltas = perturb(g, w_v, w_t, v, t, 0.3, norm=norm)
    truths = perturb(g, w_v, w_t, v, t, 0.3, norm=norm, implementation="reference")
    for delta, truth, row in zip(deltas, truths, (v, t), strict=True):
        torch.testing.assert_close(delta, truth)
        size = delta.norm(dim=1) if norm == "l2" else delta.abs().amax(1)
        radius = 0.3 * row.norm(dim=1)
        radius[1::7] = 0
        torch.testing.assert_close(size, radius)
    content = perturbed_content(g, w_v, w_t, v, t, 0.3, norm=norm)
    torch.testing.assert_close(content, (v + deltas[0]) @ w_v.T + (t + deltas[1]) @ w_t.T)


def test_wrong_arguments_are_named():
    g, w_v, w_t, v, t = problem(4, 6)
    with pytest.raises(ValueError, match="w_t"):
        coordinate(g, w_v, w_t[:3])
    with pytest.raises(ValueError, match="w_v: dtype"):
        coordinate(g, w_v.float(), w_t)
    with pytest.raises(ValueError, match="v_N"):
        perturb(g, w_v, w_t, v[:, :4], t, 0.1)
    with pytest.raises(ValueError, match="norm"):
        perturb(g, w_v, w_t, v, t, 0.1, norm="l1")
    with pytest.raises(ValueError, match="bias_d"):
        perturbed_content(g, w_v, w_t, v, t, 0.1, bias_d=v[0])
