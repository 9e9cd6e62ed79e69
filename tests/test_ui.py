"""What a person sees in MLflow: the real UI in headless Chromium, at the address that `lottery ui` prints."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pandas as pd
import pytest
from clones import ROOT, SMALL, Clone
from stores import name, runs, store

from lottery.params import load

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install '.[dev]'")
Page, expect = playwright.Page, playwright.expect

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium"),
]
ARMS = SMALL["prune"]["arms"]
PATIENCE = 60  # seconds
SHAPES = "paths => paths.map(path => path.getAttribute('d'))"
EARLIER = ["download", "dense", "p50", "p75", "p80-at-once", "evaluate", "export", "plot"]
STAGES = [*EARLIER, "p80-at-once", "evaluate"]
CURRENT = ["download", "dense", "p50", "p75", "p80-at-once", "evaluate"]  # stages of the later pipeline


@pytest.fixture(scope="module")
def pipelines(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose store has two pipelines, which differ in one level."""
    folder = tmp_path_factory.mktemp("ui") / "clone"
    shutil.copytree(finished.folder, folder, symlinks=True)
    clone = Clone(folder)
    clone.change(levels=SMALL["levels"] | {"p80-at-once": {"sparsity": 0.9, "parent": "dense"}})
    assert clone.repro("evaluate") == ["prune@p80-at-once", "evaluate"]
    return clone


@pytest.fixture(scope="module")
def names_of(pipelines: Clone) -> dict[str, str]:
    """What the earlier and the current pipeline are called, in the names of their runs."""
    found = [run.data.params["pipeline"] for run in runs(store(pipelines)) if name(run) == "evaluate"]
    return dict(zip(("earlier", "current"), found, strict=True))


@pytest.fixture(scope="module")
def addresses(pipelines: Clone) -> Iterator[tuple[str, str]]:
    """What `lottery ui` prints on a free port, while it serves: the addresses of the pipeline's runs and of all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "lottery.cli", "ui", "--port", str(port)],
        cwd=pipelines.folder,
        env=pipelines.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        everything = process.stdout.readline().partition("; all runs: ")[2].strip()
        current = process.stdout.readline().removeprefix("MLflow UI: ").strip()
        for printed in (everything, current):
            assert printed.startswith(f"http://127.0.0.1:{port}/")
        yield current, everything
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    """Debian's Chromium, without a window."""
    expect.set_options(timeout=1000 * PATIENCE)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: playwright.Browser, addresses: tuple[str, str]) -> Iterator[Page]:
    """The current pipeline's address."""
    yield from opened(browser, addresses[0])


@pytest.fixture
def all_runs(browser: playwright.Browser, addresses: tuple[str, str]) -> Iterator[Page]:
    """The address of all runs."""
    yield from opened(browser, addresses[1])


def opened(browser: playwright.Browser, address: str) -> Iterator[Page]:
    """An address in a browser that never saw it, on a wide screen, with MLflow's assistant closed."""
    context = browser.new_context(viewport={"width": 1900, "height": 1000})
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.goto(address)
    expect(link(page, "download")).to_be_visible()
    page.get_by_role("button", name="Close", exact=True).click()
    yield page
    context.close()


def link(page: Page, what: str) -> playwright.Locator:
    """The link to a run, by its name without the pipeline."""
    return page.get_by_role("link", name=re.compile(rf"^{re.escape(what)} · [0-9a-f]{{8}}$"))


def column(page: Page, name: str) -> list[str]:
    """A column's text from top to bottom; of a run's name, the link."""
    cells = page.get_by_role("gridcell").and_(page.locator(f'[col-id="{name}"]'))
    texts = cells.evaluate_all(
        "cells => cells.map(cell => ["
        "  Number(cell.closest('[row-index]').getAttribute('row-index')),"
        "  (cell.querySelector('a, [title]') ?? cell).innerText.trim()"
        "])"
    )
    return [text for _, text in sorted(texts)]


def names(page: Page) -> list[str]:
    """The runs' names without the pipelines'."""
    return [text.partition(" · ")[0] for text in column(page, "attributes.`Run Name`")]


def numbers(page: Page, name: str) -> list[float]:
    """A column's numbers from top to bottom; not a number where it has none."""
    return [float(text) if re.fullmatch(r"[\d.]+", text) else float("nan") for text in column(page, name)]


def eventually(page: Page, read: Callable[[], object], expected: object) -> None:
    """The page shows what it should, though later than the click: it draws in its own time."""
    deadline = time.monotonic() + PATIENCE
    while read() != expected and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert read() == expected


