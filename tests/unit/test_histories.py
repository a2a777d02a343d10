"""Users as bags of items: what is left out, weights, memory mapping, initial content, lists for new users."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from uatmc_dist.config import Config, ModelConfig
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.histories import bags_of_pairs, bags_of_users, pooled_users
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.recommend import recommend
from uatmc_dist.models.trained import TrainedModel

USERS, ITEMS = 12, 30


@pytest.fixture
def known():
    keys = np.unique(np.random.default_rng(0).integers(0, USERS * ITEMS, 90))
    return KnownPositives(keys // ITEMS, keys % ITEMS, USERS, ITEMS)


def batch_of(known):
    rows, items = known.entries(torch.arange(USERS))
    return Batch(rows, items, seed=(1, 2, 3))


def test_pooled_users_are_sums_over_the_root_of_the_count(known):
    table = torch.randn(ITEMS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = pooled_users(known, table, USERS, at_once=5)
    for user in range(USERS):
        _, items = known.entries(torch.tensor([user]))
        expected = table[items].sum(0) / max(len(items), 1) ** 0.5
        torch.testing.assert_close(pooled[user], expected)


def test_a_pair_does_not_see_its_positive(known):
    batch = batch_of(known)
    bags = bags_of_pairs(known, batch, dropout=0.0)
    for positive, user, items, weights in zip(
        batch.positives_B,
        batch.users_B,
        bags.items_E.split(bags.lengths_m.tolist()),
        bags.weights_E.split(bags.lengths_m.tolist()),
        strict=True,
    ):
        _, whole = known.entries(user[None])
        assert items.tolist() == [item for item in whole.tolist() if item != positive]
        assert weights.tolist() == pytest.approx([max(len(items), 1) ** -0.5] * len(items))


def test_sums_are_the_same_however_the_items_are_shared_out(known):
    batch = batch_of(known)
    whole = bags_of_pairs(known, batch, dropout=0.4)
    table = torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [whole.of_items(lo, hi) for lo, hi in pairwise([0, 7, 7, 12, ITEMS])]
    assert torch.equal(sum(part.lengths_m for part in parts), whole.lengths_m)
    torch.testing.assert_close(sum(part.pooled(table) for part in parts), whole.pooled(table))
    all_items = bags_of_pairs(known, batch, dropout=0.0)
    assert 0.45 < len(whole.items_E) / len(all_items.items_E) < 0.75


def test_an_empty_bag_is_a_row_of_zeros():
    known = KnownPositives(np.array([1]), np.array([2]), 3, 4)
    pooled = bags_of_users(known, torch.arange(3)).pooled(torch.ones(4, 2))
    assert pooled.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_training_items_are_mapped_and_made_anew_where_damaged(tmp_path):
    folder = tmp_path / "catalog"
    synthesize(folder, users=40, items=30, interactions=300, visual_dim=4, text_dim=3, seed=0)
    catalog = Catalog(folder)
    in_memory = KnownPositives(*catalog.split("train"), catalog.num_users, catalog.num_items)
    file = folder / "training" / f"known-{catalog.digest}.npy"
    for damage in (lambda: None, lambda: file.write_bytes(file.read_bytes()[:200]), file.unlink):
        mapped = KnownPositives.of_training(catalog)
        for ours, truth in zip(mapped.entries(torch.arange(40)), in_memory.entries(torch.arange(40)), strict=True):
            assert torch.equal(ours, truth)
        assert file.exists()
        damage()
    synthesize(folder, users=50, items=30, interactions=300, visual_dim=4, text_dim=3, seed=0, overwrite=True)
    assert not file.exists()


def test_a_catalog_that_cannot_be_written_is_read_all_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "catalog"
    synthesize(folder, users=40, items=30, interactions=300, visual_dim=4, text_dim=3, seed=0)
    (folder / "training").write_text("a file where the folder should be")
    catalog = Catalog(folder)
    known = KnownPositives.of_training(catalog)
    users, items = catalog.split("train")
    assert known.contains(torch.from_numpy(users), torch.from_numpy(items)).all()


def config_of(folder, **model):
    model = {"embedding_dim": 6, "visual_hidden": [], "text_hidden": [], **model}
    return Config(name="x", catalog=folder, model=ModelConfig(**model))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("histories") / "catalog"
    synthesize(folder, users=60, items=50, interactions=600, visual_dim=16, text_dim=4, seed=0)
    return Catalog(folder)


def test_a_model_that_starts_from_content_ranks_by_it(catalog):
    model = TrainedModel.initial(config_of(catalog.path, user="history", initial="content"), catalog)
    content = model.items()[:, 6:]
    torch.testing.assert_close(content, model.v_Nd + model.t_Nd)
    assert torch.equal(model.history_NK[:, 6:], content)
    raw = torch.from_numpy(catalog.features["visual"].rows(np.arange(50)))
    centred = raw - raw.mean(0)
    principal = torch.linalg.svd(centred, full_matrices=False).Vh[:6]
    kept = centred @ principal.T
    truth = torch.nn.functional.normalize(kept, dim=1)
    cosines, truths = model.v_Nd @ model.v_Nd.T, truth @ truth.T  # the components themselves are free up to a sign
    assert (cosines - truths).abs().max() < 0.05


def test_hidden_layers_cannot_start_from_content(tmp_path):
    with pytest.raises(ValueError, match=r"visual_hidden=\[\]"):
        config_of(tmp_path, initial="content", visual_hidden=[8])


def test_a_known_user_and_a_stranger_with_the_same_history_get_the_same_list(catalog):
    model = TrainedModel.initial(config_of(catalog.path, user="history", initial="content"), catalog)
    _, items = KnownPositives.of_training(catalog).entries(torch.tensor([3]))
    torch.testing.assert_close(model.user_of_history(items), model.users_UK[3])
    names = [catalog.titles()[0][item] for item in items.tolist()]
    listed = recommend(model, catalog, [*names, names[0]], 100)
    assert len(listed) == catalog.num_items - len(items)
    assert not {found.source_id for found in listed} & set(names)
    assert [found.score for found in listed] == sorted((found.score for found in listed), reverse=True)
    with pytest.raises(UserError, match="has no item nothing"):
        recommend(model, catalog, [names[0], "nothing"], 3)
    rows = TrainedModel.initial(config_of(catalog.path, user="row"), catalog)
    with pytest.raises(UserError, match=r"model\.user=history"):
        recommend(rows, catalog, names, 3)
