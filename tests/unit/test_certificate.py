"""The certificate: above every attack, equal to brute force, tight for a single user."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.random_model import BUDGETS, RandomModel, scene
from uatmc_dist.adversary.budget import AnyContent, Ball
from uatmc_dist.attacks.suite import attacks_of
from uatmc_dist.config import AttackConfig
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.evaluation.certificate import any_content_hits, certified_hits, certify
from uatmc_dist.evaluation.promotion import attack_model
from uatmc_dist.evaluation.sweep import Swept


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 12),
    dim=st.integers(1, 5),
    epsilon=st.sampled_from([1e-6, 0.01, 0.1, 1.0, 30.0]),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 100.0]),
    budget_of=st.sampled_from([*BUDGETS.values(), lambda epsilon, dim: AnyContent()]),
    modalities=st.sampled_from([MODALITIES, *((name,) for name in MODALITIES)]),
)
def test_no_attack_of_the_suite_passes_the_certificate(seed, users, dim, epsilon, scale, budget_of, modalities):
    model = RandomModel(users, 30, dim, seed, scale, modalities)
    model.v_Nd[3] = 0  # a row without direction cannot be moved
    model.identity_Nd[7], model.v_Nd[7], model.t_Nd[7] = model.identity_Nd[8], model.v_Nd[8], model.t_Nd[8]  # a tie
    budget = budget_of(epsilon, dim)
    twin = RandomModel(users, 30, dim, seed + 1, scale, modalities)
    drawn = scene(model, 4, surrogate=scene(twin, 4).targets)
    bound_T = drawn.certified_hits(budget)
    if budget.replaces:
        of_catalog_N = any_content_hits(Swept.whole(model, 4), modalities)
    else:
        of_catalog_N = certified_hits(Swept.whole(model, 4), [budget])[0]
    assert (of_catalog_N >= bound_T.numpy() - 1e-12).all()
    for attack in attacks_of(AttackConfig(apgd_steps=8, queries=15), modalities):
        for deltas in attack(drawn.targets, budget, torch.Generator().manual_seed(seed)):
            assert (drawn.hits(drawn.moved(deltas, budget)) <= bound_T).all(), attack.name


@pytest.mark.parametrize("budget_of", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.4])
def test_it_equals_the_worst_case_user_by_user(budget_of, epsilon):
    model = RandomModel(50, 70, 6)
    budget = budget_of(epsilon, 6)
    h = model.users_UK[:, 6:].double()
    norm = 1 if budget.norm == "linf" else 2
    reach_v, reach_t = ((h @ w.double()).norm(p=norm, dim=1) for w in (model.dense.w_v, model.dense.w_t))
    scores = model.users_UK.double() @ model.items().double().T
    top = scores.sort(dim=1, descending=True).values
    counts = np.zeros(70)
    for item in range(70):
        bar = torch.where(scores[:, item] >= top[:, 9], top[:, 10], top[:, 9])
        bonus = reach_v * model.v_Nd[item].norm() + reach_t * model.t_Nd[item].norm()
        counts[item] = (scores[:, item] + budget.epsilon * bonus > bar).double().mean()
    np.testing.assert_allclose(certified_hits(Swept.whole(model, 10), [budget])[0], counts, atol=1e-12)
    np.testing.assert_allclose(scene(model, 10).certified_hits(budget).numpy(), counts, atol=1e-12)


@pytest.mark.parametrize("modalities", [("visual",), ("text",), MODALITIES])
def test_any_content_equals_the_worst_case_user_by_user(modalities):
    model = RandomModel(50, 70, 6)
    model.v_Nd[3] = 0  # no photo: nothing to take out, and the same to come
    users, items = model.users_UK.double(), model.items().double()
    h = users[:, 6:]
    terms = {
        "visual": (h @ model.dense.w_v.double(), model.v_Nd.double()),
        "text": (h @ model.dense.w_t.double(), model.t_Nd.double()),
    }
    scores = users @ items.T
    raised = scores.clone()
    for name in modalities:
        along, rows = terms[name]
        raised += along.norm(dim=1, keepdim=True) - along @ rows.T
    top = scores.sort(dim=1, descending=True).values
    bars = torch.where(scores >= top[:, 9:10], top[:, 10:11], top[:, 9:10])
    counts = (raised > bars).double().mean(0).numpy()
    np.testing.assert_allclose(any_content_hits(Swept.whole(model, 10), modalities), counts, atol=1e-12)
    if modalities == MODALITIES:
        np.testing.assert_allclose(scene(model, 10).certified_hits(AnyContent()).numpy(), counts, atol=1e-12)


def test_any_content_is_tight_for_a_single_user_and_above_every_copied_photo_and_text():
    for seed in range(5):
        model = RandomModel(1, 60, 3, seed)
        drawn, h = scene(model, 6), model.users_UK[:, 3:]
        best = [
            torch.nn.functional.normalize(h @ w, dim=1) - rows
            for w, rows in ((model.dense.w_v, model.v_Nd), (model.dense.w_t, model.t_Nd))
        ]
        bound = drawn.certified_hits(AnyContent())
        assert torch.equal(drawn.hits(drawn.moved((best[0], best[1]), AnyContent())), bound)
        for copied in range(60):
            deltas = model.v_Nd[copied] - model.v_Nd, model.t_Nd[copied] - model.t_Nd
            assert (drawn.hits(drawn.moved(deltas, AnyContent())) <= bound).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_tight_for_a_single_user(norm):
    """Brute force: all corners of the box; for the L2 balls their exact maximisers. A hit is found for every item that
    the certificate does not exclude, and for no other."""
    dim = 3
    for seed in range(5):
        model = RandomModel(1, 60, dim, seed)
        budget = Ball(0.15, norm)
        drawn = scene(model, 6)
        if norm == "linf":
            corners = 0.15 * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2 * dim)))
            tried = [(c[:dim] * model.v_Nd.norm(dim=1, keepdim=True), c[dim:] * model.t_Nd.norm(dim=1, keepdim=True))
                     for c in corners]  # fmt: skip
        else:
            h = model.users_UK[:, dim:]
            along = [torch.nn.functional.normalize(h @ w, dim=1) for w in (model.dense.w_v, model.dense.w_t)]
            rows = model.v_Nd, model.t_Nd
            tried = [tuple(0.15 * r.norm(dim=1, keepdim=True) * a for r, a in zip(rows, along, strict=True))]
        reached = torch.stack([drawn.hits(drawn.moved(deltas, budget)) for deltas in tried]).amax(0)
        assert torch.equal(reached, drawn.certified_hits(budget))
        assert 0 < reached.sum() < 60


def test_the_report_has_every_threat_and_the_strongest_attack(tiny_catalog):
    catalog = Catalog(tiny_catalog)
    model = RandomModel(catalog.num_users, catalog.num_items, 6)
    config = AttackConfig(num_targets=5, seeds=[1], epsilons=[0.05, 0.1], k=20, attacks=["pgd", "apgd"], norm="l2",
                          budget="training")  # fmt: skip
    attack = attack_model(model, catalog, config)  # type: ignore[arg-type]
    found = certify(model, catalog, config, attack)  # type: ignore[arg-type]
    entries = found.report["results"]
    assert [(e["norm"], e["budget"], e["epsilon"]) for e in entries] == list(
        (norm, budget, epsilon)
        for norm, budget in itertools.product(("linf", "l2"), ("paper", "training"))
        for epsilon in (0.05, 0.1)
    )
    for entry in entries:
        column = found.columns[f"{entry['norm']}_{entry['budget']}_{entry['epsilon']:g}"]
        assert len(column) == catalog.num_items and entry["certified_hit@20"] == pytest.approx(column.mean())
        assert entry["most_promotable"][0]["certified_hit@20"] == column.max()
        assert entry["most_promotable"][0]["title"]
        beside = entry["strongest_attack"]
        assert (beside is not None) == ((entry["norm"], entry["budget"]) == ("l2", "training"))
        if beside is not None:
            assert beside["hit@20_before"] <= beside["hit@20_after"] <= beside["certified_hit@20"]
    both = found.report["any_content"][-1]
    assert [entry["modalities"] for entry in found.report["any_content"]] == [["visual"], ["text"], ["visual", "text"]]
    assert both["certified_hit@20"] == pytest.approx(found.columns["any_content_visual_text"].mean())
    assert both["certified_hit@20"] >= max(entry["certified_hit@20"] for entry in found.report["any_content"])
    assert both["strongest_attack"]["hit@20_after"] <= both["strongest_attack"]["certified_hit@20"]
