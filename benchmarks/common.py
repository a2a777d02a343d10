"""Timing, peak memory, and the one CSV that every benchmark appends to."""

import argparse
import csv
import ctypes
import json
import os
import platform
import statistics
import time
import urllib.parse
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "results.csv"
_COLUMNS = (
    "benchmark",
    "implementation",
    "sizes",
    "p20_s",
    "p50_s",
    "p80_s",
    "extra_memory_mb",
    "fraction_of_floor",
    "device",
    "torch",
    "date",
)


def timed(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function, in turn (A B A B ...), so that a drifting machine slows all of them alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the pair-by-pair ratios."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def extra_memory(function: Callable[[], object]) -> float:
    """Peak resident memory while the function runs beyond what there was before it, in MB (Linux, glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed must not serve this one unseen
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def device_name(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def append(
    benchmark: str,
    implementation: str,
    sizes: dict[str, int],
    seconds: list[float] | None,
    memory_mb: float | None,
    fraction_of_floor: float | None = None,
    device: str = "cpu",
) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    is_new = not RESULTS.exists()
    shares = (0.2, 0.5, 0.8)
    times = [f"{quantile(seconds, share):.5f}" for share in shares] if seconds else [""] * 3
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(_COLUMNS)
        writer.writerow(
            [
                benchmark,
                implementation,
                json.dumps(sizes),
                *times,
                "" if memory_mb is None else f"{memory_mb:.1f}",
                "" if fraction_of_floor is None else f"{fraction_of_floor:.3f}",
                device_name(device),
                torch.__version__,
                datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            ]
        )


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles of Student's t by degrees of freedom, from 1."""


def with_interval(values: list[float], form: str) -> str:
    """Mean, and the half-width of its 95 % interval where there are several values."""
    if not values:
        return ""
    mean = f"{np.mean(values):{form}}"
    if len(values) == 1:
        return mean
    half = _T_975[len(values) - 2] * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {half:{form.removeprefix('+')}}"


def write_picture(figure: Any, path: Path, width: int = 800, height: int = 480) -> Path:
    """SVG of a plotly figure, drawn by the chromium that is there."""
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    from uatmc_dist.evaluation.report.pdf import installed_browser

    found = installed_browser()
    if found is None:
        raise SystemExit(f"{path}: no chromium on this machine to draw it; install chromium")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]).new_page()
        page.add_script_tag(content=get_plotlyjs())
        options = f"{{format: 'svg', width: {width}, height: {height}}}"
        url = page.evaluate(f"Plotly.toImage({figure.to_json()}, {options})")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(urllib.parse.unquote(url.split(",", 1)[1]), encoding="utf-8")
    return path


SCHEMES = {"light": ("#ffffff", "#24292f", "#d0d7de"), "dark": ("#0d1117", "#e6edf3", "#30363d")}
"""Ground, ink and lines of a picture that stands in a light or a dark document."""


def style(figure: Any, scheme: str, xaxis: dict[str, Any], yaxis: dict[str, Any]) -> None:
    """The looks that a document's pictures share."""
    ground, ink, line = SCHEMES[scheme]
    figure.update_layout(
        paper_bgcolor=ground,
        plot_bgcolor=ground,
        font={"color": ink, "size": 13},
        margin={"l": 70, "r": 20, "t": 20, "b": 110},
        legend={"orientation": "h", "y": -0.24},
        xaxis={"gridcolor": line, **xaxis},
        yaxis={"gridcolor": line, **yaxis},
    )


def one_thread() -> dict[str, str]:
    """The environment of a process that computes on one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def document_parser(description: str | None) -> argparse.ArgumentParser:
    """Of a benchmark whose tables stand in a document."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="Markdown file whose block is replaced")
    return parser


def replace_block(document: Path, name: str, text: str) -> None:
    start, end = f"<!-- {name} -->", "<!-- end -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        raise SystemExit(f"{document}: the marks {start} and {end} are missing")
    after = rest[rest.index(end) :]
    document.write_text(f"{before}{start}\n\n{text}\n\n{after}", encoding="utf-8")
