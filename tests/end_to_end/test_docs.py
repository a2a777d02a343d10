"""README and docs as code: every command in them can be given as it stands, and what a shop would do runs."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from tests.conftest import ROOT, run_uatmc
from uatmc_dist.cli import app
from uatmc_dist.config import load_config
from uatmc_dist.data import synthetic_shop

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))),
]
_STARTS = ("uatmc ", "python ", "torchrun ", "launch/", "./launch/")
_PLACEHOLDERS = re.compile(r"[A-Z]{2,}|<|\.\.\.|…|\$")


def commands(page: str) -> list[str]:
    """Of the code blocks of a page, continued lines joined, comments left out; those with placeholders apart."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^((?: {4}.*\n)+)", text, flags=re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    given = [re.split(r"\s#\s|\s# ", line.strip())[0].strip() for line in lines]
    parts = [part.strip() for line in given for part in re.split(r"&&|;", line)]
    parts = [re.sub(r"^(\w+=\S+ |do )+", "", part) for part in parts]
    return [part for part in parts if part.startswith(_STARTS) and not _PLACEHOLDERS.search(part)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_given_as_it_stands(page):
    for command in commands(page):
        words = shlex.split(re.sub(r"\s*(\||>).*$", "", command))
        try:
            _check(words)
        except Exception as error:
            pytest.fail(f"{page}: {command}: {error}")


def _check(words: list[str]) -> None:
    if words[0] == "uatmc":
        return _check_verb(words[1:])
    if "uatmc_dist.cli" in words:
        return _check_verb(words[words.index("uatmc_dist.cli") + 1 :])
    if "train.py" in words:
        return _check_training(words[words.index("train.py") + 1 :])
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
        found = importlib.util.find_spec(words[2])
        assert found is not None and found.origin, f"no module {words[2]}"
        source = Path(found.origin).read_text(encoding="utf-8")
        shared = "".join((ROOT / "benchmarks" / name).read_text() for name in ("common.py", "kernels/harness.py"))
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert f'"{option}"' in source + shared, f"no option {option}"
        return None
    if words[0].removeprefix("./").startswith("launch/"):
        assert (ROOT / words[0]).exists(), f"no script {words[0]}"
    return None


def _check_verb(words: list[str]) -> None:
    if words and words[0] == "train":
        return _check_training(words[1:])
    command: click.Command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no verb {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("uatmc", list(words))
    overrides = [word for word in context.params.get("overrides") or () if "=" in word]
    load_config(Path("default"), overrides)
    return None


def _check_training(words: list[str]) -> None:
    words = [word for word in words if not word.startswith("--")]
    config = Path(words.pop(0)) if words and "=" not in words[0] else Path("quickstart")
    config = ROOT / config if config.suffix else config
    load_config(config, [word for word in words if word != "adversarial.epsilon=calibrated"])


def test_a_shop_does_what_the_readme_says(tmp_path):
    """The block "Your own shop", on a drawn shop; fewer epochs, targets and attacks, nothing else left out."""
    synthetic_shop.synthesize_shop(tmp_path, users=120, items=90, interactions=900, seed=0)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Your own shop\n\n((?: {4}.*\n)+)", text)
    small = {
        "train": "model.embedding_dim=8 clean.epochs=2 adversarial.epochs=1",
        "attack": "attack.num_targets=2 attack.seeds=[1] attack.attacks=[pgd,fgsm] attack.k=20",
        "attack-content": "content_attack.num_targets=1 content_attack.pixels=[4] content_attack.edits=[1] "
        "content_attack.formats=[png] content_attack.steps=2 attack.k=20",
        "certify": "attack.k=20",
    }
    for command in re.split(r"\n|&&", block):
        words = shlex.split(command, comments=True)
        if words and words[0] != "source":
            assert words.pop(0) == "uatmc"
            words += small.get(words[0], "").split()
            run_uatmc(*words, folder=tmp_path)
    assert (tmp_path / "runs/robust/export/MODEL_CARD.md").exists()
    assert (tmp_path / "runs/my-shop/report/index.html").exists()