def row(page: Page, name: str) -> playwright.Locator:
    """The first row of this name, of which a table with pinned columns has two parts."""
    return page.get_by_role("row").filter(has=link(page, name)).first


def unfold(page: Page, level: str) -> None:
    row(page, level).get_by_role("button").first.click()
    expect(link(page, f"{level} {ARMS[-1]} 1")).to_be_visible()


def test_the_address_opens_the_current_pipeline_and_another_all_runs(
    page: Page, all_runs: Page, names_of: dict[str, str]
) -> None:
    """The later pipeline shares all but one level with the earlier one, whose names these runs have."""
    eventually(page, lambda: names(page), CURRENT)
    whose = ["earlier"] * 4 + ["current"] * 2
    shown = [text.partition(" · ")[2] for text in column(page, "attributes.`Run Name`")]
    assert shown == [names_of[which] for which in whose]
    eventually(all_runs, lambda: names(all_runs), STAGES)


def test_levels_are_parents_in_the_pipelines_order_with_their_networks_below(page: Page, pipelines: Clone) -> None:
    eventually(page, lambda: names(page), CURRENT)
    unfold(page, "p75")
    networks = [f"p75 {arm} {seed}" for arm in ARMS for seed in (0, 1)]
    eventually(page, lambda: names(page), CURRENT[:4] + networks + CURRENT[4:])
    measured = pd.read_csv(pipelines.folder / "reports/tables/networks.csv").query("level == 'p75'")["test_accuracy"]
    eventually(page, lambda: numbers(page, "metrics.`test_accuracy`")[4:10], pytest.approx(list(measured)))


def test_a_levels_row_has_its_arms_mean_test_accuracies(page: Page, pipelines: Clone) -> None:
    measured = pd.read_csv(pipelines.folder / "reports/tables/levels.csv").set_index(["level", "arm"])
    for level, arm in [("dense", "dense"), *(("p75", arm) for arm in ARMS)]:
        mean, place = pytest.approx(measured.loc[(level, arm), "test_accuracy_mean"]), CURRENT.index(level)
        shown = f"metrics.`test_accuracy.{arm}`"
        eventually(page, lambda shown=shown, at=place: numbers(page, shown)[at : at + 1], [mean])


