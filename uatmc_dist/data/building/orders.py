"""The interactions of a catalog: which count, and which are training, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uatmc_dist.data import splits
from uatmc_dist.data.building.articles import Articles
from uatmc_dist.data.building.options import DEFAULT_CORE, ITEM, RATING, SPLIT, TIME, USER, BuildOptions
from uatmc_dist.data.catalog import SPLITS, Interactions
from uatmc_dist.data.source import Source, numbers, parse_date, timestamps
from uatmc_dist.errors import UserError

_SPLIT_NAMES = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}


@dataclass
class Orders:
    """Parallel arrays, one entry an interaction; users and items by index."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    labels: np.ndarray
    """Index into SPLITS; zero until there is a split."""
    notes: dict[str, int] = field(default_factory=dict)

    def keep(self, mask: np.ndarray, note: str) -> None:
        """Leaves the others out, and counts them."""
        if not mask.all():
            self.notes[note] = int((~mask).sum())
        for name in ("users", "items", "times", "labels"):
            setattr(self, name, getattr(self, name)[mask])


def read_interactions(
    options: BuildOptions, source: Source, articles: Articles, say: Callable[[str], None]
) -> tuple[Interactions, list[str], np.ndarray, dict[str, int | str], dict[str, int]]:
    """(interactions, source ids of the users, indices of the kept items, how it was done, counts worth telling)."""
    orders, user_names, rule = _read_orders(options, source, articles, say)
    orders.keep(_first_of_pairs(orders, len(articles.ids)), "repeated_interactions")
    # A split that was given is not to be thinned out, unless it is asked for.
    k = options.k_core or (1 if rule == "column" else DEFAULT_CORE)
    in_core = splits.k_core(orders.users, orders.items, k)
    if not in_core.any():
        raise UserError(
            f"{source.path}: nothing is left with --k-core {k} (users and items with fewer interactions are left out, "
            "again and again); take a smaller one"
        )
    orders.keep(in_core, "interactions_outside_the_core")
    if rule != "column":
        orders.labels = _split(options, rule, orders.users, orders.times)
    warm = np.isin(orders.users, orders.users[orders.labels == 0])
    orders.keep(warm, "cold_start_interactions_dropped")
    for part, name in enumerate(SPLITS):
        if not (orders.labels == part).any():
            raise UserError(f"{source.path}: the {name} split is empty with --split {rule}; choose another split")
    user_ids, users = np.unique(orders.users, return_inverse=True)
    item_ids, items = np.unique(orders.items, return_inverse=True)
    if len(item_ids) < len(articles.ids):
        orders.notes["items_without_interactions_dropped"] = len(articles.ids) - len(item_ids)
    order = np.lexsort((orders.times, users))
    interactions = Interactions(users[order], items[order], orders.times[order], orders.labels[order])
    how: dict[str, int | str] = {"split": _described(options, rule), "k_core": k}
    if options.min_rating is not None:
        how["min_rating"] = f"{options.min_rating:g}"
    return interactions, user_names.take(pa.array(user_ids)).to_pylist(), item_ids, how, orders.notes


def _described(options: BuildOptions, rule: splits.SplitRule) -> str:
    if rule == "random":
        return f"random, seed {options.seed}"
    return f"date, valid from {options.valid_from}, test from {options.test_from}" if rule == "date" else rule


