"""What `uatmc data build` is told, and which names of columns it knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from uatmc_dist.data import splits
from uatmc_dist.errors import UserError

USER = ("userid", "user", "customerid", "customer", "reviewerid", "clientid", "visitorid", "buyerid")
ITEM = ("itemid", "item", "articleid", "article", "asin", "parentasin", "productid", "product", "sku", "id")
TIME = ("timestamp", "time", "tdat", "date", "datetime", "eventtime", "orderdate", "createdat", "unixreviewtime")
RATING = ("rating", "stars", "overall", "score")
SPLIT = ("split", "xlabel")
TITLE = ("title", "name", "prodname", "productname", "itemname", "itemtitle", "movietitle")
SOURCE_ID = ("sourceid",)
PHOTO = ("photo", "photopath", "image", "imagepath", "imagefile", "imagefilename", "picture", "img")
WHOLE_TEXT = ("text",)
TEXTS = (
    *TITLE,
    *("brand", "category", "categories", "producttype", "producttypename", "colour", "color", "colourgroupname"),
    *("department", "departmentname", "section", "sectionname", "features", "description", "detaildesc"),
)
DEFAULT_CORE = 5


@dataclass(frozen=True)
class BuildOptions:
    """Columns are guessed where they are None."""

    interactions: Path
    items: Path | None = None
    photos: Path | None = None
    name: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    rating_column: str | None = None
    min_rating: float | None = None
    id_column: str | None = None
    title_column: str | None = None
    text_columns: Sequence[str] = ()
    photo_column: str | None = None
    k_core: int | None = None
    """DEFAULT_CORE where None, and 1 where the split is given."""
    split: splits.SplitRule | None = None
    """chronological where there are timestamps, else random."""
    split_column: str | None = None
    valid_from: str | None = None
    test_from: str | None = None
    seed: int = 0
    visual_encoder: str = "efficientnet-lite0"
    text_encoder: str = "all-MiniLM-L6-v2"
    device: str = "auto"
    cache: Path | None = None
    """Of what was encoded; encoded/ of the catalog where None."""

    @property
    def photo_root(self) -> Path:
        """Where the paths of photos begin: --photos, else the folder of --items."""
        if self.photos is not None:
            return self.photos
        assert self.items is not None
        return self.items.parent


def check_options(options: BuildOptions) -> None:
    if options.split is not None and options.split not in get_args(splits.SplitRule):
        raise UserError(f"--split {options.split}: one of {', '.join(get_args(splits.SplitRule))} is needed")
    if options.k_core is not None and options.k_core < 1:
        raise UserError(f"--k-core {options.k_core}: at least 1 is needed, which leaves nothing out")
    if options.split == "date" and (options.valid_from is None or options.test_from is None):
        raise UserError("--split date: give --valid-from and --test-from, as 2026-01-31")
    if options.split != "date" and (options.valid_from or options.test_from):
        raise UserError("--valid-from, --test-from: for --split date alone")
