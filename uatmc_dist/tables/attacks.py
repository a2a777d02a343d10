"""The tables of attacks, certificates and gradients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uatmc_dist.evaluation.promotion import STRONGEST, find_result


def print_attacks(console: Console, run: Path, report: dict[str, Any]) -> None:
    k = report["k"]
    for stratum in report["targets"]:
        title = f"{run}: hit@{k} of {stratum} targets, {len(report['seeds'])} seeds, protocol {report['protocol']}"
        results = [*report["results"], *report["any_content"]]
        budgets = [*report["epsilons"], *([None] if report["any_content"] else [])]
        heads = ("any content" if epsilon is None else f"epsilon {epsilon:g}" for epsilon in budgets)
        table = Table("attack", *heads, title=title)
        of_stratum = [result for result in results if result["stratum"] == stratum]
        table.add_row("(before)", *[f"{of_stratum[0][f'hit@{k}_before']:.4f}"] * len(budgets))
        for name in dict.fromkeys(result["attack"] for result in of_stratum):
            after = {r["epsilon"]: r[f"hit@{k}_after"] for r in of_stratum if r["attack"] == name}
            table.add_row(name, *(f"{after[epsilon]:.4f}" for epsilon in budgets))
        bound = {result["epsilon"]: result[f"certified_hit@{k}"] for result in of_stratum}
        table.add_section()
        bounds = (bound[epsilon] for epsilon in budgets)
        table.add_row("certificate", *("none" if value is None else f"{value:.4f}" for value in bounds))
        console.print(table)
    _print_checks(console, report["checks"])


def _print_checks(console: Console, checks: Sequence[dict[str, Any]]) -> None:
    for check in checks:
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


def print_certificate(console: Console, run: Path, report: dict[str, Any], num_items: int) -> None:
    k = report["k"]
    before = report[f"hit@{k}_before"]
    title = f"{run}: certified hit@{k}, mean over {num_items:,} items (before: {before:.4f})"
    table = Table(title=title)
    table.add_column("norm, budget", no_wrap=True)
    for epsilon in dict.fromkeys(result["epsilon"] for result in report["results"]):
        table.add_column(f"epsilon {epsilon:g}", justify="right")
    results = report["results"]
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
    replaced = Table("replaced", f"certified hit@{k}", "strongest attack", title="any photo or text, whatever encoder")
    for result in report["any_content"]:
        attacked = result["strongest_attack"]
        found = "-" if attacked is None else f"{attacked[f'hit@{k}_after']:.4f}"
        replaced.add_row(" and ".join(result["modalities"]), f"{result[f'certified_hit@{k}']:.4f}", found)
    console.print(replaced)


def print_any_content(console: Console, results: Mapping[Path, Sequence[dict[str, Any]]], k: int) -> None:
    """Of each run: random targets whose rows are replaced by any others, after the strongest attack; no epsilon."""
    if not any(results.values()):
        return
    table = Table("run", "before", "after\nbest", "bound", title=f"hit@{k} with any photo and any text")
    for run, of_run in results.items():
        if of_run:
            found = find_result(of_run, STRONGEST, None)
            bound = found[f"certified_hit@{k}"]
            hits = (f"{found[f'hit@{k}_{when}']:.4f}" for when in ("before", "after"))
            table.add_row(run.name, *hits, "none" if bound is None else f"{bound:.4f}")
    console.print(table)


def print_content_attacks(console: Console, run: Path, report: dict[str, Any]) -> None:
    """A row for each attack and size, a column for each file."""
    from uatmc_dist.content_attacks.suite import MODALITIES_OF
    from uatmc_dist.data.catalog import MODALITIES

    k, results = report["k"], report["results"]
    files = list(dict.fromkeys(result["file"] for result in results))
    shortened = {"as computed": "as\ncomputed", "best file": "best\nfile"}
    table = Table(title=f"{run}: hit@{k} of random targets after changed files, {report['options']['norm']}")
    for head in ("attack", "size", *(shortened.get(file, file) for file in files)):
        table.add_column(head)
    for attack, size in dict.fromkeys((result["attack"], result["size"]) for result in results):
        row = {r["file"]: r[f"hit@{k}_after"] for r in results if (r["attack"], r["size"]) == (attack, size)}
        cells = (f"{row[file]:.4f}" if file in row else "-" for file in files)
        table.add_row(attack, "-" if size is None else f"{size:g}", *cells)
    console.print(table)
    console.print("size: of pixels in 1/255, of words how many", highlight=False)
    for modalities, what in ((("visual",), "any photo"), (("text",), "any text"), (MODALITIES, "any photo and text")):
        found = next((result for result in results if MODALITIES_OF[result["attack"]] == modalities), None)
        if found is not None:
            before, best = (found[f"hit@{k}_{name}"] for name in ("before", "any_content"))
            bound = found[f"certified_hit@{k}_any_content"]
            line = f"before {before:.4f}; {what} at all {best:.4f}"
            console.print(line if bound is None else f"{line}, certificate {bound:.4f}", highlight=False)
    if report["without_content"]:
        console.print(f"{report['without_content']} targets lack what an attack changes", highlight=False)
    if risen := report["risen"]:
        most = risen[0]
        ranks = f"rank {most['median_rank_before']:.0f} to {most['median_rank_after']:.0f} for half of the anchors"
        console.print(f"rose most: {most['title']}, {ranks}", highlight=False, soft_wrap=True, markup=False)
        for when in ("before", "after"):
            if file := most.get(f"photo_{when}"):
                console.print(f"  its photo {when}: {run / file}", highlight=False, soft_wrap=True, markup=False)
    _print_checks(console, report["checks"])


def print_calibration(console: Console, run: Path, report: dict[str, Any]) -> None:
    k = report["k"]
    table = Table(title=f"{run}: what changed files are worth in feature space")
    for head in ("attack", "size", f"hit@{k}", "of any\ncontent", "moved, l2\n10 % to 90 %", "epsilon\nl2", "linf"):
        table.add_column(head)
    for entry in report["sizes"]:
        share, moved = entry["share_of_any_content"], entry["moved"]["l2"]
        table.add_row(
            entry["attack"],
            f"{entry['size']:g}",
            f"{entry[f'hit@{k}_after']:.4f}",
            "-" if share is None else f"{share:.0%}",
            f"{moved['10%']:.2f} to {moved['90%']:.2f}",
            *(f"{entry['epsilon'][norm]:.3f}" for norm in ("l2", "linf")),
        )
    console.print(table)
    console.print(f"epsilon: radius that covers {report['covered']:.0%} of the changes", highlight=False)
    if report["recommended"] is not None:
        options = " ".join(f"adversarial.{key}={value}" for key, value in report["recommended"]["options"].items())
        console.print(f"train with {options}: {report['recommended']['why']}", highlight=False, soft_wrap=True)
    _print_checks(console, report["checks"])


def print_mismatch(console: Console, run: Path, report: dict[str, Any]) -> None:
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
        ("residual of a single matrix", lambda stage: _number(stage["single_matrix_residual"])),
        ("cosine in user space, mean", lambda stage: _number(stage["user_cosine"]["mean"])),
        ("visual / textual shift of scores", lambda stage: _spread(stage["shift_ratio"])),
        ("visual / textual reach of a user", lambda stage: _spread(stage["reach_ratio"])),
    ):
        table.add_row(label, *(show(stage) for stage in stages))
    console.print(table)
    rises = Table(title="rise of the loss, over that of a separate step (uat)", pad_edge=False)  # 80 columns
    rises.add_column("step", no_wrap=True)
    for stage in ("before", "after"):
        for entry in report[stage]["strength"]:
            rises.add_column(f"{stage}\n{entry['epsilon']:g}", justify="right")
    entries = [entry["rise"] for stage in stages for entry in stage["strength"]]
    for name in entries[0]:
        rises.add_row(name, *(_number(rise[name] / rise["uat"] if rise["uat"] else None) for rise in entries))
    console.print(rises)


def _spread(values: dict[str, float | None] | None) -> str:
    return "-" if values is None else f"{_number(values['10%'])} to {_number(values['90%'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
