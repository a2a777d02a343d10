"""The trained model on disk (`model/` of a run): safetensors and the configuration; loads on one CPU.

model.safetensors    user [U, K] and history [N, K], or one of them (model.user), item [N, d], and dense.NAME of every
                     dense parameter
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from uatmc_dist.checksums import check_stamp
from uatmc_dist.config import Config, dump_config, load_config
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.data.histories import Bags
from uatmc_dist.errors import UserError
from uatmc_dist.models.backbone import backbone
from uatmc_dist.models.files import Pieces, write_pieces
from uatmc_dist.models.initial import initial_rows
from uatmc_dist.models.on_first import pieces_on_first, write_on_first
from uatmc_dist.models.projectors import project_items, start_from_content

FILE = "model.safetensors"
_CATALOG = "catalog"


def save_model(
    folder: Path, config: Config, catalog: str, tables: dict[str, torch.Tensor], dense: dict[str, torch.Tensor]
) -> None:
    """Collective: `catalog` is the digest of what it was trained on; `tables` holds each rank's rows of users and
    items, which the first rank writes piece by piece.

    Raises UserError on every rank where they cannot be written.
    """

    def write(pieces: Mapping[str, Pieces]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        named = {f"dense.{name}": weight for name, weight in dense.items()}
        write_pieces(folder / FILE, {**pieces, **named}, {_CATALOG: catalog})

    try:
        write_on_first({name: pieces_on_first(rows) for name, rows in tables.items()}, write)
    except OSError as error:
        raise UserError(
            f"{folder}: the model cannot be written ({error.strerror}); free space, and the same command goes on"
        ) from None


class ModelFile:
    """A saved model, read piece by piece: a rank takes only its own rows.

    Raises UserError for a run without a whole model.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "model" / FILE
        if not self.path.exists():
            raise UserError(f"{run}: no trained model here (model/{FILE} is missing); finish the training run first")
        try:
            self._file = safe_open(self.path, framework="pt")
            whole = check_stamp(self.path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.path}: truncated or damaged ({error}); train the run again") from None
        if not whole:
            raise UserError(f"{self.path}: damaged, its bytes are not those that were written; train the run again")
        self.config = load_config(run / "model" / "config.yaml")

    def rows(self, table: str, lo: int, hi: int) -> torch.Tensor:
        return self._file.get_slice(table)[lo:hi]

    def num_rows(self, table: str) -> int:
        return self._file.get_slice(table).get_shape()[0]

    def tables(self) -> dict[str, torch.Tensor]:
        """All of them, whole, by name."""
        names = backbone(self.config.model).tables(self.config, 0, 0)
        return {name: self.rows(name, 0, self.num_rows(name)) for name in names}

    def dense_weights(self) -> dict[str, torch.Tensor]:
        prefix = "dense."
        names = [key.removeprefix(prefix) for key in list(self._file.keys()) if key.startswith(prefix)]
        return {name: self._file.get_tensor(prefix + name) for name in names}

    def check_fits(self, catalog: Catalog) -> None:
        """UserError where the catalog is not the one that the model was trained on."""
        shapes = backbone(self.config.model).tables(self.config, catalog.num_users, catalog.num_items)
        for table, shape in shapes.items():
            if self.num_rows(table) != shape.rows:
                raise UserError(
                    f"{self.path}: {self.num_rows(table)} {shape.of}s, but the catalog {catalog.path} has "
                    f"{shape.rows}; give the catalog that the model was trained on"
                )
        if self.config.model.content:
            self._check_features(catalog)
        # A model of an earlier version does not say.
        if (self._file.metadata() or {}).get(_CATALOG, catalog.digest) != catalog.digest:
            raise UserError(
                f"{self.path}: was trained on another catalog than {catalog.path} is now; give that one, or train again"
            )

    def _check_features(self, catalog: Catalog) -> None:
        trained = [name for name in MODALITIES if f"dense.{name}.0.weight" in self._file.keys()]  # noqa: SIM118
        if trained != catalog.modalities:
            raise UserError(
                f"{self.path}: trained with {' and '.join(trained)}, but the catalog {catalog.path} has "
                f"{' and '.join(catalog.modalities) or 'neither'}; give the catalog that the model was trained on"
            )
        for modality in trained:
            width = self._file.get_slice(f"dense.{modality}.0.weight").get_shape()[1]
            if width != catalog.features[modality].width:
                raise UserError(
                    f"{self.path}: made for {modality} features of width {width}, but the catalog {catalog.path} "
                    f"has {catalog.features[modality].width}; give the catalog that the model was trained on"
                )


class TrainedModel:
    """A model in memory, whole, on one CPU; a backbone's own has more."""

    path: Path | None
    config: Config
    is_linear = True
    """Whether an item's embedding is linear in its projected rows, and nobody else's depends on them: then there are
    closed forms and a certificate."""
    dense: Any
    """None without content."""
    users_UK: torch.Tensor
    history_NK: torch.Tensor | None
    """Where users are their histories: what a bought item adds to a user."""

    @classmethod
    def load(cls, run: Path, catalog: Catalog, progress: Callable[[int, int], None] = lambda done, total: None) -> Any:
        """The final weights of a run; `progress(done, total)` is told of the items whose features are projected.

        Raises UserError for a run without a whole model, or of another catalog."""
        file = ModelFile(run)
        file.check_fits(catalog)
        kind = backbone(file.config.model)
        dense, weights = None, file.dense_weights()
        if weights:
            dense = kind.dense_module(file.config, catalog)
            dense.load_state_dict(weights)
        return kind.trained_model(file.config, catalog, file.tables(), dense, run, progress)

    @classmethod
    def initial(cls, config: Config, catalog: Catalog) -> Any:
        """The model with the seeded weights that training with this configuration starts from."""
        kind, dim = backbone(config.model), config.model.embedding_dim
        shapes = kind.tables(config, catalog.num_users, catalog.num_items)
        tables = {name: initial_rows(name, 0, t.rows, t.width, t.std, config.seed) for name, t in shapes.items()}
        dense: Any = kind.dense_module(config, catalog) if config.model.content else None
        if dense is not None:
            start_from_content(dense, config, catalog)
            if config.model.initial == "content" and "history" in tables:
                with torch.no_grad():
                    projected = project_items(dense, catalog, 0, catalog.num_items, torch.device("cpu"))
                    tables["history"][:, dim:] = dense.fuse(*projected)
        return kind.trained_model(config, catalog, tables, dense, None, lambda done, total: None)

    v_Nd: torch.Tensor
    """Projected rows; with content."""
    t_Nd: torch.Tensor

    def items(self) -> torch.Tensor:
        """Item embeddings [N, K]."""
        raise NotImplementedError

    def embed(self, v_Nd: torch.Tensor, t_Nd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all users [U, K] and of all items [N, K] with these projected rows; differentiable."""
        raise NotImplementedError

    def user_of_history(self, items_E: torch.Tensor) -> torch.Tensor:
        """Vector [K] of somebody who has bought these items, known to the training or not. Raises UserError for a
        model whose users are rows alone."""
        if self.history_NK is None:
            raise UserError(
                f"{self.path}: each user is a row of its own (model.user=row), so nobody new can be served; train with "
                "model.user=history"
            )
        return Bags.of(torch.zeros_like(items_E), items_E, 1).pooled(self.history_NK)[0].float()
