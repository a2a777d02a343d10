"""The embedded default: a planted-taste catalog of any size.

Each item has a latent [shared | visual-only | textual-only]. The shared part comes from its cluster, the
other two are its own, so that the modalities can disagree about an item. Photos show shared + visual-only,
texts show shared + textual-only, each mixed with a style that no user cares about. A user prefers a few
clusters and, among a cluster's items (drawn by a long-tailed popularity), those that fit a taste in both
single-modality parts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uatmc_dist.data.catalog import Interactions
from uatmc_dist.data.catalog_writer import CatalogWriter, block_rows
from uatmc_dist.data.splits import held_out_by_field
from uatmc_dist.errors import UserError

_SHARED, _SINGLE, _STYLE = 16, 8, 8
_ITEMS_PER_CLUSTER = 12  # small clusters: few buyers an item, so that content says more than co-purchases
_CLUSTERS_PER_USER = 5
_CLUSTERS_MET = 32
_CANDIDATES = 6
_MIN_DEGREE = 5
_CHUNK = 1 << 16
_ENCODER = "planted-taste"


def synthesize(
    out: Path,
    *,
    users: int = 3000,
    items: int = 2000,
    interactions: int = 24000,
    visual_dim: int = 256,
    text_dim: int = 128,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a planted-taste catalog. Memory grows with (users + items) x 32, not with interactions or features.

    `progress(done, total)` is told of the users whose interactions are drawn and of the feature rows written.
    Raises UserError where the sizes cannot be met.
    """
    for name, value in (("visual-dim", visual_dim), ("text-dim", text_dim)):
        if value < 1:
            raise UserError(f"--{name} {value}: at least 1 is needed")
    check_sizes(users, items, interactions)
    writer = CatalogWriter(out, out.name, users, items, overwrite)
    planted = Planted.draw(users, items, seed)

    total = users + 2 * items
    for block in planted.interactions(interactions):
        writer.interactions(block)
        progress(int(block.users[-1]) + 1, total)
    for index, (modality, width, single) in enumerate(
        (("visual", visual_dim, planted.visual_only), ("text", text_dim, planted.text_only))
    ):
        mixing = np.random.default_rng((seed, 1, index)).standard_normal(
            (_SHARED + _SINGLE + _STYLE, width), dtype=np.float32
        ) / np.sqrt(_SHARED + _SINGLE + _STYLE, dtype=np.float32)
        dtype = np.dtype(np.float16)
        with writer.features(modality, width, dtype, _ENCODER, modality) as feature_writer:
            for start in range(0, items, block_rows(width, dtype)):
                rows = slice(start, min(items, start + block_rows(width, dtype)))
                noise = np.random.default_rng((seed, 2, index, start))
                count = rows.stop - rows.start
                style = noise.standard_normal((count, _STYLE), dtype=np.float32)
                latent = np.concatenate([planted.shared(rows), single[rows], style], axis=1)
                feature_writer.write(latent @ mixing + 0.3 * noise.standard_normal((count, width), dtype=np.float32))
                progress(users + index * items + rows.stop, total)
    ids = [str(item) for item in range(items)]
    writer.finish(ids, [f"item {item} of cluster {planted.cluster_of[item]}" for item in range(items)], {})


