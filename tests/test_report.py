"""The report: what it answers, and how it reads in a real browser, on a phone, printed and without a network."""

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from clones import ROOT, SMALL, Clone
from test_verdicts import GOOD, networks

from lottery.core.layout import perceptron
from lottery.evaluation.tables import load_table
from lottery.evaluation.verdicts import conditions_table, judge, table
from lottery.report.figures import FIGURES
from lottery.report.page import REPEATED, Comparison, Findings, answer, claimed, embedded, percent

WITHOUT_TWINS = set(FIGURES) - {"connectivity"}
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
        compression=[],
        structure=pd.DataFrame(),
        warning="",
        settings={},
        iterations=4580,
        layout=perceptron((784, 300, 100, 10)),
        data="",
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
        "the other levels: 1 winning ticket, 1 worse than dense."
    )


def test_a_verdict_that_stands_after_holm_comes_before_a_sparser_one_that_does_not() -> None:
    both = findings({"p50": GOOD, "p75": GOOD})
    weak = both.verdicts.assign(survives_holm=["yes", "no"])
    assert "(p50)" in answer(dataclasses.replace(both, verdicts=weak))[0]
    none = both.verdicts.assign(survives_holm=["no", "no"])
    first, second = answer(dataclasses.replace(both, verdicts=none))
    assert "(p75)" in first
    assert "; this verdict does not stand after Holm's adjustment over the levels" in second


