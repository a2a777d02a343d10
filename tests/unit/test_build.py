"""From a shop's own files to a catalog: what is read, what is left out, what is refused."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.unit import shop
from uatmc_dist.data.building import BuildOptions, build_catalog
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.encoders import text, visual
from uatmc_dist.encoders.base import Encoder
from uatmc_dist.errors import UserError


class Encoders:
    """Encoders that are quick, and say what they were shown."""

    def __init__(self) -> None:
        self.photos: list[tuple] = []
        self.texts: list[str] = []
        self.stops_after: int | None = None

    def visual(self, name: str, device: str = "auto") -> Encoder:
        def encode(photos):
            self.photos += [(photo.mode, photo.size) for photo in photos]
            if self.stops_after is not None and len(self.photos) > self.stops_after:
                raise KeyboardInterrupt
            return torch.tensor([[*np.asarray(photo).mean(axis=(0, 1)), 1.0] for photo in photos], dtype=torch.float32)

        return Encoder(encode, {"encoder": name, "batch": 1}, 1, 2)

    def text(self, name: str, device: str = "auto") -> Encoder:
        def encode(texts):
            self.texts += texts
            return torch.tensor([[len(text), 1.0] for text in texts], dtype=torch.float32)

        return Encoder(encode, {"encoder": name, "batch": 1}, 1, 2)


@pytest.fixture
def encoders(monkeypatch) -> Encoders:
    made = Encoders()
    monkeypatch.setattr(visual, "open_visual_encoder", made.visual)
    monkeypatch.setattr(text, "open_text_encoder", made.text)
    return made


@pytest.fixture
def options(tmp_path, encoders) -> BuildOptions:
    return BuildOptions(**shop.write_shop(tmp_path / "shop"))


def build(tmp_path: Path, options: BuildOptions, **arguments) -> tuple[Catalog, list[str]]:
    said: list[str] = []
    build_catalog(tmp_path / "out", options, say=said.append, **arguments)
    return Catalog(tmp_path / "out"), said


def by_source_id(catalog: Catalog) -> set[tuple[str, str, int]]:
    users = pq.read_table(catalog.path / "users.parquet")["source_id"].to_pylist()
    items = catalog.titles()[0]
    found = catalog.interactions()
    rows = zip(found.users, found.items, found.timestamps, strict=True)
    return {(users[user], items[item], int(time) // 86400) for user, item, time in rows}


def test_everything_arrives(tmp_path, options, encoders):
    catalog, said = build(tmp_path, options)
    assert by_source_id(catalog) == set(shop.orders())
    ids, titles = catalog.titles()
    assert ids == shop.ITEMS and titles[0] == 'Name "0100"'
    table = pq.read_table(catalog.path / "items.parquet")
    assert table["text"][0].as_py() == 'Name "0100". red. Long, and\nin two lines 0100'
    assert table["photo"][0].as_py().endswith("photos/010/0100.png") and len(table["photo_xxh3"][0].as_py()) == 32
    rows = catalog.features["visual"].rows(np.arange(9))
    with Image.open(table["photo"][4].as_py()) as photo:
        np.testing.assert_allclose(rows[4, :3], np.asarray(photo.convert("RGB")).mean(axis=(0, 1)), rtol=1e-3)
    assert set(encoders.photos) == {("RGB", (30, 20))} and len(encoders.photos) == 9
    assert catalog.meta["modalities"]["text"]["encoding"]["encoder"] == "all-MiniLM-L6-v2"
    assert catalog.meta["notes"] == {"split": "chronological", "k_core": 5}
    assert "split: chronological" in " ".join(said) and "photos of 9 of 9 items" in " ".join(said)
    found = catalog.interactions()
    for user in range(catalog.num_users):
        of_user = found.splits[found.users == user]
        assert of_user.tolist() == [0, 0, 0, 0, 1, 2]  # in the order of time, which the file is not


@pytest.mark.parametrize("kind", ["tsv", "parquet", "jsonl", "inter", "semicolons", "csv.gz"])
def test_tables_of_every_kind_give_the_same_catalog(tmp_path, options, kind):
    expected, _ = build(tmp_path, options)
    rows = [(user, item, day * 86400) for user, item, day in shop.orders()]
    path, header = tmp_path / f"orders.{kind}", ["user_id", "item_id", "timestamp"]
    if kind == "semicolons":
        path = shop.write_csv(tmp_path / "orders.csv", header, rows, ";")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets do
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(shop.write_csv(tmp_path / "orders.csv", header, rows).read_bytes()))
    elif kind == "parquet":
        shop.write_parquet(path, header, rows)
    elif kind == "jsonl":
        shop.write_jsonl(path, header, rows)
    else:
        header = ["user_id:token", "item_id:token", "timestamp:float"] if kind == "inter" else header
        shop.write_csv(path, header, rows, "\t")
    found, _ = build(tmp_path / "b", replace(options, interactions=path))
    assert by_source_id(found) == by_source_id(expected)


@pytest.mark.parametrize(
    "write",
    [
        shop.date,
        lambda day: f"{shop.date(day)} 11:30:00",
        lambda day: f"{shop.date(day)}T23:59:59.25Z",
        lambda day: shop.date(day).replace("-", ""),
        lambda day: ".".join(reversed(shop.date(day).split("-"))),
        lambda day: str(day * 86400),
        lambda day: str(day * 86_400_000),
        lambda day: f"{day * 86400}.5",
    ],
)
def test_times_of_many_formats(tmp_path, options, write):
    rows = [(user, item, write(day)) for user, item, day in shop.orders()]
    path = shop.write_csv(tmp_path / "orders.csv", ["user", "item", "timestamp"], rows)
    catalog, _ = build(tmp_path, replace(options, interactions=path))
    assert by_source_id(catalog) == set(shop.orders())


def test_items_without_photo_or_text_get_zero_rows_and_are_counted(tmp_path, options):
    next(options.photos.rglob("0103*")).unlink()
    text_ = options.items.read_text().replace('"Name ""0105"""', "").replace('"Long, and\nin two lines 0105"', "")
    options.items.write_text(text_.replace("0105,,,red", "0105,,,"))
    catalog, _ = build(tmp_path, options)
    notes = catalog.meta["notes"]
    assert (notes["items_without_photo"], notes["items_without_text"]) == (1, 1)
    assert not catalog.features["visual"].rows(np.array([3])).any()
    assert not catalog.features["text"].rows(np.array([5])).any()


