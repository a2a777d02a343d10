"""`uatmc`: thin calls into the rooms, and the tables that a person reads."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from uatmc_dist import command
from uatmc_dist.errors import UserError
from uatmc_dist.progress import shown

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(help="Make and look at catalogs.", no_args_is_help=True)
app.add_typer(data, name="data")
console = Console()

Overrides = Annotated[list[str] | None, typer.Argument(help="option=value of the run's configuration.")]
RunPath = Annotated[Path, typer.Argument(help="Folder of a finished run.")]


@data.command("import-mmrec")
def import_mmrec(
    source: Annotated[Path, typer.Argument(help="Folder with NAME.inter, image_feat.npy and text_feat.npy.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new catalog.")],
    visual_encoder: Annotated[str, typer.Option(help="What made image_feat.npy.")] = "unknown",
    text_encoder: Annotated[str, typer.Option(help="What made text_feat.npy.")] = "unknown",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a catalog that is there.")] = False,
) -> None:
    """Imports a data set in the MMRec convention."""
    from uatmc_dist.data import mmrec

    notes = mmrec.import_mmrec(source, out, {"visual": visual_encoder, "text": text_encoder}, overwrite)
    console.print(
        f"{notes['duplicated_interactions_dropped']} duplicated interactions kept once; "
        f"{notes['cold_start_interactions_dropped']} valid/test interactions of "
        f"{notes['cold_start_users']} cold-start users left out",
        highlight=False,
    )
    _tell_catalog(out)


@data.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder of the new catalog.")],
    users: Annotated[int, typer.Option(help="Number of users.")] = 3000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 2000,
    interactions: Annotated[int, typer.Option(help="Number of interactions, at least 5 a user.")] = 24000,
    visual_dim: Annotated[int, typer.Option(help="Width of the visual features.")] = 256,
    text_dim: Annotated[int, typer.Option(help="Width of the textual features.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same catalog.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a catalog that is there.")] = False,
) -> None:
    """Makes a planted-taste catalog: clusters drive photos, texts and behaviour."""
    from uatmc_dist.data import synthetic

    with shown("rows") as progress:
        synthetic.synthesize(
            out,
            users=users,
            items=items,
            interactions=interactions,
            visual_dim=visual_dim,
            text_dim=text_dim,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    _tell_catalog(out)


@data.command()
def describe(path: Annotated[Path, typer.Argument(help="Folder of a catalog.")]) -> None:
    """Counts, density, popularity, and what the features look like."""
    from uatmc_dist.data.catalog import Catalog
    from uatmc_dist.data.describe import describe_features, popularity_quantiles

    catalog = Catalog(path)
    counts = catalog.meta["num_interactions"]
    total = sum(counts.values())
    table = Table(title=f"{catalog.name} ({path})", show_header=False)
    for name, value in (
        ("users", f"{catalog.num_users:,}"),
        ("items", f"{catalog.num_items:,}"),
        ("interactions", f"{total:,}"),
        *((f"  {split}", f"{count:,}") for split, count in counts.items()),
        ("density", f"{total / (catalog.num_users * catalog.num_items):.6f}"),
        *((key.replace("_", " "), f"{value:,}") for key, value in catalog.meta["notes"].items()),
    ):
        table.add_row(name, value)
    console.print(table)
    quantiles = popularity_quantiles(catalog)
    table = Table(*(f"{share:.0%}" for share in quantiles), title="training interactions of an item, by quantile")
    table.add_row(*(f"{value:g}" for value in quantiles.values()))
    console.print(table)
    summaries = {name: describe_features(features) for name, features in catalog.features.items()}
    table = Table("features", *summaries)
    for title, show in (
        ("width", lambda summary: str(summary.width)),
        ("dtype", lambda summary: summary.dtype),
        ("encoder", lambda summary: summary.encoder),
        ("mean norm", lambda summary: f"{summary.mean_norm:.4f}"),
        ("smallest norm", lambda summary: f"{summary.min_norm:.4f}"),
        ("largest norm", lambda summary: f"{summary.max_norm:.4f}"),
        ("duplicates", lambda summary: f"{summary.duplicate_share:.2%}"),
        ("all-zero", lambda summary: f"{summary.zero_share:.2%}"),
    ):
        table.add_row(title, *(show(summary) for summary in summaries.values()))
    console.print(table)


@app.command()
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    lists: Annotated[Path | None, typer.Option(help="Write every user's 50 best items there, too (Parquet).")] = None,
) -> None:
    """Full ranking of a trained model beside the baselines, training items masked; writes evaluation.json."""
    from uatmc_dist import tables
    from uatmc_dist.evaluation import comparison
    from uatmc_dist.evaluation.beyond import BeyondAccuracy
    from uatmc_dist.evaluation.ranking import RankedUsers, rank_model, write_lists

    if split not in ("valid", "test"):
        raise UserError(f"--split {split}: valid or test is needed")
    folder, config, catalog, model = _opened(run, overrides)
    ranked: list[RankedUsers] = []
    beyond = BeyondAccuracy(catalog, split)

    def on_ranked(users: RankedUsers) -> None:
        beyond.add(users)
        if lists is not None:
            ranked.append(users)

    with shown("users") as progress:
        metrics = rank_model(model, catalog, split, config.evaluation.users_per_batch, progress, on_ranked)
    if lists is not None:
        write_lists(lists, ranked)
        _tell_written(lists)
    figures = {**metrics, **beyond.metrics()}
    baselines = comparison.Baselines(catalog, shown)
    if model.config.is_bpr_mf:
        baselines.record_bpr_mf(split, figures, run)
    metric = config.evaluation.metric
    compared = baselines.compare(metric, split, metrics[metric], run, comparison.EVALUATE_WITHIN_S)
    path = folder.write_json("evaluation.json", comparison.to_json(catalog, figures, compared))
    tables.print_accuracy(console, run, figures, compared)
    tables.print_beside_baselines(console, run, figures, compared)
    _tell_written(path)


@app.command()
def attack(
    run: RunPath,
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a check of the attacks fails.")] = False,
) -> None:
    """Promotion attacks on a trained model, and checks of the attacks themselves; writes attack.json."""
    from uatmc_dist.evaluation.promotion import attack_model

    folder, config, catalog, model = _opened(run, overrides)
    surrogate = None
    if "transfer" in config.attack.attacks:
        surrogate = _surrogate(config, catalog)
    with shown("scenes") as progress:
        report = attack_model(model, catalog, config.attack, surrogate, progress)
    path = folder.write_json("attack.json", report)
    _print_attacks(run, report)
    _tell_written(path)
    if strict and any(check["passed"] is False for check in report["checks"]):
        raise typer.Exit(1)


def _surrogate(config: Any, catalog: Any) -> Any:
    """The undefended model of the transfer attack: the one that was asked for, else the one that training started from
    where it is still there."""
    from uatmc_dist.models.trained import TrainedModel

    if config.attack.surrogate is not None:
        return TrainedModel.load(config.attack.surrogate, catalog)
    try:
        if config.start_from is not None:
            return TrainedModel.load(config.start_from, catalog)
        why = "the run has no start_from"
    except UserError as error:
        why = str(error)
    console.print(f"transfer is left out, give attack.surrogate=RUN for it: {why}", highlight=False, soft_wrap=True)
    return None


def _print_attacks(run: Path, report: dict[str, Any]) -> None:
    k = report["k"]
    for stratum in report["targets"]:
        title = f"{run}: hit@{k} of {stratum} targets, {len(report['seeds'])} seeds, protocol {report['protocol']}"
        table = Table("attack", *(f"epsilon {epsilon:g}" for epsilon in report["epsilons"]), title=title)
        of_stratum = [result for result in report["results"] if result["stratum"] == stratum]
        table.add_row("(before)", *[f"{of_stratum[0][f'hit@{k}_before']:.4f}"] * len(report["epsilons"]))
        for name in dict.fromkeys(result["attack"] for result in of_stratum):
            after = {r["epsilon"]: r[f"hit@{k}_after"] for r in of_stratum if r["attack"] == name}
            table.add_row(name, *(f"{after[epsilon]:.4f}" for epsilon in report["epsilons"]))
        bound = {result["epsilon"]: result[f"certified_hit@{k}"] for result in of_stratum}
        table.add_section()
        table.add_row("certificate", *(f"{bound[epsilon]:.4f}" for epsilon in report["epsilons"]))
        console.print(table)
    for check in report["checks"]:
        name = check["check"].replace("_", " ")
        if check["passed"] is None:
            console.print(f"[yellow]-[/]       {name}: not tested by these attacks", highlight=False)
        elif check["passed"]:
            console.print(f"[green]ok[/]      {name} [dim]({_measured(check)})[/]", highlight=False)
        else:
            why = check["a_failure_means"]
            console.print(f"[red]FAILED  {name}: {why} ({_measured(check)})[/]", highlight=False)


def _measured(check: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in check["measured"].items()
        if not isinstance(value, list)
    )


@app.command()
def certify(run: RunPath, overrides: Overrides = None) -> None:
    """Upper bound on what ANY attack within the budget can do; writes certificate.json and certificate.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from uatmc_dist.evaluation.certificate import certify as certified

    folder, config, catalog, model = _opened(run, overrides)
    with shown("sweeps") as progress:
        found = certified(model, catalog, config.attack, folder.read_json("attack.json"), progress)
    pq.write_table(pa.table(found.columns), run / "certificate.parquet")
    path = folder.write_json("certificate.json", found.report)
    k = found.report["k"]
    before = found.report[f"hit@{k}_before"]
    title = f"{run}: certified hit@{k}, mean over {catalog.num_items:,} items (before: {before:.4f})"
    table = Table(title=title)
    table.add_column("norm, budget", no_wrap=True)
    for epsilon in config.attack.epsilons:
        table.add_column(f"epsilon {epsilon:g}", justify="right")
    results = found.report["results"]
    for norm, budget in dict.fromkeys((result["norm"], result["budget"]) for result in results):
        row = [result for result in results if (result["norm"], result["budget"]) == (norm, budget)]
        table.add_row(f"{norm}, {budget}", *(f"{result[f'certified_hit@{k}']:.4f}" for result in row))
        attacked = [result["strongest_attack"] for result in row]
        if any(attacked):
            for label, key in (
                ("  strongest attack", f"hit@{k}_after"),
                ("  bound for its targets", f"certified_hit@{k}"),
            ):
                table.add_row(label, *(f"{values[key]:.4f}" if values else "-" for values in attacked))
    console.print(table)
    _tell_written(path)


