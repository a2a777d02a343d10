"""The page as PDF, printed by the browser that is there."""

import os
import shutil
import subprocess
from pathlib import Path

from uatmc_dist.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
_WITHIN_S = 120
_FOR_CHARTS_MS = 20_000


def installed_browser() -> str | None:
    """The one of this machine, where it has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_page(page: Path, pdf: Path) -> Path:
    """Raises UserError where no browser can be found, or it writes nothing."""
    found = installed_browser()
    if found is None:
        raise UserError(f"--pdf {pdf}: no browser on this machine ({', '.join(BROWSERS)}); install chromium")
    pdf.unlink(missing_ok=True)
    options = ["--headless", "--disable-gpu", "--no-pdf-header-footer", f"--virtual-time-budget={_FOR_CHARTS_MS}"]
    if os.geteuid() == 0:  # the sandbox refuses root; the page is our own
        options.append("--no-sandbox")
    command = [found, *options, f"--print-to-pdf={pdf.resolve()}", page.resolve().as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S)
        why = done.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        why = [f"nothing within {_WITHIN_S} s"]
    if not pdf.exists():
        raise UserError(f"--pdf {pdf}: {found} did not write it ({''.join(why) or 'no reason given'})")
    return pdf
