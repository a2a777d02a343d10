"""Verbs that hand a trained model on."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from uatmc_dist.cli.common import RunPath, app, console, opened, opened_in_blocks, tell_written
from uatmc_dist.errors import UserError


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; export/ of the run.")] = None,
    projector: Annotated[
        bool, typer.Option("--projector", help="Item vectors for TensorBoard's projector, too: the most bought 10,000.")
    ] = False,
) -> None:
    """The model for other programs: embeddings.safetensors, items.parquet for any vector index, and MODEL_CARD.md.

    Under torchrun (torchrun ... -m uatmc_dist.cli export RUN) no rank holds the whole model."""
    from uatmc_dist.evaluation import on_ranks
    from uatmc_dist.evaluation.card import model_card
    from uatmc_dist.models.export import Vectors, export_model, write_projector

    world, is_first = None, True
    if on_ranks.in_blocks():
        world, folder, config, catalog, blocks = opened_in_blocks(run, None)
        is_first = world.is_first
        exported = partial(on_ranks.exported_blocks, blocks, config, catalog)
    else:
        folder, config, catalog, trained = opened(run, None)
        exported = partial(Vectors.whole, trained)
    board = run / "tensorboard"
    with on_ranks.logged(run, "export", world):
        model = exported()
        card = model_card(config, catalog.meta, folder.read_json, model.history is not None)
        written = export_model(model, catalog, out or run / "export", card)
        if projector:
            written.append(write_projector(model, catalog, board))
    if is_first:
        for path in written:
            tell_written(path)
        if projector:
            console.print("tensorboard --logdir", str(board), highlight=False, soft_wrap=True)


@app.command()
def recommend(
    run: RunPath,
    history: Annotated[str, typer.Option(help="Items that somebody has bought: ids of the source, with commas.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the list.")] = 20,
) -> None:
    """A list for a history, also of somebody whom training has not seen."""
    from uatmc_dist.evaluation.recommend import recommend as recommended

    names = [name.strip() for name in history.split(",") if name.strip()]
    if not names:
        raise UserError("--history: names no item; give ids of the source, as 108775015,108775044")
    _, _, catalog, model = opened(run, None)
    table = Table("", "item", "title", "score", title=f"for a history of {len(names)} items")
    for rank, found in enumerate(recommended(model, catalog, names, k), start=1):
        table.add_row(str(rank), escape(found.source_id), escape(found.title), f"{found.score:.4f}")
    console.print(table)