def test_dense_and_the_tickets_are_in_sight_on_a_first_visit(
    browser: playwright.Browser, addresses: tuple[str, str]
) -> None:
    """On a laptop, MLflow's assistant at the right and its banner above: neither covers what is compared."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    page = context.new_page()
    page.goto(addresses[0])
    for arm in ("dense", "ticket"):
        header = page.get_by_role("columnheader", name=f"test_accuracy.{arm}", exact=True).first
        expect(header).to_be_in_viewport(ratio=1)
    for stage in CURRENT:
        expect(link(page, stage)).to_be_in_viewport(ratio=1)
    context.close()


def test_dataset_source_and_duration_are_filled(page: Page) -> None:
    eventually(page, lambda: column(page, "params.`dataset`"), ["digits"] * len(CURRENT))
    eventually(page, lambda: column(page, "params.`learning_rate`"), ["-", *["0.01"] * (len(CURRENT) - 1)])
    page.locator(".ag-body-horizontal-scroll-viewport").first.evaluate("scroll => scroll.scrollTo(10_000, 0)")
    data_sets = ["digits"] * len(CURRENT)
    eventually(page, lambda: [text[: len("digits")] for text in column(page, "attributes.`Dataset`")], data_sets)
    sources = ["download", "train", "prune@p50", "prune@p75", "prune@p80-at-once", "evaluate"]
    eventually(page, lambda: column(page, "attributes.`Source`"), sources)
    filled = ["N"] * len(CURRENT)
    eventually(page, lambda: [re.sub(r"^[\d.]+(ms|s|min)$", "N", text) for text in column(page, "duration")], filled)


def test_nothing_is_beyond_the_first_page(page: Page) -> None:
    networks = len(SMALL["levels"]) * len(ARMS) * 2 + 2
    expect(page.get_by_text(f"{len(CURRENT) + networks} matching runs")).to_be_visible()
    expect(page.get_by_role("button", name="Load more")).to_have_count(0)


def test_the_default_pipeline_fits_the_first_page() -> None:
    params = load(ROOT / "params.yaml")
    networks = (len(params.levels) * len(params.prune.arms) + 1) * len(params.train.seeds)
    assert networks + len(["download", "dense", *params.levels, "evaluate", "export", "plot"]) < 100


def test_runs_are_grouped_by_level_and_arm_within_the_pipeline(page: Page) -> None:
    for parameter in ("level", "arm"):
        page.get_by_role("button", name=re.compile("^Group")).first.click()
        page.get_by_role("menuitemcheckbox", name=parameter, exact=True).click()
        page.keyboard.press("Escape")
    for level in ("p50", "p75", "p80-at-once"):
        for arm in ARMS:
            group = (
                page.get_by_role("row").filter(has_text=re.compile(rf"level: {level}.*arm: {arm}|{level}, {arm}")).first
            )
            expect(group).to_be_visible()


def test_charts_of_evaluate_have_one_line_a_pipeline(all_runs: Page, names_of: dict[str, str]) -> None:
    page = all_runs
    search = page.get_by_test_id("search-box")
    search.fill("attributes.run_name LIKE 'evaluate %'")
    search.press("Enter")
    expect(page.get_by_text("2 matching runs")).to_be_visible()
    page.locator("label").filter(has=page.locator("input[name=runs-view-mode][value=CHART]")).click()
    charts = page.get_by_test_id("experiment-view-compare-runs-card")
    # the tree has two leaves: a chart for each arm and path
    expect(charts).to_have_count(len(ARMS) * 2)
    for arm in ARMS:
        for leaf in ("p75", "p80-at-once"):
            chart = charts.filter(has_text=f"accuracy/{arm}.{leaf}")
            chart.scroll_into_view_if_needed()
            for pipeline in names_of.values():
                expect(chart.get_by_text(f"evaluate · {pipeline} (accuracy/{arm}.{leaf})")).to_have_count(1)
            # MLflow draws every line twice, as it is and smoothed, and later than the chart
            lines = chart.locator("path.js-line")
            expect(lines).to_have_count(4)
            # the pipelines have p75 in common
            different = 1 if leaf == "p75" else 2
            eventually(page, lambda lines=lines: len(set(lines.evaluate_all(SHAPES))), different)


def test_a_networks_page_shows_its_mask_large_enough_to_read(page: Page) -> None:
    unfold(page, "p75")
    link(page, "p75 ticket 0").click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("mask", exact=True).click()
    page.get_by_text("mask.png", exact=True).click()
    picture = page.get_by_role("img", name="mask/mask.png")
    expect(picture).to_be_in_viewport(ratio=1)

    def is_large() -> bool:
        box = picture.bounding_box()
        return bool(box) and min(box["width"], box["height"]) >= 280

    eventually(page, is_large, True)


def test_a_networks_page_begins_with_its_note_and_its_charts_with_its_curves(page: Page) -> None:
    unfold(page, "p75")
    link(page, "p75 ticket 0").click()
    expect(page.get_by_text("arm ticket, seed 0. It keeps ")).to_be_in_viewport()
    page.get_by_role("tab", name="Model metrics").click()
    charts = [page.get_by_text(title, exact=True).first for title in ("train_loss", "validation_loss", "censored")]
    for chart in charts[:2]:
        expect(chart).to_be_in_viewport()
    heights = [(chart.bounding_box() or {"y": 0})["y"] for chart in charts]
    assert heights[0] == heights[1] < heights[2]


def test_a_levels_page_has_its_verdict_and_evaluates_the_answer_and_the_path_to_the_report(page: Page) -> None:
    link(page, "p75").click()
    expect(page.get_by_text("undecided", exact=True)).to_have_count(2)  # one line per pipeline
    expect(page.get_by_text("Test accuracy differs from dense's by ").first).to_be_in_viewport()
    page.go_back()
    link(page, "evaluate").click()
    expect(page.get_by_text("No level is shown to have a winning ticket")).to_be_in_viewport()
    expect(page.get_by_text("reports/report.html", exact=True)).to_be_visible()


def test_five_networks_compare_with_their_parameters_side_by_side(page: Page) -> None:
    unfold(page, "p75")
    for network in (networks := [f"p75 {arm} {seed}" for arm in ARMS for seed in (0, 1)][:5]):
        row(page, network).get_by_role("checkbox", name=re.compile("row selection")).check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name="Comparing 5 Runs")).to_be_visible()
    for network in networks:
        expect(page.get_by_text(re.compile(rf"^{network} · [0-9a-f]{{8}}$"))).to_be_visible()
    parameters = {"arm": [each.split()[1] for each in networks], "seed": [each.split()[2] for each in networks]}
    for parameter, values in parameters.items():
        line = page.get_by_role("row").filter(has=page.get_by_text(parameter, exact=True))
        eventually(page, lambda line=line: line.first.inner_text().split(), [parameter, *values])