@app.command()
def mismatch(run: RunPath, overrides: Overrides = None) -> None:
    """How far apart the two modalities' gradients are, before and after training; writes mismatch.json."""
    from uatmc_dist.evaluation.mismatch import measure_mismatch

    folder, config, catalog, model = _opened(run, overrides)
    with shown("models") as progress:
        report = measure_mismatch(config, catalog, model, progress)
    path = folder.write_json("mismatch.json", report)
    table = Table(title=f"{run}: gradients of the two modalities; before is {report['before_is']}")
    for column in ("", "before", "after"):
        table.add_column(column, no_wrap=True)
    stages = report["before"], report["after"]
    for label, show in (
        ("cosine, mean", lambda stage: _number(stage["cosine"]["mean"])),
        (
            "cosine, 10 % to 90 %",
            lambda stage: f"{_number(stage['cosine']['10%'])} to {_number(stage['cosine']['90%'])}",
        ),
        ("top contributors in common", lambda stage: f"{stage['contributors']['overlap']['mean']:.0%}"),
        ("items without gradient", lambda stage: f"{stage['items_without_gradient']}"),
        *(
            (
                f"loss rise, coordinated / separate, {strength['epsilon']:g}",
                lambda stage, index=index: _number(stage["strength"][index]["coordinated_over_separate"]),
            )
            for index, strength in enumerate(report["after"]["strength"])
        ),
    ):
        table.add_row(label, *(show(stage) for stage in stages))
    console.print(table)
    _tell_written(path)


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; export/ of the run.")] = None,
) -> None:
    """The model for other programs: embeddings.safetensors, and items.parquet for any vector index."""
    from uatmc_dist.models.export import export_model

    _, _, catalog, model = _opened(run, None)
    for path in export_model(model, catalog, out or run / "export"):
        _tell_written(path)


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
    _, _, catalog, model = _opened(run, None)
    table = Table("", "item", "title", "score", title=f"for a history of {len(names)} items")
    for rank, found in enumerate(recommended(model, catalog, names, k), start=1):
        table.add_row(str(rank), found.source_id, found.title, f"{found.score:.4f}")
    console.print(table)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs that were evaluated and attacked.")],
    epsilon: Annotated[float | None, typer.Option(help="Radius to show; the largest by default.")] = None,
) -> None:
    """One table of several runs and the baselines of their catalogs: accuracy beside attackability."""
    from uatmc_dist import tables
    from uatmc_dist.evaluation.promotion import STRONGEST
    from uatmc_dist.runs import opened_run

    rows, evaluations, shown, first = {}, {}, epsilon, None
    for run in runs:
        folder = opened_run(run)
        accuracy, report = folder.read_json("evaluation.json"), folder.read_json("attack.json")
        for name, found in (("evaluation", accuracy), ("attack", report)):
            if found is None:
                verb = "evaluate" if name == "evaluation" else "attack"
                raise UserError(f"{run}: {name}.json is missing; run `uatmc {verb} {run}` first")
        assert accuracy is not None and report is not None
        shown = max(result["epsilon"] for result in report["results"]) if shown is None else shown
        k = report["k"]
        threat = report["threat_model"]
        measured = {"k": k, "norm": threat["norm"], "budget": threat.get("budget"), "split": accuracy["split"]}
        first = first or measured
        if measured != first:
            raise UserError(
                f"{run}: measured with {measured}, {runs[0]} with {first}; runs are compared under one protocol"
            )
        after = {
            result["attack"]: result
            for result in report["results"]
            if (result["stratum"], result["epsilon"]) == ("random", shown)
        }
        if STRONGEST not in after:
            raise UserError(f"{run}: attack.json has no epsilon {shown:g} of this version; `uatmc attack {run}` again")
        strongest = after[STRONGEST]
        evaluations[run] = accuracy
        rows[run] = (
            f"{strongest[f'hit@{k}_before']:.4f}",
            *(f"{after[name][f'hit@{k}_after']:.4f}" if name in after else "-" for name in ("pgd", STRONGEST)),
            f"{strongest[f'certified_hit@{k}']:.4f}",
        )
    title = f"accuracy, and hit@{k} of random targets before and after attacks, epsilon {shown:g}"
    tables.print_runs(console, title, evaluations, rows)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; the page shows what their files hold.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; report/index.html of the first run.")] = None,
) -> None:
    """One self-contained page of one or several runs: curves, attacks, certificate, trade-off."""
    from uatmc_dist.evaluation.report.page import write_page

    _tell_written(write_page(runs, out or runs[0] / "report" / "index.html"))


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="YAML configuration, see configs/.")],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, whoever makes them.")] = 20,
    space: Annotated[Path | None, typer.Option(help="Search space in YAML; a default one for the phase.")] = None,
    study: Annotated[Path | None, typer.Option(help="Folder of the study; NAME-tuning beside the run.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of each trial.")] = 1,
) -> None:
    """Searches options on the validation split, with Optuna; the same command goes on, also from several processes."""
    from uatmc_dist import tuning
    from uatmc_dist.config import load_config

    loaded = load_config(config, overrides or [])
    ranges = tuning.read_space(space or tuning.default_space(loaded))
    folder = study or tuning.study_folder(loaded)
    say = lambda line: console.print(line, highlight=False, soft_wrap=True)  # noqa: E731
    tuning.Tuning(config, tuple(overrides or ()), ranges, folder, ranks, say).run(trials)