BROKEN = {
    "a text file": lambda path: path.write_text("no photo"),
    "zero bytes": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "1 x 1": lambda path: Image.new("RGB", (1, 1)).save(path),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_photo_is_named_and_its_row_is_zero(tmp_path, options, kind):
    path = next(options.photos.rglob("0100*"))
    BROKEN[kind](path)
    catalog, said = build(tmp_path, options)
    assert catalog.meta["notes"]["broken_photos"] == 1
    assert any(str(path) in line and "broken photo" in line for line in said), said
    rows = catalog.features["visual"].rows(np.arange(9))
    assert not rows[0].any() and rows[1:].any(axis=1).all()
    photos = catalog.contents("photo")
    assert photos[0] is None and None not in photos[1:]  # to an attack it has none


def test_of_many_broken_photos_ten_are_named(tmp_path, options):
    many = [f"0{100 + item}" for item in range(40)]
    rows = [(user, item, 1) for item in many for user in shop.USERS[:5]]
    articles = shop.write_csv(tmp_path / "articles.csv", ["item", "title"], [(item, "x") for item in many])
    orders = shop.write_csv(tmp_path / "orders.csv", ["user", "item", "time"], rows)
    photos = shop.write_photos(tmp_path / "photos", many)
    for item in many[:14]:
        next(photos.rglob(f"{item}*")).write_text("no photo")
    catalog, said = build(tmp_path, BuildOptions(orders, articles, photos))
    assert sum("broken photo, " in line for line in said) == 10 and "... and 4 more broken photos" in said
    assert catalog.meta["notes"]["broken_photos"] == 14


def test_photos_of_every_kind_are_rgb(tmp_path, options, encoders):
    def replace_photo(item: str, suffix: str, photo: Image.Image, **how) -> None:
        next(options.photos.rglob(f"{item}*")).unlink()
        photo.save(options.photos / f"{item}.{suffix}", **how)

    red = Image.new("RGB", (12, 10), (200, 0, 0))
    replace_photo("0100", "jpg", red.convert("CMYK"))
    replace_photo("0101", "png", Image.fromarray(np.full((10, 12), 40_000, dtype=np.uint16)))
    replace_photo("0102", "webp", red, save_all=True, append_images=[Image.new("RGB", (12, 10))], lossless=True)
    replace_photo("0103", "png", Image.new("RGBA", (12, 10), (0, 0, 0, 0)))
    replace_photo("0104", "png", red.convert("P"))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    replace_photo("0105", "jpg", red, exif=exif)
    catalog, _ = build(tmp_path, options)
    assert {mode for mode, _ in encoders.photos} == {"RGB"} and (10, 12) in [size for _, size in encoders.photos]
    rows = catalog.features["visual"].rows(np.arange(9))[:, :3]
    assert rows[0, 0] > 150 and rows[0, 1] < 60
    np.testing.assert_allclose(rows[1], 40_000 / 257, atol=1)
    np.testing.assert_allclose(rows[2], [200, 0, 0], atol=1)
    np.testing.assert_allclose(rows[3], 255)
    assert "broken_photos" not in catalog.meta["notes"]


def test_a_second_build_encodes_what_is_new(tmp_path, options, encoders):
    build(tmp_path, options)
    Image.new("RGB", (30, 20), (1, 2, 3)).save(next(options.photos.rglob("0104*")))
    encoders.photos.clear()
    encoders.texts.clear()
    catalog, _ = build(tmp_path, options, overwrite=True)
    assert len(encoders.photos) == 1 and not encoders.texts
    np.testing.assert_allclose(catalog.features["visual"].rows(np.array([4]))[0, :3], [1, 2, 3], atol=3)


def test_equal_contents_are_encoded_once(tmp_path, options, encoders):
    content = next(options.photos.rglob("0100*")).read_bytes()
    next(options.photos.rglob("0104*")).write_bytes(content)
    catalog, _ = build(tmp_path, options)
    assert len(encoders.photos) == 8
    rows = catalog.features["visual"].rows(np.array([0, 4]))
    np.testing.assert_array_equal(rows[0], rows[1])


def test_an_interruption_loses_at_most_a_batch(tmp_path, encoders):
    many = [f"0{100 + item}" for item in range(90)]
    rows = [(user, item, 1) for item in many for user in shop.USERS[:5]]
    articles = shop.write_csv(tmp_path / "articles.csv", ["item", "price"], [(item, 1) for item in many])
    orders = shop.write_csv(tmp_path / "orders.csv", ["user", "item", "time"], rows)
    shop_options = BuildOptions(orders, articles, shop.write_photos(tmp_path / "photos", many))
    encoders.stops_after = 70
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, shop_options)
    with pytest.raises(UserError, match="no catalog here"):
        Catalog(tmp_path / "out")
    encoders.stops_after = None
    encoders.photos.clear()
    build(tmp_path, shop_options)
    assert len(encoders.photos) == 90 - 64


