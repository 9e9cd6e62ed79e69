"""The page of `lottery demo`: what becomes of a drawing, what is said of it, and the real page in headless Chromium."""

import base64
import io
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from clones import SMALL, Clone
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_ticket import images, logits_of, make

from lottery import cli, params
from lottery.core.images import Images, Split
from lottery.core.layout import perceptron, published
from lottery.demo.frame import Frame, Pixels, as_ink
from lottery.demo.networks import Network
from lottery.demo.page import Demo
from lottery.files.data import load_test

try:
    from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
except ImportError:
    pytest.skip("playwright is missing: pip install '.[dev]'", allow_module_level=True)
pytest.importorskip("gradio", reason="gradio is missing: pip install '.[demo]'")

CHROMIUM = shutil.which("chromium")
PATIENCE = 60  # seconds
LEVELS = ["dense", "p50", "p75", "p80-at-once"]
MNIST = Frame(28, 20.0, (14.0, 14.0))
VERTICAL = [(0.5, 0.15), (0.5, 0.85)]  # a stroke's ends, in sides of the pad


# --- a drawing as an image -------------------------------------------------------------------------------------------


def pasted(image: Pixels, times: int, top: int, left: int, side: int = 500) -> Pixels:
    """A drawing [side, side] with an image somewhere, each pixel of it this many times as long."""
    drawing, large = np.zeros((side, side), np.uint8), image.repeat(times, axis=0).repeat(times, axis=1)
    drawing[top : top + len(large), left : left + large.shape[1]] = large
    return drawing


@given(st.integers(2, 12), st.integers(0, 160), st.integers(0, 160))
def test_neither_the_size_nor_the_place_of_a_drawing_matters(times: int, top: int, left: int) -> None:
    one = np.zeros((28, 28), np.uint8)
    one[3:23, 10:14] = one[3:6, 6:14] = 255
    image, expected = MNIST(pasted(one, times, top, left)), MNIST(one)
    assert image is not None
    assert expected is not None
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1


def test_a_drawing_fills_the_frame_keeps_its_shape_and_lies_by_its_centre_of_mass() -> None:
    drawing = np.zeros((300, 500), np.uint8)
    drawing[40:240, 400:450] = 255  # 4 times as high as wide
    image = MNIST(drawing)
    assert image is not None
    rows, columns = image.sum(axis=1, dtype=float) / (5 * 255), image.sum(axis=0, dtype=float) / (20 * 255)
    assert rows.sum() == pytest.approx(20, abs=0.2)
    assert columns.sum() == pytest.approx(5, abs=0.1)
    assert rows.max() == pytest.approx(1, abs=0.02)
    for line in (rows, columns):
        assert line @ np.arange(28) / line.sum() == pytest.approx(14, abs=0.02)
    assert {0, 255} < set(image.flat)  # its edges are grey


def test_no_ink_is_lost_where_the_centre_of_mass_is_far_off() -> None:
    drawing = np.zeros((200, 200), np.uint8)
    drawing[:, :4] = drawing[160:] = 255
    image = Frame(8, 8.0, (3.5, 3.5))(drawing)  # from edge to edge
    assert image is not None
    assert image.sum() == pytest.approx(drawing.sum() * (8 / 200) ** 2, rel=0.02)


def test_nothing_drawn_is_no_image() -> None:
    assert MNIST(np.zeros((280, 280), np.uint8)) is None


def test_an_empty_image_is_left_out() -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    images[1:, 2:6, 3:5] = 255
    assert Frame.of(images) == Frame.of(images[1:])


def test_a_frame_is_measured_on_images(digits: tuple[Split, Images]) -> None:
    frame = Frame.of(digits[0].train.pixels.numpy().reshape(-1, 8, 8))
    assert (frame.side, frame.fit) == (8, 8.0)
    assert frame.centre == pytest.approx((3.5, 3.5), abs=0.2)
    two = np.zeros((2, 28, 28), np.uint8)
    two[0, 4:24, 12:17] = two[1, 12:17, 4:24] = 9
    assert Frame.of(two) == Frame(28, 20.0, (13.75, 13.75))