def _read_orders(
    options: BuildOptions, source: Source, articles: Articles, say: Callable[[str], None]
) -> tuple[Orders, pa.Array, splits.SplitRule]:
    """(interactions with known items and good ratings, names of the users, how to split)."""
    user_column = source.column(options.user_column, USER, "users", "--user-column")
    item_column = source.column(options.item_column, ITEM, "items", "--item-column")
    time_column = source.optional_column(options.time_column, TIME, "--time-column")
    rule, split_column = _rule(options, source, time_column)
    told = [f"users: {user_column}", f"items: {item_column}", f"times: {time_column or 'none'}", f"split: {rule}"]
    say(f"{source.path}: {', '.join(told)}")
    item_text, user_names = source.ids(item_column), pc.dictionary_encode(source.ids(user_column))
    index = pc.index_in(item_text, articles.ids)
    zeros = np.zeros(len(source), dtype=np.int64)
    orders = Orders(
        user_names.indices.to_numpy().astype(np.int64),
        pc.fill_null(index, 0).to_numpy().astype(np.int64),
        zeros if time_column is None else timestamps(source, time_column),
        zeros.astype(np.int8) if split_column is None else _labels(source, split_column),
    )
    known = index.is_valid().to_numpy(zero_copy_only=False)
    if not known.any():
        raise UserError(_no_common_id(source.path, item_text, articles.ids))
    if options.min_rating is not None:
        rating_column = source.column(options.rating_column, RATING, "ratings", "--rating-column")
        good = numbers(source, rating_column) >= options.min_rating
        orders.keep(good, "interactions_below_min_rating")
        known = known[good]
    orders.keep(known, "interactions_of_unknown_items")
    return orders, user_names.dictionary, rule


def _rule(options: BuildOptions, source: Source, time_column: str | None) -> tuple[splits.SplitRule, str | None]:
    """(how to split, the column that says it if one does)."""
    split_column = source.optional_column(options.split_column, SPLIT, "--split-column")
    rule = options.split
    if rule is None and split_column is not None:
        rule = "column"
    rule = rule or ("chronological" if time_column is not None else "random")
    if rule in ("chronological", "leave-one-out", "date") and time_column is None:
        raise UserError(
            f"{source.path}: --split {rule} needs a column of times (found: {', '.join(source.columns)}); name it with "
            "--time-column, or take --split random"
        )
    if rule == "column" and split_column is None:
        raise UserError(f"{source.path}: --split column: no column for the split; name it with --split-column")
    return rule, split_column if rule == "column" else None


def _split(options: BuildOptions, rule: splits.SplitRule, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    if rule == "date":
        assert options.valid_from is not None and options.test_from is not None
        valid_from, test_from = (
            parse_date(text, option)
            for text, option in ((options.valid_from, "--valid-from"), (options.test_from, "--test-from"))
        )
        if valid_from >= test_from:
            raise UserError(f"--valid-from {options.valid_from}: not before --test-from {options.test_from}")
        return splits.by_date(times, valid_from, test_from)
    key = np.random.default_rng(options.seed).random(len(users)) if rule == "random" else times
    rank, degree = splits.ranks_within_users(users, key)
    return splits.leave_one_out(rank, degree) if rule == "leave-one-out" else splits.held_out_by_field(rank, degree)


def _labels(source: Source, column: str) -> np.ndarray:
    text = pc.utf8_lower(source.ids(column))
    known = {**_SPLIT_NAMES, **{str(part): part for part in range(len(SPLITS))}}
    index = pc.index_in(text, pa.array(list(known)))
    if index.null_count:
        row = int(np.argmax(index.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(
            f"{source.path}: row {row + 1}: {column} is {text[row].as_py()!r}; train, valid or test is needed"
        )
    return np.array(list(known.values()), dtype=np.int8)[index.to_numpy()]


def _first_of_pairs(orders: Orders, num_items: int) -> np.ndarray:
    """Mask of the first of each (user, item): of the earliest split where it is given, then the earliest."""
    order = np.lexsort((np.arange(len(orders.users)), orders.times, orders.labels))
    _, first = np.unique((orders.users * num_items + orders.items)[order], return_index=True)
    mask = np.zeros(len(order), dtype=bool)
    mask[order[first]] = True
    return mask


def _no_common_id(path: Path, item_text: pa.Array, ids: pa.Array) -> str:
    bought, there = item_text[0].as_py(), ids[0].as_py()
    example = f"here such as {bought}, there {there}"
    if bought.lstrip("0") in set(pc.utf8_ltrim(ids, "0").to_pylist()):
        return (
            f"{path}: ids lost their leading zeros here or in the table of items ({example}); write ids as text in both"
        )
    return f"{path}: no item is in the table of items ({example}); name the columns of ids: --item-column, --id-column"
