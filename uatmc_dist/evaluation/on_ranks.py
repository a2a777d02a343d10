"""Full ranking, attacks, certificates, mismatch and export under torchrun, or on a GPU: the trained model in row
blocks, as in training. No rank ever holds all users, items or features.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.certificate import check_certifiable
from uatmc_dist.evaluation.kept import KeptParts
from uatmc_dist.evaluation.mismatch import Measured
from uatmc_dist.evaluation.promotion import (
    attack_on,
    check_surrogate,
    possible_attacks,
    threat_model_of,
)
from uatmc_dist.evaluation.ranking import Progress
from uatmc_dist.evaluation.scenes import Bars, Cast
from uatmc_dist.evaluation.stage import GraphStage, LinearStage, Stage, lengths
from uatmc_dist.evaluation.sweep import Swept
from uatmc_dist.json_lines import add_line
from uatmc_dist.logs import peak_memory_bytes
from uatmc_dist.models.backbone import TrainingModel, backbone
from uatmc_dist.models.export import Vectors
from uatmc_dist.models.files import AT_ONCE, Pieces
from uatmc_dist.models.neighbourhood import OwnMMGCN
from uatmc_dist.models.on_first import pieces_on_first
from uatmc_dist.models.trained import ModelFile
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import World, any_rank
from uatmc_dist.parallel.traffic import TRAFFIC

_LOG = logging.getLogger("uatmc_dist")


def _unseen(done: int, total: int) -> None:
    """Progress that nobody sees."""


def in_blocks() -> bool:
    """Whether a verb takes the model in row blocks, each where its rank computes: under torchrun, and where there is a
    GPU, which one rank then has. Otherwise it is whole, on the CPU."""
    return "RANK" in os.environ or torch.cuda.is_available()


@contextmanager
def logged(run: Path, verb: str, world: World | None) -> Iterator[None]:
    """A line of the run's traffic.jsonl when the block has ended: seconds, what the first rank has received, and the
    most that a rank has held; a warning where it cannot be written. `world` None: not in blocks, and nothing is
    written. Collective."""
    TRAFFIC.take()
    begun = time.monotonic()
    yield
    if world is None:
        return
    seconds, received = time.monotonic() - begun, TRAFFIC.take()
    peak = any_rank(peak_memory_bytes(world.device))
    if world.is_first:
        line = {"verb": verb, "ranks": world.size, "seconds": round(seconds, 3), **received, "peak_memory_bytes": peak}
        try:
            add_line(run / "traffic.jsonl", line)
        except UserError as error:
            _LOG.warning(str(error))


def load_blocks(
    run: Path, config: Config, catalog: Catalog, world: World, progress: Progress = _unseen
) -> TrainingModel:
    """This rank's rows of a finished run's final weights. Collective.

    Raises UserError for a run without a whole model, or of another catalog."""
    file = ModelFile(run)
    file.check_fits(catalog)
    weights = file.dense_weights() or None
    # The phase whose projectors are frozen: features are projected once, block by block.
    phase: PhaseName = "adversarial" if config.model.content else "clean"
    known = KnownPositives.of_training(catalog)
    model = backbone(config.model).training_model(catalog, known, _exact(config), world, phase, weights, progress)
    for table in model.tables:
        table.local_weight.copy_(file.rows(table.name, table.block.lo, table.block.hi))
    return model


def initial_blocks(config: Config, catalog: Catalog, world: World) -> TrainingModel:
    """The seeded weights that training with this configuration starts from. Collective."""
    known = KnownPositives.of_training(catalog)
    return backbone(config.model).training_model(catalog, known, _exact(config), world, "adversarial", None, _unseen)


def _exact(config: Config) -> Config:
    """With frozen projectors, and everything in float32."""
    adversarial = config.adversarial.model_copy(update={"at": "projected", "projected_precision": "fp32"})
    engine = config.engine.model_copy(update={"precision": "fp32"})
    return config.model_copy(update={"adversarial": adversarial, "engine": engine})


def measured_blocks(model: TrainingModel, config: Config, catalog: Catalog, world: World) -> Measured:
    """What mismatch measures. Collective."""
    block, users, user_rows = _block(catalog, world), catalog.num_users, model.ranking().user_rows
    dense, is_linear = model.dense.requires_grad_(False) if config.model.content else None, _is_linear(config)
    if dense is None or not is_linear:
        return Measured(block, users, dense, is_linear, user_rows, model.view)
    linear: Any = model
    rows = linear.items.local_weight, *linear.content.movable(torch.arange(block.lo, block.hi))
    return Measured.of_linear_fusion(block, users, dense, user_rows, rows)


def measured_start(config: Config, catalog: Catalog, world: World) -> Measured:
    """The model that a run started from, for mismatch. Collective."""
    if config.start_from is None:
        return measured_blocks(initial_blocks(config, catalog, world), config, catalog, world)
    begun = ModelFile(config.start_from).config
    return measured_blocks(load_blocks(config.start_from, begun, catalog, world), begun, catalog, world)


def exported_blocks(model: TrainingModel, config: Config, catalog: Catalog) -> Vectors:
    """What is handed on. Collective."""
    ranking, of_users = model.ranking(), torch.arange(catalog.num_users).split(AT_ONCE)
    history = next((table.local_weight for table in model.tables if table.name == "history"), None)
    return Vectors(
        config,
        model.dense_weights(),
        Pieces(catalog.num_users, ranking.items_nK.shape[1], lambda: (ranking.user_rows(ids_B) for ids_B in of_users)),
        pieces_on_first(ranking.items_nK),
        None if history is None else pieces_on_first(history),
        _is_linear(config),
    )


def _block(catalog: Catalog, world: World) -> ItemBlock:
    return ItemBlock(catalog.num_items, world.rank, world.size)


def _is_linear(config: Config) -> bool:
    trained: Any = backbone(config.model).trained_model
    return trained.is_linear


def swept_on_ranks(model: TrainingModel, config: Config, catalog: Catalog, world: World) -> Swept:
    """What a certificate goes over. Collective. Raises UserError for a model without a certificate."""
    check_certifiable(config.model.content, _is_linear(config))
    ranking, block = model.ranking(), _block(catalog, world)
    items_nK, dense = ranking.items_nK, model.dense.requires_grad_(False)
    _, v_nd, t_nd = content_rows(model, torch.arange(block.lo, block.hi))
    return Swept(catalog.num_users, block, config.attack.k, ranking.user_rows, items_nK, v_nd, t_nd, dense)


def attack_on_ranks(
    model: Any,
    config: Config,
    catalog: Catalog,
    world: World,
    surrogate: tuple[Path, Any] | None,
    progress: Progress,
    kept: KeptParts,
) -> dict[str, Any]:
    """What attack.json holds (evaluation/promotion.py) of `load_blocks`; anchors are shared out over the ranks.
    Collective."""
    is_linear, attack = _is_linear(config), config.attack
    dense = model.dense if config.model.content else None
    attacks = possible_attacks(attack, dense, is_linear, surrogate is not None)
    stage: Stage
    if is_linear:
        stage = _linear_stage(model, None if surrogate is None else surrogate[1], attack.k, catalog, world)
    else:
        stage = GraphStage(OwnMMGCN.block(model), attack.k)
    made_on = None if surrogate is None else surrogate[0]
    threat_model = threat_model_of(attack, model.dense.modalities, model.dense.dim, is_linear, made_on)
    return attack_on(stage, catalog, attack, attacks, threat_model, progress, kept)


def _linear_stage(
    model: TrainingModel, surrogate: TrainingModel | None, k: int, catalog: Catalog, world: World
) -> LinearStage:
    ks, twin = lengths(k, catalog.num_items), None
    attacked = _cast(model, catalog, world, ks)
    if surrogate is not None:
        twin = _cast(surrogate, catalog, world, ks)
        everything = torch.arange(attacked.block.lo, attacked.block.hi)
        check_surrogate(attacked.content_rows(everything)[1:], twin.content_rows(everything)[1:])
    return LinearStage(attacked, twin, k)


def _cast(model: TrainingModel, catalog: Catalog, world: World, ks: tuple[int, ...]) -> Cast:
    ranking, block = model.ranking(), _block(catalog, world)
    bars = Bars.ranked(ranking.user_rows, catalog.num_users, ranking.items_nK, ks)
    return Cast(block, ranking.user_rows, bars, partial(content_rows, model), model.dense)


def content_rows(model: Any, ids_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """identity, v and t of these items of this rank, where the model is."""
    ids_n, place_m = ids_m.unique(return_inverse=True)  # ascending, as the model wants them
    of_items = model.items.local_weight
    identity_nd = of_items[ids_n.to(of_items.device) - model.items.block.lo]
    identity_md, v_md, t_md = (
        rows_nd.detach()[place_m.to(rows_nd.device)] for rows_nd in (identity_nd, *model.content.projected(ids_n))
    )
    return identity_md, v_md, t_md
