"""The day a GPU is there: its tests, kernels against their floors, launches timed, training steps of every objective
and defence, a whole run, ranking, an attack and a certificate, within 25 minutes; then what missed its prediction.

python -m benchmarks.gpu               # on one GPU
python -m benchmarks.gpu --rehearse    # the same on a CPU, with tiny sizes: whether it runs

Writes benchmarks/results/gpu-NAME.csv (the rows of this run), and gpu-NAME.html beside it. A stage that fails or takes
too long is named, and the others go on. The timed launches are a new kernels/uatmc_kernels/triton/_launch_table.py:
keep it where it is faster.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Template

from benchmarks.common import RESULTS, device_name
from uatmc_dist.parallel.cost_model import step_cost
from uatmc_dist.parallel.machine import h100
from uatmc_dist.parallel.problem import Problem

_SHARE_OF_FLOOR = 0.5
"""A kernel at less than half of what its bytes and products allow has missed its prediction (docs/kernels.md)."""
_SLOWER = 1.5
"""So has a step that takes more than this times what docs/scaling.md predicts."""


@dataclass(frozen=True)
class Stage:
    name: str
    command: tuple[str, ...]
    limit_s: int


@dataclass(frozen=True)
class Done:
    stage: Stage
    seconds: float
    problem: str
    """Empty where it went well."""


def stages(rehearse: bool) -> list[Stage]:
    module = lambda name, *given: (sys.executable, "-m", name, *given)  # noqa: E731
    tests = ("tests/kernels/test_library.py",) if rehearse else ("tests/kernels",)
    device = "cpu" if rehearse else "cuda"
    sizes = ("--items", "200", "--users", "32", "--width", "16") if rehearse else ("--items", "1000000")
    sizes += ("--seconds", "0.01" if rehearse else "1")
    variants = ("coordinate",) if rehearse else ("loss_and_user_gradients", "item_gradients", "hvp", "topk_64")
    tiny = ("--rehearse",) if rehearse else ()
    ranked = ("--users", "60", "--items", "200", "--width", "16") if rehearse else ("--items", "1000000")
    train = ("train.py", "configs/quickstart.yaml", "name=gpu", "output_dir=runs", "--overwrite")
    train += ("clean.epochs=1", "adversarial.epochs=1") if rehearse else ()
    certify = ("uatmc_dist.cli", "certify", "runs/gpu")
    return [
        Stage("tests of the kernels", module("pytest", "-q", *tests), 240),
        *(
            Stage(
                f"kernels, {dtype}",
                module("benchmarks.kernels.run_all", "--device", device, "--dtype", dtype, *sizes),
                180,
            )
            for dtype in ("fp32", "bf16")
        ),
        *(
            Stage(f"steps, {objective}", module("benchmarks.trainer_step", "--objective", objective, *tiny), 90)
            for objective in ("full_catalog", "softmax", "sampled")
        ),
        Stage("ranking", module("benchmarks.ranking", *ranked, "--repeats", "1"), 60),
        Stage("a run", (sys.executable, *train), 150),
        Stage("attack", module("benchmarks.attack", "runs/gpu", "--device", device), 60),
        Stage("certificate", module("torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", *certify), 60),
        Stage(
            "launches",
            module("benchmarks.kernels.launch_table", "--device", device, "--kernels", *variants, "--widths", "128"),
            300,
        ),
    ]


def run(stage: Stage) -> Done:
    print(f"== {stage.name} (at most {stage.limit_s} s)", flush=True)
    start = time.monotonic()
    code = ended(stage.command, stage.limit_s)
    problem = f"longer than {stage.limit_s} s" if code is None else f"exit {code}" if code else ""
    return Done(stage, time.monotonic() - start, problem)


def ended(command: Sequence[str], limit_s: float) -> int | None:
    """Its exit code; None where it took too long, and was killed with all that it had started: the next stage needs the
    GPU for itself."""
    process = subprocess.Popen(command, env=_environment(), start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment() -> dict[str, str]:
    """Of one rank, whichever was here before."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def missed(rows: list[dict[str, str]], on_gpu: bool) -> list[str]:
    """One line for each figure that is not what was predicted."""
    found = []
    for row in rows:
        share, seconds = row["fraction_of_floor"], row["p50_s"]
        name = f"{row['benchmark']}, {row['implementation']}, {row['sizes']}"
        if share and row["implementation"].startswith("triton") and float(share) < _SHARE_OF_FLOOR:
            found.append(f"{name}: {float(share):.0%} of the floor, at least {_SHARE_OF_FLOOR:.0%} expected")
        if on_gpu and seconds and (predicted := _predicted(row)) is not None and float(seconds) > _SLOWER * predicted:
            found.append(f"{name}: {float(seconds) * 1e3:.1f} ms, {predicted * 1e3:.1f} ms predicted")
    return found