def test_texts_alone_and_photos_alone(tmp_path, options):
    texts, _ = build(tmp_path / "t", replace(options, photos=None))
    assert texts.modalities == ["text"]
    photos, _ = build(tmp_path / "p", replace(options, items=None))
    assert photos.modalities == ["visual"] and by_source_id(photos) == set(shop.orders())


def test_a_column_of_paths(tmp_path, options):
    rows = [
        (item, f"name {item}", str(next(options.photos.rglob(f"{item}*")).relative_to(options.photos)))
        for item in shop.ITEMS
    ]
    rows[2] = (*rows[2][:2], "")
    path = shop.write_csv(tmp_path / "articles.csv", ["item_id", "title", "image_path"], rows)
    catalog, _ = build(tmp_path, replace(options, items=path))
    assert catalog.meta["notes"]["items_without_photo"] == 1
    beside = replace(
        options, items=shop.write_csv(options.photos / "a.csv", ["item_id", "title", "pic"], rows), photos=None
    )
    catalog, _ = build(tmp_path / "b", replace(beside, photo_column="pic"))
    assert catalog.meta["notes"]["items_without_photo"] == 1 and catalog.modalities == ["visual", "text"]


def test_source_ids_may_differ_from_the_key(tmp_path, options):
    rows = [(index, item, f"name {item}") for index, item in enumerate(shop.ITEMS)]
    items = shop.write_csv(tmp_path / "articles.csv", ["itemID", "source_id", "title"], rows)
    bought = [(user, shop.ITEMS.index(item), day) for user, item, day in shop.orders()]
    orders = shop.write_csv(tmp_path / "orders.csv", ["userID", "itemID", "timestamp"], bought)
    catalog, _ = build(tmp_path, replace(options, interactions=orders, items=items))
    assert catalog.titles()[0] == shop.ITEMS and catalog.features["visual"].rows(np.arange(9)).any(axis=1).all()


