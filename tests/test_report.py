"""The report: what it answers, and how it reads in a real browser, on a phone, printed and without a network."""

import dataclasses
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clones import ROOT, Clone
from test_verdicts import GOOD, networks

from lottery.figures import FIGURES
from lottery.report import REPEATED, Comparison, Findings, answer, claimed, embedded, percent
from lottery.stages import plot
from lottery.verdicts import conditions_table, judge, table

CHROMIUM = shutil.which("chromium")
WORSE = GOOD | {"ticket": (-0.5, 700.0)}


def findings(levels: dict[str, dict[str, tuple[float, float]]], **more: object) -> Findings:
    """Findings about made-up networks; sparser levels come later."""
    found = networks(levels, **more)
    judged = judge(found, 0.2, 1.25)
    summary = found.groupby(["level", "arm"], sort=False).size().reset_index()
    density = {level: 0.5**place for place, level in enumerate(["dense", *levels])}
    summary["density"] = summary["level"].map(density)
    return Findings(
        levels=summary,
        networks=found,
        verdicts=table(judged),
        conditions=conditions_table(judged),
        claims=[],
        structure=pd.DataFrame(),
        warnings=[],
        settings={},
        tables="",
    )


def test_the_answer_is_the_sparsest_winning_ticket_with_its_uncertainty() -> None:
    first, second = answer(findings({"p50": GOOD, "p75": GOOD, "p87": WORSE}))
    assert first.startswith("With 25 % of the weights (p75) the tickets are winning ones: ")
    assert "differs from dense’s by +0.30 (+0.26 to +0.34) points" in first
    assert "stop at 0.70 (0.69 to 0.71) times its iteration" in first
    assert "fresh weights by +0.70 (" in first
    assert "random masks by +1.20 (" in first
    assert second == (
        "In brackets are 95 % intervals over 5 seeds, one split of the images and one test set; "
        "the other levels are 1 winning ticket, 1 worse than dense."
    )


def test_a_verdict_that_stands_after_holm_comes_before_a_sparser_one_that_does_not() -> None:
    both = findings({"p50": GOOD, "p75": GOOD})
    weak = both.verdicts.assign(survives_holm=["yes", "no"])
    assert "(p50)" in answer(dataclasses.replace(both, verdicts=weak))[0]
    none = both.verdicts.assign(survives_holm=["no", "no"])
    first, second = answer(dataclasses.replace(both, verdicts=none))
    assert "(p75)" in first
    assert "; this verdict does not stand after Holm's adjustment over the levels" in second


def test_a_verdict_stands_in_the_files_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = findings({"p50": GOOD, "p75": WORSE})
    monkeypatch.setattr(plot, "TABLES", tmp_path)
    both.verdicts.to_csv(tmp_path / "verdicts.csv", index=False)
    both.conditions.to_csv(tmp_path / "conditions.csv", index=False)
    read = dataclasses.replace(
        both, verdicts=plot.load_report("verdicts.csv"), conditions=plot.load_report("conditions.csv")
    )
    assert answer(read) == answer(both)
    assert "Holm" not in answer(read)[1]


def test_without_a_winning_ticket_the_answer_says_so() -> None:
    assert answer(findings({"p50": WORSE, "p75": WORSE})) == [
        "No level is shown to have a winning ticket (2 worse than dense); the most accurate tickets, with 50 % of the "
        "weights (p50), differ from dense by −0.50 (−0.54 to −0.46) points of test accuracy and stop at 0.70 (0.69 to "
        "0.71) times its iteration.",
        "In brackets are 95 % intervals over 5 seeds, one split of the images and one test set.",
    ]
    assert answer(findings({"p50": {"random": (0.0, 1.0)}}))[0] == (
        "This pipeline trained no tickets, so there is no verdict."
    )


def test_one_seed_has_an_answer_without_intervals() -> None:
    first, second = answer(findings({"p50": WORSE}, seeds=1))
    assert first.endswith("differ from dense by −0.46 points of test accuracy and stop at 0.71 times its iteration.")
    assert second == "Without intervals, these are over 1 seed, one split of the images and one test set."


def test_the_answer_says_where_networks_are_censored() -> None:
    _, second = answer(findings({"p50": GOOD}, censored=("random",)))
    assert "censored, their last evaluation being their best (1 in ticket − random)" in second


def test_a_limit_that_censoring_takes_away_is_a_dash() -> None:
    bound = {"unit": "ratio", "mean": 0.5, "low": 0.0, "high": 0.7, "seeds": 5, "censored": 1}
    assert str(Comparison.of(bound)) == "0.50 (– to 0.70)"
    assert str(Comparison.of(bound | {"low": 0.4, "high": math.inf})) == "0.50 (0.40 to –)"
    points = {"unit": "points", "mean": -0.5, "low": -1.0, "high": 0.004, "seeds": 5, "censored": 0}
    assert Comparison.of(points) == ("−0.50", "−1.00 to +0.00", 0)
    assert str(Comparison.of(points | {"low": -math.inf, "high": math.inf, "seeds": 1})) == "−0.50"


