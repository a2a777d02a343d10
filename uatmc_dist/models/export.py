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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.models.files import Pieces, write_pieces
from uatmc_dist.models.on_first import write_on_first
from uatmc_dist.models.trained import TrainedModel
from uatmc_dist.whole_files import replacing

_CARD = "MODEL_CARD.md"
_PROJECTED = 10_000
"""More than this a browser cannot move."""


_LINEAR = {
    "user": "a row of its own, the pooled history (sum of his items' history rows / sqrt(count)), or their sum: see "
    "model.user in config",
    "item": "[identity | w_v v + w_t t + bias]; v, t: L2-normalised outputs of the projectors",
    "projector": "Linear, then ReLU and LayerNorm after each hidden layer; the last Linear has neither",
}
_OF_GRAPH = dict.fromkeys(("user", "item"), "of the last layer of the convolutions over the training graph")


@dataclass(frozen=True)
class Vectors:
    """What a model scores with: whole in one process, or piece by piece from the blocks of several ranks."""

    config: Config
    dense: dict[str, torch.Tensor]
    """By parameter name; nothing without content."""
    users: Pieces
    items: Pieces
    history: Pieces | None
    is_linear: bool = True
    """Whether an item's row is made of its own features (TrainedModel.is_linear)."""

    @classmethod
    def whole(cls, model: TrainedModel) -> "Vectors":
        dense = {} if model.dense is None else {name: p.detach() for name, p in model.dense.named_parameters()}
        history = None if model.history_NK is None else Pieces.of(model.history_NK)
        items = Pieces.of(model.items())
        return cls(model.config, dense, Pieces.of(model.users_UK), items, history, model.is_linear)


def export_model(model: Vectors, catalog: Catalog, folder: Path, model_card: str) -> list[Path]:
    """Writes the files and returns their paths. Collective where the model comes from several ranks. Raises UserError
    where they cannot be written."""
    embeddings, vectors, card = (folder / name for name in ("embeddings.safetensors", "items.parquet", _CARD))
    metadata = {
        "score": "dot product of a row of user and a row of item",
        **(_LINEAR if model.is_linear else _OF_GRAPH),
        "catalog": catalog.name,
        "config": json.dumps(model.config.model_dump(mode="json")),
    }

    def write_embeddings(pieces: Mapping[str, Pieces]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_pieces(embeddings, {**pieces, **_dense_tensors(model)}, metadata)

    def write_vectors(pieces: Mapping[str, Pieces]) -> None:
        _write_vectors(vectors, pieces["item"], catalog.titles()[0])
        card.write_text(model_card, encoding="utf-8")

    parts = {"user": model.users, "item": model.items}
    if model.history is not None:
        parts["history"] = model.history
    try:
        write_on_first(parts, write_embeddings)
        write_on_first({"item": model.items}, write_vectors)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); give another --out") from None
    return [embeddings, vectors, card]


def write_projector(model: Vectors, catalog: Catalog, folder: Path) -> Path:
    """Vectors of the most bought items for TensorBoard's embeddings projector, with source id, title and purchases.
    Returns its settings. Collective as export_model is; raises UserError where they cannot be written."""
    from torch.utils.tensorboard import SummaryWriter

    def write(pieces: Mapping[str, Pieces]) -> None:
        purchases_N = np.bincount(catalog.split("train")[1], minlength=catalog.num_items)
        chosen = np.argsort(-purchases_N, kind="stable")[:_PROJECTED]
        source_ids, titles = catalog.titles()
        # Tabs and line ends would break the projector's table.
        labels = [[source_ids[item], " ".join((titles[item] or "").split()), str(purchases_N[item])] for item in chosen]
        board = SummaryWriter(str(folder))
        vectors = _rows_of(pieces["item"], chosen)
        board.add_embedding(vectors, labels, metadata_header=["source id", "title", "purchases"], tag="items")
        board.close()

    try:
        write_on_first({"item": model.items}, write)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); free space") from None
    return folder / "projector_config.pbtxt"


def _rows_of(pieces: Pieces, ids_m: np.ndarray) -> torch.Tensor:
    rows_mX, start = torch.empty(len(ids_m), pieces.width), 0
    for piece in pieces.rows():
        inside_m = (ids_m >= start) & (ids_m < start + len(piece))
        rows_mX[torch.from_numpy(inside_m)] = piece[ids_m[inside_m] - start]
        start += len(piece)
    return rows_mX


def _dense_tensors(model: Vectors) -> dict[str, torch.Tensor]:
    """What makes an item's row of its features, under linear fusion; no single item's row can be made without it."""
    if not model.is_linear:
        return {}
    weights = model.dense
    fusion = {f"fusion.{name}": weights[name] for name in ("w_v", "w_t", "bias") if name in weights}
    projectors = {f"projector.{name}": w for name, w in weights.items() if name.startswith(MODALITIES)}
    return {**fusion, **projectors}


def _write_vectors(file: Path, items: Pieces, source_ids: list[str]) -> None:
    width, start = items.width, 0
    schema = pa.schema([("item", pa.int64()), ("source_id", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    with replacing(file) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for piece in items.rows():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(piece.float().numpy().ravel()), width)
            ids = pa.array(np.arange(start, start + len(piece)))
            names = pa.array(source_ids[start : start + len(piece)])
            writer.write_table(pa.table([ids, names, vectors], schema=schema))
            start += len(piece)
