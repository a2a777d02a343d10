"""README and docs as code: every command in them can be given as it stands, and runs."""

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import typer

from tests import nursery
from tests.conftest import ROOT, UATMC, environment
from tests.docs.workplace import SMALL, Workplace
from uatmc_dist.cli import app
from uatmc_dist.config import load_config

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


_LEFT_OUT = {
    "test.sh": "runs these tests",
    "pytest": "runs some of these tests",
    "docs.sh": "runs before these tests (.ci/run)",
    "quickstart.sh": "test_the_quickstart_runs",
    "peers": "needs a clone of MMRec",
    "cuda": "needs a GPU; the same without one is run",
    "kernels.run_all": "benchmarks.gpu --rehearse runs it",
    "trainer_step": "benchmarks.gpu --rehearse runs it",
    "doctor": "tests/end_to_end/test_cli.py",
}
"""What is not run here, by a word in it, and why."""
_GPU = "python -m benchmarks.gpu"  # with --rehearse it is run
_SLURM = "launch/slurm/submit.sh"
_OPTIONS = {
    "benchmarks.adversarial_step": "--pairs 32 --items 200 --dim 8 --repeats 1",
    "benchmarks.attack": "--sample 1 --repeats 1",
    "benchmarks.defence_cost": "--repeats 1",
    "benchmarks.defences": "--jobs 1",
    "benchmarks.graph_attack": "--targets 2 --repeats 1",
    "benchmarks.kernels": "--items 200 --users 32 --width 8 --seconds 0.01",
    "benchmarks.million_items": "--clean-steps 1",
    "benchmarks.precision": "--steps 2",
    "benchmarks.propagation": "--repeats 1",
    "benchmarks.published": "--seeds 0",
    "benchmarks.ranking": "--users 60 --items 200 --width 8 --at-once 32 --repeats 1",
    "benchmarks.scale": "--repeats 1",
    "benchmarks.scaling": "--ranks 1 --rounds 1 --steps 1",
}


def _runs() -> list[str]:
    """Every command of README and docs that is run, once; the tutorial is run as a notebook."""
    found = {command: None for page in PAGES if page != "docs/tutorial.md" for command in commands(page)}
    return [command for command in found if not any(word in command for word in _LEFT_OUT) and _is_command(command)]


def _is_command(command: str) -> bool:
    return "torchrun itself" not in command and not command.startswith("launch/  ") and command != _GPU


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.mark.parametrize("command", _runs())
def test_every_command_runs(workplace, command):
    """At sizes that take seconds, in the order of the pages, in a folder where what it names exists."""
    words = shlex.split(re.sub(r"\s*(\||>).*$|[][](?=\s|$)", "", command.replace(" [", " ")))
    ranks, words = _unwrapped(words)
    if words[0] == _SLURM:
        script = ["bash", words[0], "--dry-run", *words[1:]]
        done = subprocess.run(script, cwd=workplace.folder, env=environment(), capture_output=True, text=True)
    else:
        workplace.prepare(words)
        done = nursery.run(ranks, words, workplace.folder, environment(ranks), timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _unwrapped(words: list[str]) -> tuple[int, list[str]]:
    """(ranks, script and arguments) of a command: at most two ranks, and options for small sizes."""
    ranks = 1
    if words[0] == "torchrun":
        sizes = [int(word.partition("=")[2]) for word in words if word.startswith("--nproc_per_node=")]
        ranks, words = min(sizes[0], 2), ["python", *itertools.dropwhile(lambda word: word[:2] == "--", words[1:])]
    if words[0] == "python" and words[1] == "-m":
        module, *given = words[2:]
        if module == "uatmc_dist.cli":
            return ranks, _verb(given)
        options = next((o for name, o in _OPTIONS.items() if module.startswith(name)), "").split()
        return ranks, [str(ROOT / "tests/docs/rehearse.py"), module, *given, *options]
    if words[0] == "python":
        return ranks, _verb(["train", *words[2:]])
    return (ranks, _verb(words[1:])) if words[0] == "uatmc" else (ranks, words)


def _verb(words: list[str]) -> list[str]:
    """Ours before what the page says: the last word counts. Options that cost time come after it."""
    place = 2 if len(words) > 1 and "=" not in words[1] and words[1][0] != "-" else 1
    small = SMALL.get(words[0], [])
    words = [*words[:place], *small, *words[place:]]
    after = {"synthesize": ["--users", "200", "--items", "150", "--interactions", "1600"]}
    if words[0] == "recommend":  # the page's ids are of no shop
        words[words.index("--history") + 1] = "5,57"
    more = ["--trials", "1"] if words[0] == "tune" else after.get(words[1] if len(words) > 1 else "", [])
    return [UATMC[-1], *words, *more]


def test_the_quickstart_runs(workplace, tmp_path):
    """launch/quickstart.sh with small configurations, in the environment that is there already."""
    (workplace.folder / "launch/setup.sh").write_text(f"set -euo pipefail; cd {workplace.folder}; kind=cpu\n")
    script = workplace.folder / "launch/quickstart.sh"
    sizes = {"--users 600 --items 400 --interactions 5000": "--users 120 --items 90 --interactions 900"}
    sizes |= {
        "uatmc data synthesize data/quickstart\n": "uatmc data synthesize data/quickstart --users 200 --items 150\n"
    }
    text = script.read_text()
    for size, small in sizes.items():
        assert text.count(size) == 1
        text = text.replace(size, small)
    script.write_text(text)
    with nursery.shims(tmp_path, Path(UATMC[-1])) as first:
        variables = {**environment(), "PATH": f"{first}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", script],
            cwd=workplace.folder,
            env=variables,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),  # one core: one rank
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (workplace.folder / "runs/quickstart-photos.html").stat().st_size > 10_000