def test_what_a_claim_came_to_is_in_its_unit() -> None:
    claim = {"unit": "ratio", "estimate": 0.62, "low": 0.5, "high": None}
    assert claimed(claim) == "0.62 (0.50 to –) times"
    assert claimed(claim | {"unit": "points"}) == "+0.62 (+0.50 to –) points"
    assert claimed(claim | {"unit": "log-ratio per round", "estimate": -0.0712}).startswith("−0.071 (")
    assert claimed(claim | {"estimate": None}) == ""
    assert percent(0.98123, 0.0021) == "98.12 ± 0.21"
    assert percent(0.98123) == "98.12"


# --- the page of a real pipeline -------------------------------------------------------------------------------------


def test_the_report_of_a_pipeline_is_one_file(finished: Clone) -> None:
    page = (finished.folder / "reports/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|\#)""", page)  # nothing is loaded from elsewhere
    assert "<script" not in page
    assert not re.search(r"""url\(|@import""", page)
    for level in ("p50", "p75", "p80-at-once"):
        assert f'<td class="name">{level}</td>' in page
    assert "2 seeds, of 3 at least" in page
    assert "learning_rate: 0.01" in page


def test_the_report_has_the_tables_sum_in_dvc_lock_and_the_command_that_finds_the_commit(clone: Clone) -> None:
    page = (clone.folder / "reports/report.html").read_text()
    plot = yaml.safe_load((clone.folder / "dvc.lock").read_text())["stages"]["plot"]
    locked = {dep["path"]: dep["md5"] for dep in plot["deps"]}
    assert re.findall(r"<code>([0-9a-f]{32}\.dir)</code>", page) == [locked["reports/tables"]]
    (command,) = re.findall(r"<pre>(git log .*)</pre>", page)
    assert clone.run(*command.split()) == ""
    clone.commit("Results")
    commit = clone.run("git", "rev-parse", "--short", "HEAD").strip()
    clone.change(verdict={"margin": 0.3, "speed_margin": 1.25})
    clone.commit("Another margin")
    assert clone.run(*command.split()).splitlines()[-1] == f"{commit} Results"


@pytest.mark.parametrize(
    "history", ["a shallow clone of later commits", pytest.param("no git", marks=pytest.mark.slow)]
)
def test_the_report_has_the_same_bytes_whatever_git_says(clone: Clone, history: str, tmp_path: Path) -> None:
    expected, path = clone.files("reports"), clone.environment["PATH"]
    if history == "no git":
        shutil.rmtree(clone.folder / ".git")
        path = str(tmp_path)
    else:
        (clone.folder / "src/lottery/later.py").touch()
        clone.commit("Later sources")
        clone.run("git", "clone", "-q", "--depth", "1", f"file://{clone.folder}", str(tmp_path / "shallow"))
        shutil.copytree(clone.folder / "models", tmp_path / "shallow/models", dirs_exist_ok=True)
        clone = Clone(tmp_path / "shallow")
    (clone.folder / "reports/report.html").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "lottery.stages.plot"],
        cwd=clone.folder,
        env=clone.environment | {"PATH": path, "PYTHONPATH": "src", "DVC_STAGE": "plot", "DVC_ROOT": str(clone.folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert clone.files("reports") == expected


def test_the_committed_figures_fit_in_a_page_below_400_kb() -> None:
    """Without those that repeat others; the tables around them take about 30 kB."""
    pictures = {path.stem: embedded(path) for path in sorted((ROOT / "reports/figures").glob("*.png"))}
    assert sum(len(pictures[name]) for name in pictures if name not in REPEATED) < 360_000
    assert set(REPEATED) < set(pictures) <= set(FIGURES)


def test_every_figure_of_the_committed_report_has_words_for_who_cannot_see_it() -> None:
    page = (ROOT / "reports/report.html").read_text()
    words = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert page.count("<img ") == len(words) > 0
    assert all(len(alternative) > 20 for alternative in words)


def test_the_readme_shows_the_committed_results() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    for row in pd.read_csv(ROOT / "reports/tables/levels.csv").to_dict("records"):
        assert percent(row["test_accuracy_mean"], row["test_accuracy_std"]) in shown[row["level"]]
    for row in pd.read_csv(ROOT / "reports/tables/verdicts.csv").to_dict("records"):
        assert shown[row["level"]].rpartition("| ")[2].startswith(row["verdict"])
        assert ("not after Holm" in shown[row["level"]]) == (row["survives_holm"] == "no")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1100], ids=["phone", "desktop"])
def test_the_report_reads_well_in_a_browser(finished: Clone, width: int, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install '.[dev]'")
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.goto((finished.folder / "reports/report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out to the right
        pictures = page.locator("img")
        assert pictures.count() > 0
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            playwright.expect(picture).to_have_js_property("complete", True)
            assert picture.evaluate("image => image.naturalWidth") > 600
        assert page.locator("h1 + .answer p").count() == 2
        page.pdf(path=tmp_path / "report.pdf", format="A4")
        browser.close()
    assert not [url for url in asked if url.startswith("http")]
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