def test_what_is_left_out_is_counted(tmp_path, options):
    rows = [(user, item, day, 5) for user, item, day in shop.orders()]
    rows += [("user a", "elsewhere", 1, 5), rows[0], ("lonely", shop.ITEMS[0], 3, 5), ("user b", shop.ITEMS[1], 9, 1)]
    path = shop.write_csv(tmp_path / "orders.csv", ["user", "item", "day", "stars"], rows)
    extra = options.items.read_text() + "0999,new,never bought,blue\n"
    options.items.write_text(extra)
    catalog, _ = build(tmp_path, replace(options, interactions=path, time_column="day", min_rating=2.0, k_core=2))
    notes = catalog.meta["notes"]
    assert notes["interactions_below_min_rating"] == 1 and notes["interactions_of_unknown_items"] == 1
    assert notes["repeated_interactions"] == 1 and notes["interactions_outside_the_core"] == 1
    assert notes["items_without_interactions_dropped"] == 1
    assert len(catalog.interactions()) == len(shop.orders())


def test_splits(tmp_path, options):
    def counts(**changes) -> list[int]:
        catalog, _ = build(tmp_path / str(len(list(tmp_path.iterdir()))), replace(options, **changes))
        return np.bincount(catalog.interactions().splits, minlength=3).tolist()

    assert counts(split="leave-one-out") == [48, 12, 12]
    assert counts(split="random", seed=1) == [48, 12, 12]
    seeded, _ = build(
        tmp_path / "seeded", replace(options, split="random", seed=7, min_rating=1, rating_column="price")
    )
    assert seeded.meta["notes"] == {"split": "random, seed 7", "k_core": 5, "min_rating": "1"}
    by_date = counts(split="date", valid_from=shop.date(18003), test_from=shop.date(18005))
    assert by_date == [36, 24, 12]
    rows = [(user, item, day, ("train", "Valid", "test")[max(0, day - 18003)]) for user, item, day in shop.orders()]
    given = shop.write_csv(tmp_path / "given.csv", ["user", "item", "day", "split"], rows)
    assert counts(interactions=given) == [48, 12, 12]

    def order(seed: int) -> list:
        catalog, _ = build(
            tmp_path / f"seed{len(list(tmp_path.iterdir()))}", replace(options, split="random", seed=seed)
        )
        return catalog.interactions().splits.tolist()

    assert order(1) == order(1) != order(2)


def change(name: str, **edits):
    return lambda options, folder: replace(options, **{name: edits["to"](folder)})


def edited(name: str, old: str, new: str, count: int = -1):
    """Options whose file `name` has other content."""

    def edit(options: BuildOptions, folder: Path) -> BuildOptions:
        path = getattr(options, name)
        path.write_text(path.read_text().replace(old, new, count))
        return options

    return edit


