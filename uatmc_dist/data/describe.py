"""What `uatmc data describe` tells of a catalog."""

import hashlib
from dataclasses import dataclass

import numpy as np

from uatmc_dist.data.catalog import Catalog, FeatureFile

POPULARITY_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class FeatureSummary:
    width: int
    dtype: str
    encoder: str
    mean_norm: float
    """Mean L2 norm of a row."""
    min_norm: float
    max_norm: float
    duplicate_share: float
    """Share of rows that repeat an earlier row exactly."""
    zero_share: float
    """Share of all-zero rows."""


def describe_features(features: FeatureFile) -> FeatureSummary:
    """Streams over the blocks once; memory: 24 bytes a row."""
    norms, hashes = [], []
    for rows in features.blocks():
        norms.append(np.linalg.norm(rows.astype(np.float32), axis=1))
        hashes.append(
            np.frombuffer(b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows), "u8")
        )
    norm, digest = np.concatenate(norms), np.concatenate(hashes)
    return FeatureSummary(
        width=features.width,
        dtype=features.dtype.name,
        encoder=features.encoder,
        mean_norm=float(norm.mean()),
        min_norm=float(norm.min()),
        max_norm=float(norm.max()),
        duplicate_share=1.0 - len(np.unique(digest)) / len(digest),
        zero_share=float((norm == 0).mean()),
    )


def popularity_quantiles(catalog: Catalog) -> dict[float, float]:
    """Training interactions of an item, by quantile."""
    _, items = catalog.split("train")
    counts = np.bincount(items, minlength=catalog.num_items)
    return {share: float(np.quantile(counts, share)) for share in POPULARITY_QUANTILES}
