"""The planted-taste shop: the same behaviour as the planted-taste catalog, photos and texts that say what drives it."""

import csv

import numpy as np
import pytest
from PIL import Image

from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.synthetic import Planted, synthesize
from uatmc_dist.data.synthetic_shop import draw_photo, synthesize_shop
from uatmc_dist.errors import UserError

SIZES = {"users": 60, "items": 40, "interactions": 400, "seed": 3}


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_orders_are_those_of_the_catalog_and_every_item_has_a_photo_and_a_text(tmp_path):
    synthesize_shop(tmp_path / "shop", **SIZES)
    synthesize(tmp_path / "catalog", **SIZES, visual_dim=4, text_dim=4)
    catalog = Catalog(tmp_path / "catalog")
    orders = read(tmp_path / "shop/orders.csv")
    for index, name in enumerate(("train", "valid", "test")):
        users, items = catalog.split(name)
        ours = {(int(row["user_id"]), int(row["item_id"])) for row in orders if row["split"] == str(index)}
        assert ours == set(zip(users.tolist(), items.tolist(), strict=True))
    articles = read(tmp_path / "shop/articles.csv")
    assert [row["item_id"] for row in articles] == [str(item) for item in range(40)]
    assert all(row["text"].startswith(row["title"]) for row in articles)
    photos = [np.asarray(Image.open(tmp_path / f"shop/photos/{item}.png")) for item in range(40)]
    assert all(photo.shape == (96, 96, 3) for photo in photos)
    assert len({photo.tobytes() for photo in photos}) == 40


def test_photos_of_one_cluster_are_alike():
    planted = Planted.draw(60, 400, 0)
    small = np.stack([np.asarray(draw_photo(planted, i, 0).resize((8, 8)), dtype=float).ravel() for i in range(120)])
    apart = ((small[:, None] - small[None]) ** 2).mean(2)
    same = planted.cluster_of[:120, None] == planted.cluster_of[None, :120]
    assert apart[same & ~np.eye(120, dtype=bool)].mean() < 0.5 * apart[~same].mean()


def test_sizes_that_cannot_be_met_are_refused(tmp_path):
    with pytest.raises(UserError, match="--interactions 10: at least 300"):
        synthesize_shop(tmp_path, users=60, items=40, interactions=10)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        synthesize_shop(tmp_path / "file", users=60, items=40, interactions=400)