@app.command()
def plan(
    users: Annotated[int, typer.Option(help="Number of users.")],
    items: Annotated[int, typer.Option(help="Number of items.")],
    interactions: Annotated[int | None, typer.Option(help="Training pairs; 20 a user where not given.")] = None,
    visual_dim: Annotated[int, typer.Option(help="Width of the visual features.")] = 4096,
    text_dim: Annotated[int, typer.Option(help="Width of the textual features.")] = 384,
    embedding_dim: Annotated[int, typer.Option(help="model.embedding_dim.")] = 64,
    batch: Annotated[int, typer.Option(help="training.batch_size, over all devices.")] = 2048,
    devices: Annotated[int, typer.Option(help="Devices in all; one rank each.")] = 1,
    nodes: Annotated[int | None, typer.Option(help="Nodes; as few as hold the devices where not given.")] = None,
    device: Annotated[str, typer.Option(help="h100, or cpu: this machine, measured now.")] = "h100",
    user: Annotated[str, typer.Option(help="model.user: row, history or both.")] = "row",
    clean_objective: Annotated[str, typer.Option(help="clean.objective.")] = "sampled",
    objective: Annotated[str, typer.Option(help="adversarial.objective.")] = "full_catalog",
    adversary: Annotated[str, typer.Option(help="adversarial.adversary.")] = "uat_mc",
    score_precision: Annotated[str, typer.Option(help="Numbers of the score passes: fp32 or bf16.")] = "fp32",
    projected_precision: Annotated[str, typer.Option(help="Numbers of projected features: fp32 or bf16.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Memory by rank, tables, step time and its bottleneck, before a run is started; no GPU is needed."""
    import json

    from uatmc_dist.parallel import planner
    from uatmc_dist.parallel.cost_model import Problem

    problem = Problem(
        users=users,
        items=items,
        interactions=20 * users if interactions is None else interactions,
        visual_dim=visual_dim,
        text_dim=text_dim,
        user=user,  # type: ignore[arg-type]
        embedding_dim=embedding_dim,
        batch_size=batch,
        objective=objective,  # type: ignore[arg-type]  # names are checked by the planner, which says them in one line
        adversary=adversary,  # type: ignore[arg-type]
        score_precision=score_precision,  # type: ignore[arg-type]
        projected_precision=projected_precision,  # type: ignore[arg-type]
    )
    made = planner.plan(problem, devices, nodes, device, clean_objective)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(made.to_json(), indent=2, allow_nan=False))
        return
    for table in (_memory_table(made), *(_step_table(made, phase) for phase in made.phases), _shards_table(made)):
        console.print(table)
    for line in made.verdict():
        console.print(line, highlight=False, soft_wrap=True)


def _memory_table(made: Any) -> Table:
    table = Table("component", "where", title=f"memory of a rank in GB, {made.devices} rank(s) on {made.nodes} node(s)")
    for phase in made.phases:
        table.add_column(f"{phase} phase", justify="right")
    of_phases = [{(c.place, c.name): c.bytes for c in phase.memory} for phase in made.phases.values()]
    places = "device", "host"
    for place in places:
        for key in dict.fromkeys(key for each in of_phases for key in each if key[0] == place):
            table.add_row(key[1], place, *(f"{each[key] / 1e9:.3f}" if key in each else "-" for each in of_phases))
        sums = (sum(size for key, size in each.items() if key[0] == place) for each in of_phases)
        table.add_row("[bold]sum[/]", place, *(f"[bold]{size / 1e9:.3f}[/]" for size in sums), end_section=True)
    return table


def _step_table(made: Any, phase: str) -> Table:
    step = made.phases[phase].step
    table = Table("term", "counts", title=f"a step of the {phase} phase")
    for column in ("ms", "share"):
        table.add_column(column, justify="right")
    table.add_column("limit")
    whole = sum(term.seconds for term in step.terms)
    for term in step.terms:
        counts = ", ".join(f"{amount:.3g} {name}" for name, amount in term.work.counts().items())
        share = f"{term.seconds / whole:.0%}" if whole else "-"
        table.add_row(term.name, counts or "-", f"{term.seconds * 1e3:.3f}", share, term.limit)
    return table


def _shards_table(made: Any) -> Table:
    table = Table("table", "rows x width", "sharding", "shards", title="tables by TorchRec's planner")
    for column in ("rows a shard", "GB a rank", "ms a step"):
        table.add_column(column, justify="right")
    for found in made.tables or ():
        table.add_row(
            found.name,
            f"{found.rows:,} x {found.width}",
            f"{found.sharding}, {found.kernel}",
            str(found.shards),
            f"{found.rows_per_shard:,}",
            f"{found.bytes_per_rank / 1e9:.3f}",
            f"{sum(found.milliseconds.values()):.3f}",
        )
    return table


@app.command()
def doctor() -> None:
    """Compares the installed packages with the versions that run together."""
    from uatmc_dist import doctor as checks

    cuda = checks.has_cuda_machine()
    findings = checks.examine(cuda)
    table = Table("package", "required", "found", "", title=f"{'CUDA' if cuda else 'CPU'} machine")
    for finding in findings:
        is_absent = finding.found == "-" and not finding.problem
        verdict = finding.problem or ("optional, not installed" if is_absent else "ok")
        table.add_row(finding.package, finding.required, finding.found, verdict)
    console.print(table)
    problems = [finding for finding in findings if finding.problem]
    if problem := checks.python_problem():
        raise UserError(problem)
    if problems:
        names = ", ".join(finding.package for finding in problems)
        raise UserError(f"{names}: not what runs together; {checks.mend(cuda)}")
    console.print("all well")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _opened(run: Path, overrides: list[str] | None) -> tuple[Any, Any, Any, Any]:
    """(folder, configuration, catalog, model) of a finished run."""
    from uatmc_dist.config import load_config
    from uatmc_dist.data.catalog import Catalog
    from uatmc_dist.models.trained import TrainedModel
    from uatmc_dist.runs import opened_run

    folder = opened_run(run)
    config = load_config(run / "config.yaml", overrides or ())
    catalog = Catalog(config.catalog)
    with shown("projected items") as progress:
        model = TrainedModel.load(run, catalog, progress)
    return folder, config, catalog, model


def _tell_catalog(path: Path) -> None:
    from uatmc_dist.data.catalog import Catalog

    catalog = Catalog(path)
    counts = ", ".join(f"{count:,} {split}" for split, count in catalog.meta["num_interactions"].items())
    console.print(
        f"{path}: {catalog.num_users:,} users, {catalog.num_items:,} items, {counts} interactions",
        highlight=False,
        soft_wrap=True,
    )


def _tell_written(path: Path) -> None:
    console.print(f"written: {path}", highlight=False, soft_wrap=True)


def main() -> None:
    command.run(app)