@dataclass
class Planted:
    """Latents of items, and the generator that goes on to draw users and what they buy; float32."""

    users: int
    items: int
    cluster_of: np.ndarray
    centres: np.ndarray
    visual_only: np.ndarray
    text_only: np.ndarray
    _rng: np.random.Generator

    @classmethod
    def draw(cls, users: int, items: int, seed: int) -> "Planted":
        rng = np.random.default_rng(np.random.SeedSequence((seed, 0)))
        num_clusters = max(2, items // _ITEMS_PER_CLUSTER)
        cluster_of = np.sort(rng.integers(num_clusters, size=items))
        centres = rng.standard_normal((num_clusters, _SHARED), dtype=np.float32)
        visual_only = rng.standard_normal((items, _SINGLE), dtype=np.float32)
        text_only = rng.standard_normal((items, _SINGLE), dtype=np.float32)
        return cls(users, items, cluster_of, centres, visual_only, text_only, rng)

    def shared(self, items: int | slice) -> np.ndarray:
        """What both modalities say of an item, [16] or [n, 16]."""
        return self.centres[self.cluster_of[items]]

    def interactions(self, number: int) -> Iterator[Interactions]:
        """Block by block of users; once."""
        given = self.cluster_of, self.centres, self.visual_only, self.text_only
        return _draw_interactions(self._rng, self.users, self.items, number, *given)


def check_sizes(users: int, items: int, interactions: int) -> None:
    """UserError where they cannot be met."""
    for name, value in (("users", users), ("items", items)):
        if value < 1:
            raise UserError(f"--{name} {value}: at least 1 is needed")
    if interactions < _MIN_DEGREE * users:
        raise UserError(f"--interactions {interactions}: at least {_MIN_DEGREE * users} for {users} users (5 each)")
    if interactions > users * items // 4:
        raise UserError(
            f"--interactions {interactions}: at most a quarter of users x items ({users * items // 4}); "
            "raise --users or --items"
        )


def _draw_interactions(
    rng: np.random.Generator,
    users: int,
    items: int,
    interactions: int,
    cluster_of: np.ndarray,
    centres: np.ndarray,
    visual_only: np.ndarray,
    text_only: np.ndarray,
) -> Iterator[Interactions]:
    """Block by block of users."""
    popularity = rng.permutation((np.arange(items) + 5.0) ** -1.0)
    cumulative = np.concatenate([[0.0], popularity.cumsum()])
    first = np.searchsorted(cluster_of, np.arange(len(centres) + 1))
    filled = np.flatnonzero(np.diff(first))
    taste = rng.standard_normal((users, _SHARED + 2 * _SINGLE), dtype=np.float32)
    favourites = np.concatenate(
        [
            _favourite_clusters(rng, taste[start : start + _CHUNK, :_SHARED], centres, filled)
            for start in range(0, users, _CHUNK)
        ]
    )
    taste = taste[:, _SHARED:]

    degree = _degrees(rng, users, items, interactions)
    for start in range(0, users, _CHUNK):
        block = slice(start, min(start + _CHUNK, users))
        pairs = np.empty(0, dtype=np.int64)
        for attempt in range(50):
            missing = degree[block] - np.bincount(pairs // items, minlength=block.stop - start)
            wanting = np.repeat(np.arange(block.stop - start), missing)
            if not len(wanting):
                break
            # A user whose favourite clusters are used up goes on in the whole catalog.
            found = [
                _choose(
                    rng,
                    wanting[first_pair : first_pair + _CHUNK],
                    favourites[block],
                    taste[block],
                    first,
                    cumulative,
                    visual_only,
                    text_only,
                    anywhere=attempt >= 8,
                )
                for first_pair in range(0, len(wanting), _CHUNK)
            ]
            pairs = np.unique(np.concatenate([pairs, wanting * items + np.concatenate(found)]))
        pairs = rng.permutation(pairs)
        pairs = pairs[np.argsort(pairs // items, kind="stable")]
        user_of = pairs // items
        drawn = np.bincount(user_of, minlength=block.stop - start)
        rank = np.arange(len(pairs)) - np.repeat(drawn.cumsum() - drawn, drawn)
        yield Interactions(user_of + start, pairs % items, 86400 * rank, held_out_by_field(rank, drawn[user_of]))


def _favourite_clusters(
    rng: np.random.Generator, taste: np.ndarray, centres: np.ndarray, filled: np.ndarray
) -> np.ndarray:
    """Of some clusters that each user comes across, those whose content is closest to the user's taste."""
    met = filled[rng.integers(len(filled), size=(len(taste), _CLUSTERS_MET))]
    fit = np.einsum("ud,ucd->uc", taste, centres[met])
    best = np.argsort(-fit, axis=1)[:, :_CLUSTERS_PER_USER]
    return np.take_along_axis(met, best, axis=1)


def _degrees(rng: np.random.Generator, users: int, items: int, interactions: int) -> np.ndarray:
    """Long-tailed numbers of interactions, at least five a user, that add up."""
    extra = rng.lognormal(0.0, 1.0, size=users)
    share = np.floor(extra / extra.sum() * (interactions - _MIN_DEGREE * users)).astype(np.int64)
    degree = np.minimum(_MIN_DEGREE + share, max(items // 2, 1))
    while (rest := interactions - int(degree.sum())) > 0:
        open_users = np.flatnonzero(degree < items)
        degree[rng.permutation(open_users)[:rest]] += 1
    return degree


def _choose(
    rng: np.random.Generator,
    wanting: np.ndarray,
    favourites: np.ndarray,
    taste: np.ndarray,
    first: np.ndarray,
    cumulative: np.ndarray,
    visual_only: np.ndarray,
    text_only: np.ndarray,
    anywhere: bool,
) -> np.ndarray:
    """One item for each wanting user: a few candidates by popularity, the one that fits the taste best."""
    cluster = favourites[wanting, rng.integers(_CLUSTERS_PER_USER, size=len(wanting))]
    lo, hi = first[cluster], first[cluster + 1]
    if anywhere:
        lo, hi = np.zeros_like(lo), np.full_like(hi, len(cumulative) - 1)
    mass = (
        cumulative[lo][:, None] + rng.random((len(wanting), _CANDIDATES)) * (cumulative[hi] - cumulative[lo])[:, None]
    )
    candidates = np.clip(np.searchsorted(cumulative, mass, side="right") - 1, lo[:, None], hi[:, None] - 1)
    fit = np.einsum("ud,ucd->uc", taste[wanting, :_SINGLE], visual_only[candidates])
    fit += np.einsum("ud,ucd->uc", taste[wanting, _SINGLE:], text_only[candidates])
    fit += rng.gumbel(scale=2.0, size=fit.shape)
    return candidates[np.arange(len(wanting)), fit.argmax(axis=1)]
