"""The report page: one HTML file that needs no network, opens from a file, and works without a mouse."""

import base64
import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.comparison import TITLES
from uatmc_dist.evaluation.report import compared, content, figures
from uatmc_dist.evaluation.report.accuracy import accuracy
from uatmc_dist.evaluation.report.figures import Figure
from uatmc_dist.evaluation.report.findings import findings
from uatmc_dist.evaluation.report.sources import RunFiles


def write_page(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page of these runs. UserError where a folder is not a run, or the extra `report` is not installed."""
    try:
        from jinja2 import Environment, PackageLoader
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(f"uatmc report needs {error.name}; pip install -e .[report]") from None
    files = [RunFiles.read(run) for run in runs]
    environment = Environment(loader=PackageLoader("uatmc_dist.evaluation.report"), autoescape=True)
    environment.filters["json_in_script"] = _json_in_script
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    page = environment.get_template("page.html").render(
        runs=files,
        sections=_sections(files),
        compared=int(len(files) > 1 and any(run.attack or run.evaluation for run in files)),
        findings=findings(files),
        threats=_threats(files),
        galleries=[(run.name, content.gallery(run)) for run in files if run.content_attack],
        titles=TITLES,
        plotly=get_plotlyjs(),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    return out


def _threats(runs: Sequence[RunFiles]) -> list[tuple[list[str], dict[str, Any]]]:
    """What was attacked and how, once for the runs that share it: (their names, one's attack.json)."""
    found: list[tuple[list[str], dict[str, Any]]] = []
    for run in runs:
        if run.attack is None:
            continue
        for names, attack in found:
            if all(
                attack.get(key) == run.attack.get(key) for key in ("threat_model", "protocol", "seeds", "targets", "k")
            ):
                names.append(run.name)
                break
        else:
            found.append(([run.name], run.attack))
    return found


def _sections(runs: Sequence[RunFiles]) -> list[tuple[str, str, list[Figure]]]:
    """(id, heading, figures), without the empty ones. Of several runs the comparison comes first."""
    attacked = [run for run in runs if run.attack]
    certified = [run for run in runs if run.certificate]
    mismatched = [run for run in runs if run.mismatch]
    trade_off = [compared.trade_off(runs)] if attacked else []
    comparison = [("comparison", "Comparison", [compared.compared(runs), *trade_off])]
    sections = [
        *(comparison if len(runs) > 1 else []),
        (
            "attacks",
            "What attacks achieve, and what none can",
            [
                figures.hits_by_epsilon(run, stratum)
                for run in attacked
                # Several runs are compared by their random targets; the page of one run shows all strata.
                for stratum in (run.attack["targets"] if len(runs) == 1 else ["random"])  # type: ignore[index]
            ],
        ),
        *([("trade-off", "Robustness and accuracy", trade_off)] if len(runs) == 1 else []),
        ("accuracy", "Accuracy", [accuracy(runs)] if any(run.evaluation for run in runs) else []),
        (
            "files",
            "Changed photos and words",
            [
                figure
                for attack in ("pixels", "words", "both")
                for figure in [content.hits_by_size([run for run in runs if run.content_attack], attack)]
            ],
        ),
        ("items", "Items to watch", [figures.most_promotable(run) for run in certified]),
        (
            "mismatch",
            "How far apart the modalities are",
            [
                figure
                for run in mismatched
                for figure in (
                    figures.mismatch_histogram(
                        run,
                        "cosine of the two modalities' gradients",
                        "By item. 1: photo and text would be pushed for the same users; 0: unrelated.",
                        "cosine",
                    ),
                    figures.mismatch_histogram(
                        run,
                        "top contributors in common",
                        "Share of the ten users who contribute most to the visual gradient that are also among the "
                        "ten of the textual one.",
                        "contributors",
                        "overlap",
                    ),
                    figures.mismatch_histogram(
                        run,
                        "cosine in user space",
                        "By item: whether moving the photo and moving the text raise the item for the same users "
                        "(1), for unrelated ones (0), or one raises it where the other lowers it (-1).",
                        "user_cosine",
                    ),
                    figures.mismatch_strength(run),
                )
            ],
        ),
        ("training", "Training", [figures.training_curves(runs), figures.validation_curves(runs)]),
    ]
    shown = [(name, heading, [figure for figure in made if figure.rows]) for name, heading, made in sections]
    return [section for section in shown if section[2]]


def _json_in_script(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    from markupsafe import Markup

    text = (
        json.dumps(_finite(value), allow_nan=False)
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    return Markup(text)


def _finite(value: Any) -> Any:
    """NaN and Inf, which JSON does not know, become null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