def test_a_verdict_stands_in_the_files_as_in_memory(tmp_path: Path) -> None:
    both = findings({"p50": GOOD, "p75": WORSE})
    both.verdicts.to_csv(tmp_path / "verdicts.csv", index=False)
    both.conditions.to_csv(tmp_path / "conditions.csv", index=False)
    read = dataclasses.replace(
        both, verdicts=load_table(tmp_path / "verdicts.csv"), conditions=load_table(tmp_path / "conditions.csv")
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


def test_no_sentence_has_an_empty_limit() -> None:
    bound = {"unit": "ratio", "mean": 0.5, "low": 0.0, "high": 0.7, "seeds": 5, "censored": 1}
    assert str(Comparison.of(bound)) == "0.50 (below 0.70)"
    assert str(Comparison.of(bound | {"low": 0.4, "high": math.inf})) == "0.50 (above 0.40)"
    assert str(Comparison.of(bound | {"high": math.inf})) == "0.50"
    points = {"unit": "points", "mean": -0.5, "low": -1.0, "high": 0.004, "seeds": 5, "censored": 0}
    assert Comparison.of(points) == ("−0.50", "−1.00 to +0.00", 0)
    assert str(Comparison.of(points | {"low": -math.inf, "high": math.inf, "seeds": 1})) == "−0.50"
    first, _ = answer(findings({"p50": GOOD}, censored=("dense", "ticket")))
    assert first == (
        "No level is shown to have a winning ticket (1 undecided); the most accurate tickets, with 50 % of the weights "
        "(p50), differ from dense by +0.30 (+0.26 to +0.34) points of test accuracy; how fast they learn is not known, "
        "because networks are censored."
    )
    first, _ = answer(findings({"p50": GOOD}, censored=("dense",)))
    assert "they stop at 0.70 (below 0.71) times its iteration" in first


def test_what_a_claim_came_to_is_in_its_unit() -> None:
    claim = {"unit": "ratio", "estimate": 0.62, "low": 0.5, "high": None}
    assert claimed(claim) == "0.62 (above 0.50) times"
    assert claimed(claim | {"high": 0.7}) == "0.62 (0.50 to 0.70) times"
    assert claimed(claim | {"unit": "points"}) == "+0.62 (above +0.50) points"
    assert claimed(claim | {"low": None}) == "0.62 times"
    assert claimed(claim | {"unit": "log-ratio per round", "estimate": -0.0712}).startswith("−0.071 (")
    assert claimed(claim | {"estimate": None}) == ""
    assert percent(0.98123, 0.0021) == "98.12 ± 0.21"
    assert percent(0.98123) == "98.12"


# --- the page of a real pipeline -------------------------------------------------------------------------------------


def test_the_report_of_a_pipeline_is_one_file(finished: Clone) -> None:
    page = (finished.folder / "reports/report.html").read_text()
    assert not re.findall(r"""src=["'](?!data:)|<link""", page)  # nothing is loaded from elsewhere
    assert "<script" not in page
    assert not re.search(r"""url\(|@import""", page)
    for level in ("p50", "p75", "p80-at-once"):
        assert f'<th scope="row">{level}</th>' in page
    assert "2 seeds; a verdict needs 3 train.seeds" in page
    assert "learning_rate: 0.01" in page


def test_the_report_has_the_sizes_of_each_levels_ticket(finished: Clone) -> None:
    page = (finished.folder / "reports/report.html").read_text()
    found = json.loads((finished.folder / "reports/compression.json").read_text())
    assert [each["level"] for each in found] == ["dense", "p50", "p75", "p80-at-once"]
    section = page[page.index('id="sizes"') : page.index('id="arms"')]
    for each in found:
        times = found[0]["checkpoint"] / each["ticket"]
        assert f"<div>{each['ticket'] / 1000:,.1f} ({times:.1f})</div>" in section
    assert "<code>lottery measure</code>" in section


def test_the_report_begins_with_what_was_asked_of_which_data_and_network(finished: Clone) -> None:
    page = (finished.folder / "reports/report.html").read_text()
    beginning = page[page.index("<h1") : page.index('class="answer"')]
    lock = yaml.safe_load((finished.folder / "dvc.lock").read_text())["stages"]
    (data,) = [out["md5"] for out in lock["download"]["outs"]]
    for words in (
        '<a href="https://arxiv.org/abs/1803.03635">',
        f"digits (MD5 <code>{data}</code>)",
        "perceptron 64–32–16–10, 2,720 weights",
        "evaluated every 20",
        "2 (0, 1), 20 networks in all",
    ):
        assert words in beginning, words
    before_the_table = page[: page.index("<table")]
    for word in ("level", "density", "arm", "seed", "early stopping", "censored", "interval", "verdict"):
        assert f"<dt>{word}</dt><dd>" in before_the_table, word


def test_figures_have_headings_captions_and_words_of_their_own(finished: Clone) -> None:
    page = (finished.folder / "reports/report.html").read_text()
    shown = re.findall(
        r'<h3 id="(.*)">.*</h3>\n<figure>\n.*<img [^>]*alt="([^"]*)".*\n *<figcaption>(.*)</figcaption>', page
    )
    assert len(shown) == page.count("<img ") == len(WITHOUT_TWINS) - len(REPEATED)
    for name, alternative, caption in shown:
        assert alternative != html.unescape(caption), name
        assert re.search(r"\d", alternative) or "one seed" in alternative, name


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


@pytest.mark.slow
@pytest.mark.parametrize("history", ["a shallow clone of later commits", "no git"])
def test_the_report_has_the_same_bytes_whatever_git_says(clone: Clone, history: str, tmp_path: Path) -> None:
    expected, path = clone.files("reports"), clone.environment["PATH"]
    if history == "no git":
        shutil.rmtree(clone.folder / ".git")
        path = str(tmp_path)
    else:
        (clone.folder / "src/lottery/later.py").touch()
        clone.commit("Later sources")
        clone.run("git", "clone", "-q", "--depth", "1", f"file://{clone.folder}", str(tmp_path / "shallow"))
        for folder in ("data", "models"):
            shutil.copytree(clone.folder / folder, tmp_path / "shallow" / folder, dirs_exist_ok=True)
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


@pytest.mark.slow
def test_where_all_networks_are_censored_the_report_says_what_to_change(clone: Clone) -> None:
    train = SMALL["train"] | {"seeds": [0, 1, 2], "evaluate_every": 250}
    clone.change(levels={"p50": SMALL["levels"]["p50"]}, train=train)
    output = clone.run("dvc", "repro")
    (warning,) = [line for line in output.splitlines() if line.startswith("warning:")]  # one for all the arms
    assert warning == (
        "warning: all networks are censored, their last evaluation being their best: how fast they learn is not known; "
        "evaluated 1 time in 84 iterations: set train.evaluate_every to 4, or train longer "
        "(train.epochs or train.iterations in params.yaml)"
    )
    page = (clone.folder / "reports/report.html").read_text()
    words = re.sub(r"<[^>]*>", "", page[page.index("<main>") : page.index('id="figures"')])
    assert f"All networks are {warning.partition('networks are ')[2]}." in words
    assert "how fast they learn is not known, because networks are censored" in words
    assert not re.search(r"– to|to –|\(\)|inf|nan", words)
    assert not re.search(r"stop at [\d.]+ times", words)
    assert words.count("no interval") == 1  # of the ratio of iterations


def test_the_committed_figures_fit_in_a_page_below_430_kb() -> None:
    """Without those that repeat others; the tables around them take about 30 kB."""
    pictures = {path.stem: embedded(path) for path in sorted((ROOT / "reports/figures").glob("*.png"))}
    assert sum(len(pictures[name]) for name in pictures if name not in REPEATED) < 390_000
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


# --- the page in a browser -------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install '.[dev]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, clone: Clone, width: int, **more: str) -> Iterator[Any]:
    """The report in a window of so many pixels."""
    page = browser.new_page(viewport={"width": width, "height": 844}, **more)
    page.goto((clone.folder / "reports/report.html").as_uri())
    yield page
    page.close()


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 768, 1280], ids=["phone", "tablet", "desktop"])
def test_the_report_reads_well_in_a_browser(finished: Clone, browser: Any, width: int, tmp_path: Path) -> None:
    asked: list[str] = []
    with opened(browser, finished, width) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out to the right
        pictures = page.locator("img")
        assert pictures.count() > 0
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 600
            assert picture.bounding_box()["width"] > 550, "letters of a figure smaller than this cannot be read"
        assert page.locator("main > h1 ~ .answer p").count() == 2
        page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert not [url for url in asked if url.startswith("http")]
    assert (tmp_path / "report.pdf").stat().st_size > 50_000


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 768, 1280], ids=["phone", "tablet", "desktop"])
def test_no_value_runs_into_another_and_no_verdict_is_cut_off(finished: Clone, browser: Any, width: int) -> None:
    with opened(browser, finished, width) as page:
        for cell in page.locator("table.cards td").all():
            text = cell.inner_text()
            assert not re.search(r"\d[+−(]|\d \d+ censored", text), text
            assert cell.evaluate("cell => cell.scrollWidth - cell.clientWidth") <= 0, text
        for table in page.locator("table.cards").all():
            assert table.evaluate("table => table.parentElement.scrollWidth - table.parentElement.clientWidth") <= 0


