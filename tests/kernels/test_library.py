"""The ops as torch.library knows them: schemas, fake implementations, autograd, torch.compile; and their choice."""

import logging

import pytest
import torch

import uatmc_kernels
from tests.kernels.problems import derivatives, known_positives, on, problem
from uatmc_kernels import _dispatch, bpr_all_items, coordinate, count_above, perturb, topk_all_items

OPS = torch.ops.uatmc


def score_arguments(device):
    users, items, positive, skip = on(device, *problem(6, 20, 4, torch.float32))
    offsets, columns = on(device, known_positives(6, 20))
    return users, items, positive, skip, offsets, columns


def samples(device, name):
    """(op, arguments) of every op."""
    scores = score_arguments(device)
    differentiable = (*(tensor.clone().requires_grad_() for tensor in scores[:3]), *scores[3:])
    _, _, positive, _, *seen = scores
    weights = torch.linspace(0.5, 1, 6, device=device).requires_grad_()
    offset = torch.linspace(-1, 1, 20, device=device)
    lse = OPS.lse(*scores[:2], *scores[3:], offset, name)
    unit = OPS.bpr_loss_and_gradients(*scores, name)[1:]
    g, w_v, w_t = (torch.randn(shape, device=device) for shape in ((20, 4), (4, 3), (4, 3)))
    v, t = torch.randn(20, 3, device=device), torch.randn(20, 3, device=device)
    return [
        (OPS.bpr_loss.default, (*scores, name)),
        (OPS.bpr_loss_and_gradients.default, (*differentiable, name)),
        (OPS.bpr_gradients.default, (weights, *differentiable, *unit, name)),
        (OPS.bpr_second_order.default, (weights.detach(), *scores, *scores[:2], None, name)),
        (OPS.bpr_hvp.default, (*scores, scores[1][:, 1:3], scores[2], 1, 3, name)),
        (OPS.lse.default, (*differentiable[:2], *scores[3:], offset, name)),
        (OPS.lse_gradients.default, (weights, lse, *differentiable[:2], *scores[3:], offset, name)),
        (
            OPS.lse_second_order.default,
            (weights.detach(), lse, *scores[:2], *scores[3:], offset, *scores[:2], name),
        ),
        (OPS.softmax_mean_change.default, (*scores, offset, scores[1][:, 1:3], 1, 3, name)),
        (OPS.softmax_hvp.default, (*scores, None, scores[1][:, 1:3], scores[2], 1, 3, name)),
        (OPS.coordinate.default, (g, w_v, w_t, name)),
        (OPS.perturb.default, (g, w_v, w_t, v, t, 0.1, "l2", name)),
        (OPS.perturbed_content.default, (g, w_v, w_t, v, t, None, 0.1, "linf", name)),
        (OPS.topk_all_items.default, (*scores[:2], 5, *seen, False, name)),
        (OPS.count_above.default, (*scores[:2], positive, positive[:, None].expand(-1, 2), name)),
    ]


@pytest.mark.parametrize("index", range(15))
def test_opcheck(index):
    op, arguments = samples("cpu", "tiled")[index]
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("index", range(15))
def test_opcheck_of_the_kernels(triton_device, index):
    op, arguments = samples(triton_device, "triton")[index]
    # The two cheap checks; what the others do does not depend on the implementation.
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_compiled_training_step_equals_eager():
    users, items, positive, skip = problem(6, 30, 4)
    seen = known_positives(6, 30)

    def step(users, items, positive):
        loss = bpr_all_items(users * 2, items, positive, skip, seen=seen)
        return loss.sum() / 30

    def gradients(function):
        leaves = [tensor.clone().requires_grad_() for tensor in (users, items, positive)]
        return torch.autograd.grad(function(*leaves), leaves)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for ours, truth in zip(gradients(compiled), gradients(step), strict=True):
        torch.testing.assert_close(ours, truth)


def test_what_has_no_derivative_says_so():
    mean, _ = OPS.coordinate(torch.ones(3, 4, requires_grad=True), torch.eye(4), torch.eye(4), "tiled")
    with pytest.raises(RuntimeError, match="uatmc::coordinate has no derivative"):
        mean.backward()


def test_every_public_op_compiles_without_a_graph_break():
    users, items, positive, _ = problem(6, 30, 4)
    weight = torch.eye(4, dtype=torch.float64)

    def everything(users, items, positive):
        mean, omega = coordinate(items, weight, weight)
        return (
            mean,
            *perturb(omega, weight, weight, items, items, 0.1),
            *topk_all_items(users, items, 3),
            count_above(users, items, positive, positive),
        )

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for ours, truth in zip(compiled(users, items, positive), everything(users, items, positive), strict=True):
        torch.testing.assert_close(ours, truth)


def test_auto_takes_tiles_on_the_cpu(monkeypatch):
    called = []
    monkeypatch.setattr(uatmc_kernels.tiled, "bpr_loss", lambda scores: called.append(1) or torch.zeros(6))
    bpr_all_items(*problem(6, 20, 4, torch.float32))
    assert called


def test_auto_says_once_that_it_falls_back(monkeypatch, caplog):
    class OnGPU:
        device, dtype = torch.device("cuda", 0), torch.float64

    _dispatch._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="uatmc_kernels"):
        assert _dispatch.resolve("auto", OnGPU()) == "tiled"
        assert _dispatch.resolve("auto", OnGPU()) == "tiled"
    assert [record.getMessage() for record in caplog.records] == [
        "auto: tiled instead of triton on cuda: no Triton kernel for torch.float64"
    ]


def test_a_choice_that_cannot_run_is_refused(monkeypatch):
    inputs = problem(3, 5, 2)
    with pytest.raises(
        ValueError, match="'fast' is not one of 'auto', 'reference', 'tiled', 'triton', 'triton_atomic'"
    ):
        bpr_all_items(*inputs, implementation="fast")
    with pytest.raises(ValueError, match="'triton_atomic' is not one of"):
        topk_all_items(*inputs[:2], 1, implementation="triton_atomic")
    with pytest.raises(ValueError, match=r"no Triton kernel for torch\.float64|not installed"):
        bpr_all_items(*inputs, implementation="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    _dispatch._triton_problem.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"the tensors are on cpu|not installed"):
            derivatives(problem(3, 5, 2, torch.float32), "triton")
    finally:
        _dispatch._triton_problem.cache_clear()