def _predicted(row: dict[str, str]) -> float | None:
    """Seconds of a training step by the model of docs/scaling.md."""
    objective = row["benchmark"].removeprefix("trainer_step_")
    if objective not in ("full_catalog", "sampled") or row["implementation"] not in (
        "uat",
        "uat_mc",
        "noise",
        "certified",
    ):
        return None
    sizes = json.loads(row["sizes"])
    problem = Problem(
        **{name: sizes[name] for name in ("users", "items", "interactions", "visual_dim", "text_dim")},
        batch_size=sizes["B"],
        objective=objective,
        adversary=row["implementation"],
    )
    return step_cost(problem, h100(), 1).seconds


_PAGE = Template(
    """<!doctype html><meta charset="utf-8"><title>{{ device }}</title>
<style>
body { font: 15px system-ui; margin: 2em; color-scheme: light dark }
table { border-collapse: collapse }
td, th { padding: .2em .8em; text-align: left; border-bottom: 1px solid #8886 }
</style>
<h1>{{ device }}</h1>
<p>{{ when }}, torch {{ torch }}{% if rehearsed %}; a rehearsal on a CPU with tiny sizes{% endif %}</p>
<h2>Stages</h2><table><tr><th>stage<th>seconds<th></tr>
{% for one in done %}
<tr><td>{{ one.stage.name }}<td>{{ "%.0f"|format(one.seconds) }}<td>{{ one.problem or "ok" }}</tr>
{% endfor %}</table>
<h2>What missed its prediction</h2>
{% if missed %}<ul>{% for line in missed %}<li>{{ line }}{% endfor %}</ul>{% else %}<p>nothing</p>{% endif %}
<h2>Figures</h2><table><tr>{% for name in columns %}<th>{{ name }}{% endfor %}</tr>
{% for row in rows %}<tr>{% for name in columns %}<td>{{ row[name] }}{% endfor %}</tr>{% endfor %}</table>
""",
    autoescape=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    rehearse = parser.parse_args().rehearse
    if not rehearse and not torch.cuda.is_available():
        parser.error("no GPU here; --rehearse runs it on the CPU with tiny sizes")
    before, text = len(_rows()), RESULTS.read_bytes() if RESULTS.exists() else b""
    done = [run(stage) for stage in stages(rehearse)]
    rows = _rows()[before:]
    if rehearse:  # no figures to keep
        RESULTS.write_bytes(text)
    device = device_name("cpu" if rehearse else "cuda")
    name = "rehearsal" if rehearse else re.sub(r"\W+", "-", device).strip("-").lower()
    lines = missed(rows, not rehearse)
    _write(RESULTS.parent / f"gpu-{name}.csv", rows)
    page = RESULTS.parent / f"gpu-{name}.html"
    columns = list(rows[0]) if rows else []
    shown = {"done": done, "missed": lines, "rows": rows, "columns": columns, "rehearsed": rehearse}
    page.write_text(_PAGE.render(device=device, torch=torch.__version__, when=time.strftime("%Y-%m-%d"), **shown))
    print("\n== what missed its prediction")
    print("\n".join(lines) or "nothing")
    failed = [f"{one.stage.name} ({one.problem})" for one in done if one.problem]
    print(f"written: {page}, in {sum(one.seconds for one in done) / 60:.0f} min")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _rows() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["benchmark"])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
