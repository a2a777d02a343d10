"""Verbs before a training run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from uatmc_dist.cli.common import Overrides, app, console
from uatmc_dist.errors import UserError


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
    from uatmc_dist.search_space import read_space

    loaded = load_config(config, overrides or [])
    ranges = read_space(space or tuning.default_space(loaded))
    folder = study or tuning.study_folder(loaded)
    say = lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False)  # noqa: E731
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
    backbone: Annotated[str, typer.Option(help="model.backbone: vbpr, vbpr_own_users or mmgcn.")] = "vbpr",
    user: Annotated[str, typer.Option(help="model.user: row, history or both.")] = "row",
    clean_objective: Annotated[str, typer.Option(help="clean.objective.")] = "sampled",
    objective: Annotated[str, typer.Option(help="adversarial.objective.")] = "full_catalog",
    adversary: Annotated[str, typer.Option(help="adversarial.adversary.")] = "uat_mc",
    at: Annotated[str, typer.Option(help="adversarial.at: projected or encoder.")] = "projected",
    score_precision: Annotated[str, typer.Option(help="Numbers of the score passes: fp32 or bf16.")] = "fp32",
    projected_precision: Annotated[str, typer.Option(help="Numbers of projected features: fp32 or bf16.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")] = False,
) -> None:
    """Memory by rank, tables, step time and its bottleneck, before a run is started; no GPU is needed."""
    import json

    from uatmc_dist.parallel import planner
    from uatmc_dist.parallel.problem import Problem
    from uatmc_dist.tables.plan import print_plan

    problem = Problem(
        users=users,
        items=items,
        interactions=20 * users if interactions is None else interactions,
        visual_dim=visual_dim,
        text_dim=text_dim,
        backbone=backbone,  # type: ignore[arg-type]
        user=user,  # type: ignore[arg-type]
        embedding_dim=embedding_dim,
        batch_size=batch,
        objective=objective,  # type: ignore[arg-type]  # names are checked by the planner, which says them in one line
        adversary=adversary,  # type: ignore[arg-type]
        at=at,  # type: ignore[arg-type]
        score_precision=score_precision,  # type: ignore[arg-type]
        projected_precision=projected_precision,  # type: ignore[arg-type]
    )
    made = planner.plan(problem, devices, nodes, device, clean_objective)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(made.to_json(), indent=2, allow_nan=False))
        return
    print_plan(console, made)
    for line in made.verdict():
        console.print(line, highlight=False, soft_wrap=True)


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
    if cuda and (of_gpu := checks.gpu_problems()):
        raise UserError("; ".join(of_gpu))
    console.print("all well")
