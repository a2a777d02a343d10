"""A trained model for other programs: one safetensors file of all that scores, and the item vectors as Parquet.

embeddings.safetensors    user [U, K], item [N, K] (score = <user, item>), fusion.{w_v, w_t, bias} and the projectors'
                          weights by layer (projector.visual.0.weight, ...), of a modality that the catalog has; the
                          header's metadata say how they belong together. Where users are their histories also
                          history [N, K]: somebody new is the sum of
                          his items' rows over the square root of their number
items.parquet             item int64, source_id string, vector fixed_size_list<float>[K]: what a vector index ingests
MODEL_CARD.md             what it is, what was measured, its limits, and ten lines that load it
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.models.files import write_safetensors
from uatmc_dist.models.trained import TrainedModel

_CARD = "MODEL_CARD.md"
_ROW_GROUP = 1 << 16
_PROJECTED = 10_000
"""More than this a browser cannot move."""


def export_model(model: TrainedModel, catalog: Catalog, folder: Path, model_card: str) -> list[Path]:
    """Writes the files and returns their paths. Raises UserError where they cannot be written."""
    items_NK = model.items()
    embeddings, vectors, card = (folder / name for name in ("embeddings.safetensors", "items.parquet", _CARD))
    tensors = {"user": model.users_UK, "item": items_NK, **_dense_tensors(model)}
    if model.history_NK is not None:
        tensors["history"] = model.history_NK
    metadata = {
        "score": "dot product of a row of user and a row of item",
        "user": "a row of its own, the pooled history (sum of his items' history rows / sqrt(count)), or their sum: "
        + model.config.model.user,
        "item": "[identity | w_v v + w_t t + bias]; v, t: L2-normalised outputs of the projectors",
        "projector": "Linear, then ReLU and LayerNorm after each hidden layer; the last Linear has neither",
        "catalog": catalog.name,
        "config": json.dumps(model.config.model_dump(mode="json")),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(embeddings, tensors, metadata)
        _write_vectors(vectors, items_NK.numpy(), catalog.titles()[0])
        card.write_text(model_card, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); give another --out") from None
    return [embeddings, vectors, card]


def write_projector(model: TrainedModel, catalog: Catalog, folder: Path) -> Path:
    """Vectors of the most bought items for TensorBoard's embeddings projector, with source id, title and purchases.
    Returns its settings; raises UserError where they cannot be written."""
    from torch.utils.tensorboard import SummaryWriter

    purchases_N = np.bincount(catalog.split("train")[1], minlength=catalog.num_items)
    chosen = np.argsort(-purchases_N, kind="stable")[:_PROJECTED]
    source_ids, titles = catalog.titles()
    # Tabs and line ends would break the projector's table.
    labels = [[source_ids[item], " ".join((titles[item] or "").split()), str(purchases_N[item])] for item in chosen]
    try:
        board = SummaryWriter(str(folder))
        board.add_embedding(
            model.items()[chosen], labels, metadata_header=["source id", "title", "purchases"], tag="items"
        )
        board.close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); free space") from None
    return folder / "projector_config.pbtxt"


def _dense_tensors(model: TrainedModel) -> dict[str, torch.Tensor]:
    if model.dense is None:
        return {}
    weights = {name: weight.detach() for name, weight in model.dense.named_parameters()}
    fusion = {f"fusion.{name}": weights[name] for name in ("w_v", "w_t", "bias") if name in weights}
    projectors = {f"projector.{name}": w for name, w in weights.items() if name.startswith(MODALITIES)}
    return {**fusion, **projectors}


def _write_vectors(file: Path, items_NK: np.ndarray, source_ids: list[str]) -> None:
    width = items_NK.shape[1]
    schema = pa.schema([("item", pa.int64()), ("source_id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    unfinished = file.with_name(f".{file.name}")
    with pq.ParquetWriter(unfinished, schema) as writer:
        for start in range(0, len(items_NK), _ROW_GROUP):
            rows = items_NK[start : start + _ROW_GROUP]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width)
            ids = pa.array(np.arange(start, start + len(rows)))
            names = pa.array(source_ids[start : start + len(rows)])
            writer.write_table(pa.table([ids, names, vectors], schema=schema))
    unfinished.replace(file)
