"""The report page in a real browser: every chart drawn, nothing asked of a network; by keyboard, on a phone, dark."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import on_ranks, run_uatmc
from uatmc_dist.cli import app
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation import promotion
from uatmc_dist.evaluation.report.accuracy import accuracy
from uatmc_dist.evaluation.report.findings import findings
from uatmc_dist.evaluation.report.page import write_page
from uatmc_dist.evaluation.report.pdf import installed_browser
from uatmc_dist.evaluation.report.sources import RunFiles

CHROMIUM = installed_browser()
NO_BROWSER = "no chromium on this machine: the report page is not opened in a browser"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_catalog, tiny_values) -> list[Path]:
    """A clean run and a defended one, measured in every way; a third one that was only trained."""
    import yaml

    folder = tmp_path_factory.mktemp("report")
    values = {**tiny_values, "output_dir": str(folder), "attack": {"num_targets": 5, "seeds": [1], "k": 20}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    phase_2 = [f"start_from={folder / 'clean'}", "adversarial.epochs=1"]
    for name, overrides in {
        "clean": [],
        "defended": phase_2,
        "bare": [*phase_2, "adversarial.adversary=noise"],
    }.items():
        on_ranks(1, "train.py", folder / "tiny.yaml", f"name={name}", *overrides)
    for name in ("clean", "defended"):
        for command in ("evaluate", "attack", "certify", "mismatch"):
            run_uatmc(command, folder / name)
    return [folder / "defended", folder / "clean", folder / "bare"]


def test_the_commands_leave_their_files_and_the_defended_run_was_attacked_by_transfer(runs):
    files = {"evaluation.json", "attack.json", "certificate.json", "certificate.parquet", "mismatch.json"}
    assert files <= {path.name for path in runs[0].iterdir()}
    attack = json.loads((runs[0] / "attack.json").read_text())
    assert "transfer" in {result["attack"] for result in attack["results"]}
    certificate = json.loads((runs[0] / "certificate.json").read_text())
    beside = [entry for entry in certificate["results"] if entry["strongest_attack"]]
    assert {(entry["norm"], entry["budget"]) for entry in beside} == {("linf", "paper")}


@pytest.mark.parametrize("options, expected", [([], 0), (["--strict"], 1)])
def test_a_failed_check_is_a_red_line_and_an_error_only_when_strict(runs, monkeypatch, options, expected):
    attack = json.loads((runs[1] / "attack.json").read_text())
    attack["checks"][0]["passed"] = False
    monkeypatch.setattr(promotion, "attack_model", lambda *arguments: attack)
    before = (runs[1] / "attack.json").read_text()
    done = CliRunner().invoke(app, ["attack", str(runs[1]), *options])
    (runs[1] / "attack.json").write_text(before)
    assert done.exit_code == expected
    assert "FAILED" in done.output and attack["checks"][0]["a_failure_means"] in " ".join(done.output.split())


def test_the_page_is_whole_and_the_csv_holds_the_numbers(runs, tmp_path):
    page = write_page(runs, tmp_path / "deep" / "index.html").read_text()
    assert "http-equiv" in page and "uatmc attack" in page and "of cluster" in page  # what is missing; a title
    marker = 'href="data:text/csv;base64,'
    tables = [base64.b64decode(part.split('"')[0]).decode() for part in page.split(marker)[1:]]
    rows = [list(csv.DictReader(io.StringIO(table))) for table in tables]
    of_attacks = next(table for table in rows if table and "certified_hit@20" in table[0] and "attack" in table[0])
    attack = json.loads((runs[0] / "attack.json").read_text())
    for row in of_attacks:
        result = next(
            r
            for r in (*attack["results"], *attack["any_content"])
            if (r["attack"], f"{r['epsilon'] or 'any content'}", r["stratum"])
            == (row["attack"], row["epsilon"], "random")
        )
        assert float(row["hit@20_after"]) == pytest.approx(result["hit@20_after"], abs=1e-6)


def test_the_runs_stand_among_the_baselines_and_a_worse_one_is_a_red_line(runs, tmp_path):
    worse = tmp_path / "worse"
    shutil.copytree(runs[1], worse)
    evaluation = json.loads((worse / "evaluation.json").read_text())
    evaluation |= {"recall@20": 0.0, "below": list(evaluation["baselines"])}
    (worse / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_page([worse], tmp_path / "index.html").read_text()
    assert '<p class="failed">Less accurate than random, popularity, photo kNN' in page
    assert '<p class="failed">worse: below ' in page and "runs below a baseline" in page
    figures = accuracy([RunFiles.read(run) for run in (worse, runs[0])])
    assert [row[0] for row in figures.rows[:3]] == ["worse", "defended", "random"]
    done = CliRunner().invoke(app, ["compare", str(worse), str(runs[0])])
    assert done.exit_code == 0 and "popularity" in done.output and "worse: below " in done.output
    del evaluation["baselines"]
    (worse / "evaluation.json").write_text(json.dumps(evaluation))
    done = CliRunner().invoke(app, ["compare", str(worse), str(runs[0])])
    assert f"{worse}: not compared with baselines" in done.output


def test_what_is_not_a_run_or_of_an_older_version_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match="not a run"):
        write_page([tmp_path], tmp_path / "index.html")
    old = tmp_path / "old"
    shutil.copytree(runs[0], old)
    (old / "attack.json").write_text('{"results": []}')
    with pytest.raises(UserError, match="uatmc attack"):
        write_page([old], tmp_path / "index.html")
    (old / "attack.json").write_text('{"results": [')
    with pytest.raises(UserError, match="not valid JSON"):
        write_page([old], tmp_path / "index.html")


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.parametrize("scheme, width", [("light", 1100), ("dark", 1100), ("light", 390)])
def test_a_browser_draws_every_chart_and_asks_nothing_of_a_network(runs, tmp_path, scheme, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    from axe_playwright_python.sync_playwright import Axe

    page_file = write_page(runs, tmp_path / "index.html")
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs privileges that a container may lack; the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        problems, requests = [], []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector("body[data-drawn=yes]")
        assert not problems
        assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
        drawn = page.eval_on_selector_all(
            ".chart", "charts => charts.map(c => c.querySelectorAll('.trace, .bars path').length)"
        )
        assert len(drawn) >= 9 and all(drawn), drawn
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page).response["violations"]
        assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 22, 26)" if scheme == "dark" else "rgb(255, 255, 255)")
        # By keyboard: the first Tab reaches a link, and a key of a chart hides its line.
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "A"
        key = page.locator(".keys button").first
        lines = page.locator(".chart").first.locator(".trace")
        before = lines.count()
        key.focus()
        page.keyboard.press("Enter")
        page.wait_for_function(f"document.querySelector('.chart').querySelectorAll('.trace').length < {before}")
        assert key.get_attribute("aria-pressed") == "false"
        browser.close()


def test_what_to_do_next_is_said_of_each_finding(runs, tmp_path):
    found = findings([RunFiles.read(run) for run in runs])
    (attacked,) = (finding for finding in found if "strongest attack of ε = 0.1" in finding.says)
    assert "defended " in attacked.says and "clean " in attacked.says and f"start_from={runs[1]}" in attacked.to_do
    (bound,) = (finding for finding in found if finding.says.startswith("Whatever photo and text"))
    assert "Items to watch" in bound.to_do
    (cost,) = (finding for finding in found if finding.says.startswith("defended: against clean it "))
    assert cost.to_do and not [finding for finding in found if "bare" in finding.says]
    page = write_page(runs, tmp_path / "index.html").read_text()
    assert page.index(">Comparison</h2>") < page.index(">What to do next</h2>") < page.index(">Each run</h2>")
    assert "What to do next" not in write_page(runs[2:], tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("recall", "hit", "to_do"),
    [(0.99, 0.5, "Ship it: it costs little"), (0.8, 0.5, "worth that much"), (1.0, 1.0, "not ship")],
)
def test_what_a_defence_costs_decides_what_to_do(runs, tmp_path, recall, hit, to_do):
    pair = [tmp_path / run.name for run in runs[:2]]
    for run, copy in zip(runs[:2], pair, strict=True):
        shutil.copytree(run, copy)
    evaluation, attack = (json.loads((pair[1] / name).read_text()) for name in ("evaluation.json", "attack.json"))
    evaluation["recall@20"] *= recall
    for result in attack["results"]:
        result["hit@20_after"] *= hit
    (pair[0] / "evaluation.json").write_text(json.dumps(evaluation))
    (pair[0] / "attack.json").write_text(json.dumps(attack))
    config = (pair[0] / "config.yaml").read_text()
    (pair[0] / "config.yaml").write_text(config.replace(str(runs[1]), str(pair[1])))
    assert findings([RunFiles.read(run) for run in pair])[-1].to_do.count(to_do) == 1


def test_without_a_browser_the_pdf_is_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["report", str(runs[0]), "--pdf", str(tmp_path / "report.pdf")])
    assert isinstance(done.exception, UserError) and "install chromium" in str(done.exception)


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
def test_the_page_prints(runs, tmp_path):
    run_uatmc("report", *runs, "--out", tmp_path / "index.html", "--pdf", tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_several_runs_are_compared_first_and_share_what_they_share(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    page = write_page([runs[1], other, runs[2]], tmp_path / "index.html").read_text()
    main = page[page.index("<main>") :]
    assert main.index("All runs") < main.index("Accuracy and attackability") < main.index("Each run")
    assert page.count("The attacker wants to") == 1 and "<b>clean, other.</b>" in page
    attack = json.loads((other / "attack.json").read_text())
    (other / "attack.json").write_text(json.dumps({**attack, "seeds": [2]}))
    assert write_page([runs[1], other], tmp_path / "index.html").read_text().count("The attacker wants to") == 2
    alone = write_page(runs[:1], tmp_path / "index.html").read_text()
    assert "All runs" not in alone and ">Summary</h2>" in alone and "Accuracy and attackability" in alone