def with_table(name: str, file: str, header: list[str], rows: list):
    return lambda options, folder: replace(options, **{name: shop.write_csv(folder / file, header, rows)})


def with_file(name: str, file: str, content: bytes):
    def edit(options: BuildOptions, folder: Path) -> BuildOptions:
        (folder / file).write_bytes(content)
        return replace(options, **{name: folder / file})

    return edit


def options_of(**changes):
    return lambda options, folder: replace(options, **changes)


ORDERS = [(user, item, shop.date(day)) for user, item, day in shop.orders()]
HEADER = ["user", "item", "date"]
REFUSED = {
    "no orders": (options_of(interactions=Path("nowhere.csv")), ["nowhere.csv", "no such file"]),
    "orders of no kind": (with_file("interactions", "orders.xlsx", b"PK"), ["orders.xlsx", ".xlsx suffix", "CSV"]),
    "empty file": (with_file("interactions", "orders.csv", b""), ["orders.csv", "empty file"]),
    "header alone": (with_file("interactions", "orders.csv", b"user,item\n"), ["orders.csv", "no row"]),
    "Latin-1": (with_file("interactions", "o.csv", b"user,item,date\nJos\xe9,1,2026-01-01\n"), ["o.csv", "UTF-8"]),
    "parquet that is none": (
        with_file("interactions", "orders.parquet", b"user,item"),
        ["orders.parquet", "truncated"],
    ),
    "JSON that is none": (with_file("interactions", "orders.jsonl", b'{"user": 1'), ["orders.jsonl", "truncated"]),
    "ragged": (with_file("interactions", "o.csv", b"user,item,date\na,b\n"), ["o.csv", "truncated"]),
    "two columns of one name": (with_file("interactions", "o.csv", b"user,item,user\na,b,c\n"), ["two columns"]),
    "no column of users": (
        with_table("interactions", "o.csv", ["who", "item"], [("a", "0100")]),
        ["users", "--user-column"],
    ),
    "unknown column": (options_of(user_column="buyer"), ["--user-column buyer", "no such column", "customer_id"]),
    "empty user": (
        with_table("interactions", "o.csv", HEADER, [*ORDERS, ("", "0100", "2026-01-01")]),
        ["row 73", "user is empty"],
    ),
    "a word for a date": (
        with_table("interactions", "o.csv", HEADER, [*ORDERS, ("x", "0100", "today")]),
        ["row 73", "'today'"],
    ),
    "two formats": (
        with_table("interactions", "o.csv", HEADER, [*ORDERS, ("x", "0100", "31.01.2026")]),
        ["row 73", "'31.01.2026'", "%Y-%m-%d"],
    ),
    "a thirteenth month": (
        with_table("interactions", "o.csv", HEADER, [*ORDERS, ("x", "0100", "2026-13-01")]),
        ["row 73"],
    ),
    "day or month": (
        with_table("interactions", "o.csv", HEADER, [(user, item, "03/04/2026") for user, item, _ in ORDERS]),
        ["'03/04/2026'", "two formats", "2026-01-31"],
    ),
    "lost zeros": (
        with_table("interactions", "o.csv", HEADER, [(user, item.lstrip("0"), day) for user, item, day in ORDERS]),
        ["leading zeros", "100", "0100", "as text"],
    ),
    "other ids": (
        with_table("interactions", "o.csv", HEADER, [("a", "B7", "2026-01-01")]),
        ["no item is in the table", "B7"],
    ),
    "duplicate article": (edited("items", "0101,", "0100,", 1), ["article_id 0100", "rows 1 and 2"]),
    "no article id": (with_table("items", "a.csv", ["key", "title"], [("0100", "x")]), ["a.csv", "--id-column"]),
    "no text column": (
        lambda options, folder: replace(
            with_table("items", "a.csv", ["item", "price"], [("0100", 1)])(options, folder), photos=None
        ),
        ["no column of texts", "--text-columns"],
    ),
    "text column that is not there": (options_of(text_columns=("story",)), ["--text-columns story", "prod_name"]),
    "all texts empty": (
        with_table("items", "a.csv", ["item", "title"], [(item, "") for item in shop.ITEMS]),
        ["all texts are empty"],
    ),
    "neither items nor photos": (options_of(items=None, photos=None), ["neither --items nor --photos"]),
    "no folder of photos": (options_of(photos=Path("nowhere")), ["nowhere", "no such folder"]),
    "folder without photos": (
        change("photos", to=lambda folder: (folder / "e").mkdir() or folder / "e"),
        ["no photo in it"],
    ),
    "photos of other names": (
        change("photos", to=lambda folder: shop.write_photos(folder / "p", ["alpha", "beta"])),
        ["no photo of an item is there", "0100"],
    ),
    "two photos of one item": (
        lambda options, folder: (Image.new("RGB", (9, 9)).save(options.photos / "0100.webp"), options)[1],
        ["both photos of 0100"],
    ),
    "all photos broken": (
        lambda options, folder: ([file.write_text("x") for file in options.photos.rglob("0*.*")], options)[1],
        ["none of the", "photos can be encoded"],
    ),
    "unknown split": (options_of(split="monthly"), ["--split monthly", "leave-one-out"]),
    "dates missing": (options_of(split="date"), ["--valid-from and --test-from"]),
    "dates for another split": (options_of(split="random", valid_from="2026-01-01"), ["--split date alone"]),
    "dates the wrong way round": (
        options_of(split="date", valid_from="2026-01-02", test_from="2026-01-01"),
        ["--valid-from 2026-01-02", "not before"],
    ),
    "no date": (options_of(split="date", valid_from="soon", test_from="2026-01-01"), ["--valid-from", "'soon'"]),
    "no times": (
        with_table("interactions", "o.csv", ["user", "item"], [row[:2] for row in ORDERS]),
        None,
    ),
    "times needed": (
        lambda options, folder: replace(
            with_table("interactions", "o.csv", ["user", "item"], [row[:2] for row in ORDERS])(options, folder),
            split="chronological",
        ),
        ["--split chronological needs a column of times"],
    ),
    "unknown part": (
        with_table("interactions", "o.csv", ["user", "item", "split"], [(*row[:2], "holdout") for row in ORDERS]),
        ["row 1", "'holdout'", "train, valid or test"],
    ),
    "too high a core": (options_of(k_core=50), ["--k-core 50", "nothing is left"]),
    "no core": (options_of(k_core=0), ["--k-core 0"]),
    "no ratings": (options_of(min_rating=3.0), ["ratings", "--rating-column"]),
    "a word for a rating": (options_of(min_rating=3.0, rating_column="customer_id"), ["row 1", "'user a'", "a number"]),
    "empty split": (
        options_of(split="date", valid_from="2030-01-01", test_from="2031-01-01"),
        ["the valid split is empty"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_before_anything_is_encoded(tmp_path, options, encoders, case):
    spoil, expected = REFUSED[case]
    spoiled = spoil(options, tmp_path)
    if expected is None:
        build(tmp_path, spoiled)
        return
    with pytest.raises(UserError) as error:
        build(tmp_path, spoiled)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in expected), message
    assert not (tmp_path / "out/catalog.json").exists() and not encoders.texts


def test_a_catalog_that_is_there_is_not_replaced(tmp_path, options, encoders):
    build(tmp_path, options)
    encoders.photos.clear()
    with pytest.raises(UserError, match="holds a catalog already"):
        build(tmp_path, options)
    assert not encoders.photos


def test_a_damaged_cache_is_named(tmp_path, options):
    build(tmp_path, options)
    for file in (tmp_path / "out/encoded").glob("visual-*"):
        file.write_bytes(b"damaged" * 1000)
    with pytest.raises(UserError, match=r"visual-.*sqlite: cannot be used .* remove it"):
        build(tmp_path, options, overwrite=True)
