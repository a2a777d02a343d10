"""The built site in a real browser: what axe-core, the console and a narrow screen say. Built by ./launch/docs.sh."""

import functools
import http.server
import threading

import pytest

from tests.conftest import ROOT
from uatmc_dist.evaluation.report.pdf import installed_browser

SITE = ROOT / "build/site"
CHROMIUM = installed_browser()
PAGES = ("", "guide/", "tutorial/", "attacks/", "plots/", "results/", "configuration/", "reference/kernels/")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the site is not opened in a browser"),
    pytest.mark.skipif(not SITE.exists(), reason="the site is not built; run ./launch/docs.sh"),
]


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


_TWO_OF_EACH_KIND = """() => {
    const look = cell => [cell.tagName, cell.className, cell.getAttribute("style"), !cell.textContent.trim()];
    for (const table of document.querySelectorAll("article table")) {
        const count = new Map();
        for (const row of [...table.tBodies[0].rows]) {
            const kind = JSON.stringify([row, ...row.querySelectorAll("*")].map(look));
            count.set(kind, (count.get(kind) || 0) + 1);
            if (count.get(kind) > 2) row.remove();
        }
    }
}"""
"""Of a table's rows that are alike in elements, classes and styles two stay: a page of results has some thousand cells,
and axe looks at what is behind each."""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_every_kind_of_page_is_accessible_and_quiet(address, browser, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    violations: dict[str, set[str]] = {}
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(address) or problems.append(request.url))
    for name in PAGES:
        page.goto(address + name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if name == "plots/":
            drawn = page.eval_on_selector_all(".plot", "plots => plots.map(p => p.querySelectorAll('.point').length)")
            assert len(drawn) >= 5 and all(count >= 6 for count in drawn)
        if width > 1000:
            page.evaluate(_TWO_OF_EACH_KIND)
            found = Axe().run(page).response["violations"]
            for one in found:
                if one["impact"] in ("serious", "critical"):
                    violations.setdefault(f"{one['id']}, {name}", set()).update(n["html"][:150] for n in one["nodes"])
    assert not violations, violations
    assert not problems
    page.close()


def test_the_search_finds_and_a_table_sorts(address, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(address + "?q=any+content+certificate")  # what is typed before the page listens is lost
    page.wait_for_selector(".md-search-result__item", timeout=60_000)
    page.goto(address + "results/")
    cells = "table => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[1].textContent))"
    table = page.locator("article table").first
    table.locator("th button").nth(1).click()
    values = table.evaluate(cells)
    assert values == sorted(values, reverse=True) and len(values) > 2
    page.close()