def agreement(demo: Demo, file: Path, largest: int, count: int = 300) -> list[float]:
    """How often each network says the same of a test image and of a drawing of it, at any size and place."""
    tests = load_test(file).pixels[:count].numpy().reshape(-1, demo.frame.side, demo.frame.side)
    draws, drawn = np.random.default_rng(0), []
    for image in tests:
        times = int(draws.integers(largest // 3, largest + 1))
        top, left = draws.integers(0, 500 - times * len(image), 2)
        drawn.append(demo.frame(pasted(image, times, top, left)))
    said = [[network.logits(np.stack(each)).argmax(axis=1) for each in (tests, drawn)] for network in demo.networks]
    return [float((before == after).mean()) for before, after in said]


def test_test_images_that_are_drawn_are_classified_as_before(finished: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    assert min(agreement(Demo.of(params.load()), Path("data/digits.safetensors"), largest=50)) > 0.95


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_pixel_that_no_output_depends_on_is_not_read() -> None:
    ticket = make(perceptron((64, 32, 10)), 0.5)
    first, second = ticket.masks["layer0.weight"], ticket.masks["layer1.weight"]
    first[0] = False
    first[1] = False
    first[1, 7] = True  # to a unit that leads nowhere
    second[7] = False
    kept = Network.of(ticket).connections
    assert kept.shape == (8, 8)
    assert (kept[0, 0], kept[0, 1]) == (0, 0)
    assert np.array_equal(kept.flat[2:], first[2:].sum(axis=1))


def test_a_lenet_5_answers_as_its_module_and_reads_each_pixel_at_every_place_of_its_kernels() -> None:
    ticket = make(published("lenet-5", (28, 28), 10), 0.3)
    network = Network.of(ticket)
    assert np.array_equal(network.logits(images(ticket)), logits_of(ticket))
    kernels = torch.from_numpy(ticket.masks["convolution1.weight"]).float()
    pixels = torch.zeros(1, 1, 28, 28, requires_grad=True)
    torch.nn.functional.conv2d(pixels, kernels).sum().backward()
    assert pixels.grad is not None
    assert np.array_equal(network.connections, pixels.grad[0, 0].numpy())


def told(*classes: int) -> Demo:
    """A page whose networks, half as dense each as the one before, say these classes, whatever is drawn."""

    def says(which: int) -> NDArray[np.float32]:
        return np.eye(10, dtype=np.float32)[[which]] * 5

    connections = np.ones((28, 28), np.int64)
    connections[14, 14] = 0
    networks = [
        Network(f"level{place}", 100 / 2**place, 98.0, lambda _, which=which: says(which), connections)  # type: ignore[misc]
        for place, which in enumerate(classes)
    ]
    return Demo("mnist", MNIST, networks, [str(number) for number in range(10)])


def address(ink: Pixels) -> str:
    """A drawing as the pad gives it: its ink in the alpha channel, of any colour."""
    content = io.BytesIO()
    Image.merge("RGBA", [Image.new("L", ink.shape[::-1], 99)] * 3 + [Image.fromarray(ink)]).save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def drawing() -> Pixels:
    ink = np.zeros((280, 280), np.uint8)
    ink[40:240, 120:160] = 255
    return ink


def test_the_ink_of_a_drawing_is_what_covers_the_pad() -> None:
    assert np.array_equal(as_ink(address(drawing())), drawing())


def test_a_ticket_that_says_something_else_than_dense_is_marked() -> None:
    _, chosen, every = told(3, 3, 8).answer(address(drawing()), 25.0)
    cards = every.split("<section")[1:]
    assert [re.findall(r"<strong>(.)</strong>", card) for card in cards] == [["3"], ["3"], ["8"]]
    assert ["dense says 3" in card for card in cards] == [False, False, True]
    assert "dense says 3" in chosen
    assert "94.3 %" in chosen  # e^5 / (e^5 + 9)


@pytest.mark.parametrize(("density", "level"), [(0, 2), (24, 2), (38, 1), (70, 1), (76, 0), (100, 0)])
def test_the_slider_chooses_the_nearest_level(density: float, level: int) -> None:
    _, chosen, every = told(3, 3, 8).answer("", density)
    assert f'data-level="level{level}"' in chosen
    assert re.findall(r'class="card current" data-level="(\w+)"', every) == [f"level{level}"]


@pytest.mark.parametrize("pad", ["", None, address(np.zeros((280, 280), np.uint8))])
def test_of_nothing_nothing_is_said(pad: str | None) -> None:
    _, chosen, every = told(3, 8).answer(pad, 50.0)
    assert re.findall(r"<strong>(.)</strong>", chosen + every) == ["–"] * 3
    assert "dense says" not in chosen + every


def test_ink_on_a_pixel_that_is_not_read_has_a_colour_of_its_own() -> None:
    image = MNIST(drawing())
    assert image is not None
    picture = told(1).networks[0].picture(image)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
    assert pixels[14, 14].tolist() == [213, 94, 0]
    assert pixels[14, 13].tolist() == [255, 255, 255]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The line that `lottery demo` ends with."""
    assert cli.main(["demo", *options]) == 2
    line, end, rest = capsys.readouterr().err.partition("\n")
    assert (end, rest) == ("\n", "")
    return line


def test_a_port_that_is_taken_is_one_line(
    finished: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused(capsys, "--port", port)
    assert line == f"lottery demo: --port {port}: [Errno 98] Address already in use; choose another"
    assert refused(capsys, "--port", "99999").startswith("lottery demo: --port 99999: ")


def test_without_gradio_one_line_says_how_it_comes(
    finished: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.folder)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused(capsys).startswith("lottery demo: gradio is not installed; `make demo` installs it")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("models/p75", "models/p75/masks.safetensors: missing; `dvc repro` makes it"),
        ("data/digits.safetensors", "data/digits.safetensors: missing; `dvc repro` makes it"),
        ("reports/tables/networks.csv", "reports/tables/networks.csv: missing; `dvc repro` makes it"),
    ],
)
def test_an_output_that_is_missing_is_one_line(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, line: str, port: int
) -> None:
    monkeypatch.chdir(clone.folder)
    (clone.folder / path).rename(clone.folder / "elsewhere")
    assert refused(capsys, "--port", str(port)).startswith(line)


def test_levels_of_other_parameters_are_refused(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: int
) -> None:
    monkeypatch.chdir(clone.folder)
    clone.change(network=SMALL["network"] | {"hidden": [32, 15]})
    assert refused(capsys, "--port", str(port)).startswith("models/dense: has network 64-32-16-10, but params.yaml")


def start(clone: Clone, port: int) -> subprocess.Popen[str]:
    """`lottery demo` once it has said where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lottery.cli", "demo", "--port", str(port)],
        cwd=clone.folder,
        env=clone.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == f"Demo: http://127.0.0.1:{port}\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_one_line_more_and_nothing_is_left(
    finished: Clone, port: int, name: signal.Signals
) -> None:
    process = start(finished, port)
    with socket.create_connection(("127.0.0.1", port)) as visitor:  # as a page that is open
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        listening = [each for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"]
        assert [tuple(each.laddr) for each in listening] == [("127.0.0.1", port)]
        process.send_signal(name)
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors) == (0, "\nDemo: ended\n", "")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert list((finished.folder / ".lottery/tmp").glob("*/")) == []


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(finished: Clone) -> Iterator[str]:
    """The address of a `lottery demo` that runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start(finished, port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    assert process.communicate(timeout=PATIENCE)[1] == ""  # no error while it served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, which asks no other host for anything and has no error."""
    page, foreign, errors = browser.new_page(viewport={"width": 1280, "height": 900}), [], []
    page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or foreign.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.locator("#every .card")).to_have_count(len(LEVELS))
    yield page
    page.close()
    assert (foreign, errors) == ([], [])


def move(page: Page, ends: list[tuple[float, float]]) -> None:
    """Press the mouse at the first end, and move it to the other."""
    box = page.locator("#pad canvas").bounding_box()
    assert box
    (x, y), (to_x, to_y) = ((box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in ends)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=12)


def said(page: Page) -> Locator:
    return page.locator("#every .said strong")


@pytest.mark.slow
def test_networks_answer_while_the_pen_is_down_and_say_nothing_after_a_clear(page: Page) -> None:
    expect(said(page)).to_have_text(["–"] * len(LEVELS))
    pictures = page.locator("#every img")
    empty = pictures.nth(3).get_attribute("src")
    move(page, VERTICAL)
    expect(said(page).first).to_have_text("1")  # and the button is not up yet
    expect(said(page)).to_have_text([re.compile(r"\d")] * len(LEVELS))
    expect(pictures.nth(3)).not_to_have_attribute("src", empty or "")
    page.mouse.up()
    assert page.locator("#every .bars li.first").count() == len(LEVELS)
    page.get_by_role("button", name="Clear").click()
    expect(said(page)).to_have_text(["–"] * len(LEVELS))
    expect(pictures.nth(3)).to_have_attribute("src", empty or "")


@pytest.mark.slow
def test_strokes_add_up_to_a_drawing(page: Page) -> None:
    left, right, top, bottom = [(0.25, 0.3), (0.25, 0.7)], [(0.75, 0.3), (0.75, 0.7)], (0.5, 0.12), (0.5, 0.88)
    move(page, left)
    page.mouse.up()
    expect(said(page).first).to_have_text("1")
    for ends in (right, [left[0], top], [top, right[0]], [left[1], bottom], [bottom, right[1]]):
        move(page, ends)
        page.mouse.up()
    expect(said(page).first).to_have_text("0")


@pytest.mark.slow
def test_the_slider_shows_the_level_of_the_nearest_density(page: Page) -> None:
    card = page.locator("#chosen .card")
    expect(card).to_have_attribute("data-level", "p80-at-once")  # the sparsest
    slider = page.locator("#density input[type=range]").bounding_box()
    assert slider
    page.mouse.click(slider["x"] + 0.52 * slider["width"], slider["y"] + slider["height"] / 2)
    expect(card).to_have_attribute("data-level", "p50")
    expect(page.locator("#every .current")).to_have_attribute("data-level", "p50")
    move(page, VERTICAL)
    page.mouse.up()
    expect(card.locator(".said strong")).to_have_text(re.compile(r"\d"))
    expect(card).to_have_attribute("data-level", "p50")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 700, 390])
def test_nothing_of_the_page_is_cut_off_in_a_narrow_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    move(page, VERTICAL)
    page.mouse.up()
    expect(said(page).first).to_have_text("1")
    for part in ("#pad canvas", "#seen img", "#density", "#chosen .card", "#every .card >> nth=3"):
        box = page.locator(part).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.slow
def test_a_page_in_dark_mode_has_light_ink_and_the_same_answers(browser: Browser, url: str) -> None:
    pages = [browser.new_page(color_scheme=scheme) for scheme in ("light", "dark")]
    for page, is_light in zip(pages, (False, True), strict=True):
        page.goto(url)
        expect(page.locator("#every .card")).to_have_count(len(LEVELS))
        move(page, VERTICAL)
        page.mouse.up()
        expect(said(page).first).to_have_text("1")
        ink = page.locator("#pad canvas").evaluate("canvas => getComputedStyle(canvas).color")
        assert (min(map(int, re.findall(r"\d+", ink))) > 128) is is_light
    light, dark = (page.locator("#seen img") for page in pages)
    expect(dark).to_have_attribute("src", light.get_attribute("src") or "")
    for page in pages:
        page.close()
