"""Verbs that measure a trained model."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from uatmc_dist.cli.common import (
    Overrides,
    RunPath,
    app,
    console,
    exit_where_failed,
    opened,
    opened_in_blocks,
    tell_written,
)
from uatmc_dist.errors import UserError
from uatmc_dist.progress import shown


@app.command()
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    lists: Annotated[Path | None, typer.Option(help="Write every user's 50 best items there, too (Parquet).")] = None,
) -> None:
    """Full ranking of a trained model beside the baselines, training items masked; writes evaluation.json, and can be
    resumed.

    Under torchrun (torchrun ... -m uatmc_dist.cli evaluate RUN) no rank holds the whole model."""
    from uatmc_dist.evaluation import comparison, on_ranks
    from uatmc_dist.evaluation.beyond import BeyondAccuracy
    from uatmc_dist.evaluation.kept import KeptLists
    from uatmc_dist.evaluation.ranking import RankedUsers, rank_catalog, rank_model, write_lists
    from uatmc_dist.parallel.item_parallel import ItemBlock
    from uatmc_dist.tables import accuracy

    if split not in ("valid", "test"):
        raise UserError(f"--split {split}: valid or test is needed")
    world, is_first = None, True
    if on_ranks.in_blocks():
        world, folder, config, catalog, blocks = opened_in_blocks(run, overrides)
        is_first = world.is_first
        block = ItemBlock(catalog.num_items, world.rank, world.size)
        ranked_by = lambda *given: rank_catalog(blocks.ranking(), block, *given)  # noqa: E731
    else:
        folder, config, catalog, model = opened(run, overrides)
        ranked_by = partial(rank_model, model)
    ranked: list[RankedUsers] = []
    beyond = BeyondAccuracy(catalog, split)

    def on_ranked(users: RankedUsers) -> None:
        beyond.add(users)
        if lists is not None:
            ranked.append(users)

    kept = KeptLists.of_run(run, catalog, split, is_first)
    with shown("users", is_first) as progress, on_ranks.logged(run, "evaluate", world):
        metrics = ranked_by(catalog, split, config.evaluation.users_per_batch, progress, on_ranked, kept)
    if not is_first:
        return
    if lists is not None:
        write_lists(lists, ranked)
        tell_written(lists)
    figures = {**metrics, **beyond.metrics()}
    baselines = comparison.Baselines(catalog, shown)
    if config.is_bpr_mf:
        baselines.record_bpr_mf(split, figures, run)
    metric = config.evaluation.metric
    compared = baselines.compare(metric, split, metrics[metric], run, comparison.EVALUATE_WITHIN_S)
    path = folder.write_json("evaluation.json", comparison.to_json(catalog, figures, compared))
    kept.drop()
    accuracy.print_accuracy(console, run, figures, compared)
    accuracy.print_beside_baselines(console, run, figures, compared)
    tell_written(path)


@app.command()
def attack(
    run: RunPath,
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a check of the attacks fails.")] = False,
) -> None:
    """Promotion attacks on a trained model, and checks of the attacks themselves; writes attack.json, and can be
    resumed.

    Under torchrun (torchrun ... -m uatmc_dist.cli attack RUN) no rank holds the whole model."""
    from uatmc_dist.evaluation import on_ranks
    from uatmc_dist.evaluation.kept import KeptParts
    from uatmc_dist.evaluation.promotion import attack_model
    from uatmc_dist.models.trained import ModelFile, TrainedModel
    from uatmc_dist.tables.attacks import print_attacks

    world, is_first = None, True
    if on_ranks.in_blocks():
        world, folder, config, catalog, blocks = opened_in_blocks(run, overrides)
        is_first, dense = world.is_first, blocks.dense if config.model.content else None
        load = lambda path: on_ranks.load_blocks(path, ModelFile(path).config, catalog, world)  # noqa: E731
        surrogate = _surrogate(config, load, is_first)
        measured = partial(on_ranks.attack_on_ranks, blocks, config, catalog, world, surrogate)
    else:
        folder, config, catalog, model = opened(run, overrides)
        dense, surrogate = model.dense, _surrogate(config, lambda path: TrainedModel.load(path, catalog))
        twin = None if surrogate is None else surrogate[1]
        measured = partial(attack_model, model, catalog, config.attack, twin)
    if is_first and dense is not None:
        _tell_left_out(config.attack.attacks, dense.modalities)
    made_on, options = None if surrogate is None else surrogate[0], config.attack.model_dump(mode="json")
    kept = KeptParts.of_run(run, "attack", catalog, options, made_on, is_first)
    with shown("scenes", is_first) as progress, on_ranks.logged(run, "attack", world):
        report = measured(progress, kept)
    if not is_first:
        return
    path = folder.write_json("attack.json", report)
    kept.drop()
    print_attacks(console, run, report)
    tell_written(path)
    exit_where_failed(report, strict)


def _tell_left_out(names: list[str], modalities: Sequence[str]) -> None:
    from uatmc_dist.attacks.suite import OF_TWO_MODALITIES

    left_out = [name for name in names if name in OF_TWO_MODALITIES]
    if left_out and len(modalities) < 2:
        why = f"the model has {modalities[0]} features alone"
        console.print(f"{', '.join(left_out)}: left out, {why}", highlight=False, soft_wrap=True)


def _surrogate(config: Any, load: Callable[[Path], Any], is_first: bool = True) -> tuple[Path, Any] | None:
    """The undefended model of the transfer attack and its run: the one that was asked for, else the one that training
    started from where it is still there."""
    if "transfer" not in config.attack.attacks:
        return None
    if config.attack.surrogate is not None:
        return config.attack.surrogate, load(config.attack.surrogate)
    try:
        if config.start_from is not None:
            return config.start_from, load(config.start_from)
        why = "the run has no start_from"
    except UserError as error:
        why = str(error)
    if is_first:
        console.print(f"transfer is left out, give attack.surrogate=RUN for it: {why}", highlight=False, soft_wrap=True)
    return None


@app.command()
def certify(run: RunPath, overrides: Overrides = None) -> None:
    """Upper bound on what ANY attack within the budget can do; writes certificate.json and certificate.parquet, and can
    be resumed.

    Under torchrun (torchrun ... -m uatmc_dist.cli certify RUN) no rank holds the whole model."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from uatmc_dist.evaluation import on_ranks
    from uatmc_dist.evaluation.certificate import certify as certified
    from uatmc_dist.evaluation.certificate import certify_swept
    from uatmc_dist.evaluation.kept import KeptSweep
    from uatmc_dist.tables.attacks import print_certificate

    world, is_first = None, True
    if on_ranks.in_blocks():
        world, folder, config, catalog, blocks = opened_in_blocks(run, overrides)
        is_first = world.is_first
        swept = partial(on_ranks.swept_on_ranks, blocks, config, catalog, world)
        measured = lambda *given: certify_swept(swept(), *given)  # noqa: E731
    else:
        folder, config, catalog, model = opened(run, overrides)
        measured = partial(certified, model)
    attacks, kept = folder.read_json("attack.json"), KeptSweep.of_run(run, catalog, config.attack)
    with shown("blocks of users", is_first) as progress, on_ranks.logged(run, "certify", world):
        found = measured(catalog, config.attack, attacks, progress, kept)
    if not is_first:
        return
    folder.write("certificate.parquet", lambda unfinished: pq.write_table(pa.table(found.columns), unfinished))
    path = folder.write_json("certificate.json", found.report)
    kept.drop()
    print_certificate(console, run, found.report, catalog.num_items)
    tell_written(path)


