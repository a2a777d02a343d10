"""The sampler: every pair once an epoch, negatives that were not bought, the same at any start."""

import numpy as np
import pytest
import torch

from uatmc_dist.config import TrainingConfig
from uatmc_dist.data.batches import KnownPositives, Sampler, training_pairs
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.objectives import popularity_offset
from uatmc_dist.seeding import generator


def sampler(seed=0, batch_size=64):
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 40 * 30, size=500))
    users, items = keys // 30, keys % 30
    known = KnownPositives(users, items, 40, 30)
    return (
        Sampler(users, items, known, 30, batch_size, seed, with_negatives=True),
        known,
        set(zip(users.tolist(), items.tolist(), strict=True)),
    )


def pairs(batch):
    return list(zip(batch.users_B.tolist(), batch.positives_B.tolist(), strict=True))


def test_an_epoch_has_every_pair_once_in_an_order_of_its_own():
    ours, _, truth = sampler()
    epochs = [
        [pair for index in range(ours.batches_per_epoch) for pair in pairs(ours.batch(epoch, index))]
        for epoch in (0, 1)
    ]
    for epoch in epochs:
        assert len(epoch) == len(truth) and set(epoch) == truth
    assert epochs[0] != epochs[1]


def test_a_batch_depends_on_its_place_alone():
    first, again = sampler()[0], sampler()[0]
    for index in range(3):
        first.batch(2, index)
    straight, resumed = first.batch(3, 4), again.batch(3, 4)
    assert torch.equal(straight.users_B, resumed.users_B) and torch.equal(straight.negatives_B, resumed.negatives_B)
    assert not torch.equal(straight.negatives_B, sampler(seed=1)[0].batch(3, 4).negatives_B)


def test_negatives_were_not_bought_unless_everything_was():
    ours, _, truth = sampler()
    for index in range(ours.batches_per_epoch):
        batch = ours.batch(0, index)
        bought = set(zip(batch.users_B.tolist(), batch.negatives_B.tolist(), strict=True)) & truth
        assert not bought
    everything = KnownPositives(np.zeros(3, dtype=np.int64), np.arange(3), 1, 3)
    greedy = Sampler(np.zeros(3, dtype=np.int64), np.arange(3), everything, 3, 3, 0, with_negatives=True)
    assert len(greedy.batch(0, 0)) == 3


def test_known_positives_of_a_block():
    _, known, truth = sampler()
    users_B = torch.tensor([5, 0, 5, 39])
    offsets, columns = known.within(users_B, 10, 20)
    for row, user in enumerate(users_B.tolist()):
        ours = (columns[offsets[row] : offsets[row + 1]] + 10).tolist()
        assert ours == sorted(item for owner, item in truth if owner == user and 10 <= item < 20)


def test_logit_adjustment_raises_rare_items_alone_where_it_is_capped():
    known = KnownPositives(np.array([0, 1, 2, 0]), np.array([0, 0, 0, 2]), 3, 4)
    training = TrainingConfig(popularity_correction=2)
    counts_N = torch.tensor([3.0, 0, 1, 0])
    assert popularity_offset(TrainingConfig(), known) is None
    torch.testing.assert_close(popularity_offset(training, known), 2 * counts_N.log1p())
    capped = training.model_copy(update={"popularity_correction_cap": 1})
    torch.testing.assert_close(popularity_offset(capped, known), 2 * counts_N.clamp(max=1).log1p())


def test_training_pairs_are_mapped_in_the_catalogs_order(tiny_catalog, monkeypatch):
    catalog = Catalog(tiny_catalog)
    for pairs in (training_pairs(catalog), training_pairs(Catalog(tiny_catalog))):
        for ours, truth in zip(pairs, catalog.split("train"), strict=True):
            assert isinstance(ours, np.memmap) and ours.dtype == np.int32
            np.testing.assert_array_equal(ours, truth)
    KnownPositives.of_training(Catalog(tiny_catalog))
    monkeypatch.setattr(Catalog, "read_split", lambda self, name: pytest.fail("read again"))
    training_pairs(Catalog(tiny_catalog))
    KnownPositives.of_training(Catalog(tiny_catalog))


def test_an_order_in_32_bits_is_the_order_in_64():
    for size in (1, 1000, 100_003):
        orders = [torch.randperm(size, dtype=dtype, generator=generator(size)) for dtype in (torch.int32, torch.int64)]
        assert torch.equal(orders[0].long(), orders[1])