@pytest.mark.slow
@needs_chromium
def test_a_table_that_goes_on_to_the_side_shows_it_and_can_be_scrolled_by_keys(finished: Clone, browser: Any) -> None:
    with opened(browser, finished, 390) as page:
        for wide in page.locator(".wide").all():
            if wide.evaluate("element => element.scrollWidth > element.clientWidth"):
                assert wide.get_attribute("tabindex") == "0"
                assert wide.get_attribute("aria-label")
                assert "gradient" in wide.evaluate("element => getComputedStyle(element).backgroundImage")


@pytest.mark.slow
@needs_chromium
def test_a_screen_reader_finds_the_main_part_and_what_each_table_and_column_is(finished: Clone, browser: Any) -> None:
    with opened(browser, finished, 1280) as page:
        assert page.locator("main").count() == 1
        assert page.locator("main h1").count() == 1
        levels = [
            int(tag[1]) for tag in page.locator("h1, h2, h3").evaluate_all("all => all.map(each => each.tagName)")
        ]
        assert all(after - before <= 1 for before, after in pairwise(levels))
        for table in page.locator("table").all():
            assert table.locator("caption").inner_text()
            assert table.locator("thead th").count() == table.locator("thead th[scope=col]").count() > 0
            assert table.locator("tbody th[scope=row]").count() == table.locator("tbody tr").count()


@pytest.mark.slow
@needs_chromium
def test_numbers_stand_at_the_right_with_as_many_decimals_as_those_above_them(finished: Clone, browser: Any) -> None:
    with opened(browser, finished, 1280) as page:
        for table in page.locator("table").all():
            names = table.locator("thead th").all_inner_texts()
            for column, name in enumerate(names):
                cells = table.locator(f"tbody tr > :nth-child({column + 1})")
                numbers = [text for text in cells.all_inner_texts() if re.match(r"[+−]?[\d,.]+\b", text)]
                if column > 1 and numbers:
                    assert set(cells.evaluate_all("all => all.map(each => getComputedStyle(each).textAlign)")) == {
                        "right"
                    }, name
                    decimals = {len(re.match(r"[+−]?[\d,]+\.?(\d*)", text)[1]) for text in numbers}
                    assert len(decimals) == 1, (name, numbers)


@pytest.mark.slow
@needs_chromium
def test_on_paper_intervals_are_no_larger_than_means_and_a_table_stays_together(finished: Clone, browser: Any) -> None:
    with opened(browser, finished, 1280) as page:
        page.emulate_media(media="print")
        size = "each => parseFloat(getComputedStyle(each).fontSize)"
        for interval in page.locator("td .faint").all():
            assert interval.evaluate(size) <= interval.locator("xpath=ancestor::td").evaluate(size)
        for table in page.locator("table").all():
            assert table.evaluate("table => getComputedStyle(table).breakInside") == "avoid"
        page.set_viewport_size({"width": 680, "height": 1000})  # an A4 sheet between margins of 15 mm
        assert page.evaluate("document.documentElement.scrollWidth") <= 680


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(finished: Clone, browser: Any, scheme: str) -> None:
    with opened(browser, finished, 1280, color_scheme=scheme) as page:
        for element in page.locator("p, dt, dd, th, td, caption, a, .badge, figcaption, pre").all():
            ink, behind = element.evaluate(
                """element => {
                    let behind = element, color = each => getComputedStyle(each).backgroundColor
                    while (behind && color(behind) == 'rgba(0, 0, 0, 0)') behind = behind.parentElement
                    return [getComputedStyle(element).color, behind ? color(behind) : 'rgb(255, 255, 255)']
                }"""
            )
            assert contrast(ink, behind) >= 4.5, element.inner_text()  # WCAG 2.1, 1.4.3
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(paper) < 0.05) == (scheme == "dark")


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two CSS colours."""
    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    """WCAG's relative luminance of a CSS colour rgb(...)."""
    values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