@app.command()
def mismatch(run: RunPath, overrides: Overrides = None) -> None:
    """How far apart the two modalities' gradients are, before and after training; writes mismatch.json, and can be
    resumed.

    Under torchrun (torchrun ... -m uatmc_dist.cli mismatch RUN) no rank holds the whole model."""
    from uatmc_dist.evaluation import on_ranks
    from uatmc_dist.evaluation.kept import KeptParts
    from uatmc_dist.evaluation.mismatch import Measured, measure_mismatch
    from uatmc_dist.tables.attacks import print_mismatch

    world, is_first = None, True
    if on_ranks.in_blocks():
        world, folder, config, catalog, blocks = opened_in_blocks(run, overrides)
        is_first = world.is_first
        model = partial(on_ranks.measured_blocks, blocks, config, catalog, world)
        start = partial(on_ranks.measured_start, config, catalog, world)
    else:
        folder, config, catalog, trained = opened(run, overrides)
        model = partial(Measured.whole, trained)
        start = partial(Measured.whole_start, config, catalog)
    options = config.model_dump(mode="json")
    kept = KeptParts.of_run(run, "mismatch", catalog, options, config.start_from, is_first)
    with shown("figures", is_first) as progress, on_ranks.logged(run, "mismatch", world):
        report = measure_mismatch(config, catalog, model(), start, progress, kept)
    if not is_first:
        return
    path = folder.write_json("mismatch.json", report)
    kept.drop()
    print_mismatch(console, run, report)
    tell_written(path)
