"""Pages of the site that are made from what is there: the README as the first, the options from their definitions, the
API from docstrings. A hook of MkDocs (mkdocs.yml)."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from plotly.offline import get_plotlyjs

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "launch"))
from docs_plots import plots_page  # noqa: E402

_KERNELS = (
    "bpr_all_items",
    "bpr_all_items_hvp",
    "logsumexp_all_items",
    "coordinate",
    "perturb",
    "topk_all_items",
    "count_above",
)
_LIBRARY = {
    "Backbones": "uatmc_dist.models.backbone",
    "A trained model": "uatmc_dist.models.trained",
    "Catalogs": "uatmc_dist.data.catalog",
    "Budgets": "uatmc_dist.adversary.budget",
    "Defences": "uatmc_dist.adversary.defenses",
    "Attacks": "uatmc_dist.attacks.base",
    "Encoders of photos": "uatmc_dist.encoders.visual",
    "Full ranking": "uatmc_dist.evaluation.ranking",
    "Certificates": "uatmc_dist.evaluation.certificate",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, content in {
        "index.md": _first_page(),
        "configuration.md": _options(),
        "plots.md": plots_page(),
        "assets/plotly.js": get_plotlyjs(),
        "reference/kernels.md": "# Kernels\n\n" + "".join(f"::: uatmc_kernels.{op}.{op}\n\n" for op in _KERNELS),
        "reference/library.md": "# Models, attacks, catalogs\n\n"
        + "".join(
            f"## {title}\n\n::: {module}\n    options: {{heading_level: 3}}\n\n" for title, module in _LIBRARY.items()
        ),
    }.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links to files of the project that are not pages become their names; pictures in HTML are found from the page."""
    if not page.is_homepage:
        markdown = markdown.replace('"pictures/', '"../pictures/')
    return re.sub(r"\[([^\]]+)\]\(\s*(?:\.\./([^)]+)|(faults\.log))\)", r"\1 (`\2\3`)", markdown)


def _first_page() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:|docs/|#)([^)]+)\)", r"](../\1)", text)
    text = re.sub(r"\[docs/([\w-]+)\.md\]", r"[\1]", text)
    return text.replace("](docs/", "](").replace('"docs/pictures/', '"pictures/')


def _options() -> str:
    sys.path.insert(0, str(ROOT))  # MkDocs puts the path back after it has loaded this file
    from uatmc_dist.config import iterate_options

    lines = [
        "# Options",
        "",
        "Every option is a line of YAML and an override: `uatmc train default training.lr=3e-4`. Made from "
        "`uatmc_dist/config.py`.",
    ]
    section = None
    for key, kind, default, text in iterate_options():
        group = key.rpartition(".")[0] or "run"
        if group != section:
            section = group
            lines += ["", f"## {group}", "", "| option | type | default | what it is |", "| --- | --- | --- | --- |"]
        cells = (f"`{key}`", f"`{kind}`".replace(" | ", " or "), f"`{default}`", text)
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"
