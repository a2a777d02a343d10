"""Random score passes, and what the tests compare."""

import torch
from hypothesis import HealthCheck, Phase, settings

from uatmc_kernels import bpr_all_items

SPLIT = 2.0**-16
"""What float32 loses in the kernels, relative to |u| |v|: each factor goes as two parts of bfloat16, to 2^-18, and the
product of the small parts is left out, another 2^-18 (uatmc_kernels/triton/_variants.py)."""
# The fixture that makes tiles small is the same for every example.
few = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking interpreted kernels takes minutes
)
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def problem(num_users, num_items, width, dtype=torch.float64, seed=0, scale=1.0):
    """users [B, K], items [N, K], positive scores [B], skipped items [B]."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(num_users, width, generator=generator, dtype=torch.float64) * scale
    items = torch.randn(num_items, width, generator=generator, dtype=torch.float64)
    positive = torch.randn(num_users, generator=generator, dtype=torch.float64) * scale
    skip = torch.randint(-1, max(num_items, 1), (num_users,), generator=generator).clamp(max=num_items - 1)
    return users.to(dtype), items.to(dtype), positive.to(dtype), skip


def known_positives(num_users, num_items, seed=1, share=0.2):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_users, num_items, generator=generator) < share
    offsets = torch.zeros(num_users + 1, dtype=torch.int64)
    offsets[1:] = mask.sum(1).cumsum(0)
    return offsets, mask.nonzero()[:, 1]


def on(device, *tensors):
    moved = tuple(tuple(part.to(device) for part in t) if isinstance(t, tuple) else t.to(device) for t in tensors)
    return moved[0] if len(moved) == 1 else moved


def derivatives(inputs, implementation, *, seen=None, weights=None, second=True):
    """[loss, three first-order gradients, three second-order ones], as float64 on the CPU."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
    loss = bpr_all_items(*leaves, inputs[3], seen=seen, implementation=implementation)
    total = loss.sum() if weights is None else (loss * weights).sum()
    first = torch.autograd.grad(total, leaves, create_graph=second)
    results = [loss, *first]
    if second:
        generator = torch.Generator().manual_seed(7)
        directions = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]
        along = sum((g * direction).sum() for g, direction in zip(first, directions, strict=True))
        results += torch.autograd.grad(along, leaves)
    return [result.detach().double().cpu() for result in results]


def worst_errors(results, truths, term=1e-30):
    """Largest error of each result relative to the largest entry of its truth, or to `term` where that is larger.

    `term` is the size of one term of a sum: where all entries cancel, what is left of them is no measure of rounding.
    """
    return [
        float((result - truth).abs().max() / truth.abs().max().clamp(min=term)) if truth.numel() else 0.0
        for result, truth in zip(results, truths, strict=True)
    ]
