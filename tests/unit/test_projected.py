"""The cache of projected features: what it gives is what the projectors give, whoever asked before."""

import os
from pathlib import Path

import pytest
import torch

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import PROJECTED, Catalog
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.models import own_content, projected
from uatmc_dist.models.own_content import OwnFeatures
from uatmc_dist.models.projected import projected_items
from uatmc_dist.models.projectors import project_items
from uatmc_dist.models.vbpr import dense_module
from uatmc_dist.parallel.item_parallel import ItemBlock

CPU = torch.device("cpu")


@pytest.fixture
def catalog(tmp_path, monkeypatch) -> Catalog:
    monkeypatch.setattr(projected, "CHUNK", 64)  # 203 items: three chunks and a short one
    synthesize(tmp_path / "x", users=230, items=203, interactions=1600, visual_dim=20, text_dim=12, seed=3)
    return Catalog(tmp_path / "x")


@pytest.fixture
def model(catalog):
    return dense_module(Config(name="x", catalog=catalog.path), catalog).requires_grad_(False)


def files(catalog: Catalog) -> list:
    return sorted((catalog.path / PROJECTED).glob("*/*.safetensors"))


def test_blocks_of_any_ranks_share_the_chunks(catalog, model):
    whole = project_items(model, catalog, 0, 203, CPU)
    for lo, hi in ((0, 102), (102, 203), (0, 51), (153, 203), (0, 203), (203, 203)):
        for ours, truth in zip(projected_items(model, catalog, lo, hi, CPU), whole, strict=True):
            assert ours.shape == (hi - lo, truth.shape[1]) and torch.allclose(ours, truth[lo:hi], atol=1e-6)
    assert len(files(catalog)) == 4


def test_a_second_pass_reads_no_feature(catalog, model, monkeypatch):
    first = projected_items(model, catalog, 0, 203, CPU)
    monkeypatch.setattr(projected, "project_items", None)
    told = []
    again = projected_items(model, catalog, 0, 203, CPU, progress=lambda done, total: told.append((done, total)))
    assert all(map(torch.equal, first, again)) and told[-1] == (203, 203)


def test_other_weights_and_formats_have_their_own(catalog, model):
    first = projected_items(model, catalog, 0, 203, CPU)
    rounded = projected_items(model, catalog, 0, 203, CPU, torch.bfloat16)
    assert rounded[0].dtype == torch.bfloat16 and torch.equal(rounded[0], first[0].bfloat16())
    model.visual[0].weight.mul_(1.5)
    assert not torch.allclose(projected_items(model, catalog, 0, 203, CPU)[0], first[0])
    for factor in range(2, 7):  # old ones go
        model.text[0].weight.mul_(factor)
        projected_items(model, catalog, 0, 10, CPU)
    assert len(list((catalog.path / PROJECTED).iterdir())) == 4


def test_changed_features_are_projected_anew(catalog, model):
    projected_items(model, catalog, 0, 203, CPU)
    os.utime(catalog.features["text"].path, (1, 1))
    projected_items(model, catalog, 0, 203, CPU)
    assert len(files(catalog)) == 8


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_a_damaged_chunk_is_made_again(catalog, model, content):
    first = projected_items(model, catalog, 0, 203, CPU)
    files(catalog)[1].write_bytes(content)
    assert all(map(torch.equal, first, projected_items(model, catalog, 0, 203, CPU)))
    assert files(catalog)[1].stat().st_size > len(content)


def test_a_catalog_that_cannot_be_written_is_projected_all_the_same(catalog, model, caplog):
    (catalog.path / PROJECTED).write_text("in the way")
    ours = projected_items(model, catalog, 0, 203, CPU)
    assert torch.allclose(ours[0], project_items(model, catalog, 0, 203, CPU)[0], atol=1e-6)
    assert "not kept" in caplog.text


def test_others_may_read_what_is_kept(catalog, model):
    projected_items(model, catalog, 0, 203, CPU)
    others = (catalog.path / "catalog.json").stat().st_mode
    assert all(file.stat().st_mode == others for file in files(catalog))


def test_a_folder_that_another_rank_has_just_dropped_is_no_error(catalog, model, monkeypatch):
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*listed(folder), *(folder / f"gone-{i}" for i in range(5))])
    projected_items(model, catalog, 0, 203, CPU)
    assert len(files(catalog)) == 4


def test_a_damaged_chunk_is_projected_again(catalog, model, caplog):
    first = projected_items(model, catalog, 0, 203, CPU)
    file = files(catalog)[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    file.write_bytes(content)
    for again, before in zip(projected_items(model, catalog, 0, 203, CPU), first, strict=True):
        assert torch.equal(again, before)
    assert f"{file}: damaged; projected again" in caplog.text


def test_features_that_are_kept_on_the_device_are_those_of_the_files(catalog, monkeypatch):
    block, ids = ItemBlock(203, 1, 2), torch.arange(102, 203)
    from_files = OwnFeatures(catalog, block, CPU)
    monkeypatch.setattr(own_content, "_free_bytes", lambda device: 1 << 30)
    kept = OwnFeatures(catalog, block, CPU)
    for given in (ids, ids[3:9], ids):
        truth, found = from_files.rows(given), kept.rows(given)
        assert all(torch.equal(found[name], truth[name]) for name in ("visual", "text"))
        assert found["visual"].dtype == torch.float32
    monkeypatch.setattr(own_content, "raw_rows", lambda *given: pytest.fail("read again"))
    kept.rows(ids)
    monkeypatch.setattr(own_content, "_free_bytes", lambda device: 2 * 101 * 32 * 2 - 1)  # half of it must do
    with pytest.raises(pytest.fail.Exception, match="read again"):
        OwnFeatures(catalog, block, CPU).rows(ids)
