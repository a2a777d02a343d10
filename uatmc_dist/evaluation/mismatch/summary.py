"""A vector of figures in a few numbers."""

import numpy as np
import torch

BINS = np.linspace(-1, 1, 41)


def summary(values: torch.Tensor) -> dict[str, float | None]:
    """Mean, median, and the 10 % and 90 % quantiles; None of no values."""
    values = values.double()
    if not len(values):
        return dict.fromkeys(("mean", "10%", "median", "90%"))
    low, median, high = np.quantile(values.numpy(), [0.1, 0.5, 0.9]).tolist()
    return {"mean": float(values.mean()), "10%": low, "median": median, "90%": high}


def histogram(values: torch.Tensor, edges: np.ndarray) -> dict[str, list[float]]:
    counts, _ = np.histogram(values.double().clamp(edges[0], edges[-1]).numpy(), edges)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts.tolist()}
