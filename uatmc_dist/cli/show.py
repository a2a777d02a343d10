"""Verbs that show what was measured."""

from pathlib import Path
from typing import Annotated

import typer

from uatmc_dist.cli.common import app, console, tell_written
from uatmc_dist.errors import UserError


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs that were evaluated and attacked.")],
    epsilon: Annotated[float | None, typer.Option(help="Radius to show; the largest by default.")] = None,
) -> None:
    """One table of several runs and the baselines of their catalogs: accuracy beside attackability."""
    from uatmc_dist.evaluation.promotion import STRONGEST
    from uatmc_dist.runs import opened_run
    from uatmc_dist.tables.accuracy import print_runs
    from uatmc_dist.tables.attacks import print_any_content

    rows, evaluations, shown, first = {}, {}, epsilon, None
    replaced = {}
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
        bound = strongest[f"certified_hit@{k}"]
        evaluations[run] = accuracy
        replaced[run] = report.get("any_content", [])
        rows[run] = (
            f"{strongest[f'hit@{k}_before']:.4f}",
            *(f"{after[name][f'hit@{k}_after']:.4f}" if name in after else "-" for name in ("pgd", STRONGEST)),
            "none" if bound is None else f"{bound:.4f}",
        )
    title = f"accuracy, and hit@{k} of random targets before and after attacks, epsilon {shown:g}"
    print_runs(console, title, evaluations, rows)
    print_any_content(console, replaced, first["k"] if first else 0)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; the page shows what their files hold.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; report/index.html of the first run.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Print the page there, too; needs a browser.")] = None,
) -> None:
    """One self-contained page of one or several runs: what to do next, curves, attacks, certificate, trade-off."""
    from uatmc_dist.evaluation.report.page import write_page
    from uatmc_dist.evaluation.report.pdf import print_page

    page = write_page(runs, out or runs[0] / "report" / "index.html")
    tell_written(page)
    if pdf is not None:
        tell_written(print_page(page, pdf))
