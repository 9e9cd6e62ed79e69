"""The champion over HTTP: a real `mlflow models serve` on a real store, asked what it should answer and what not."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import teams
from clones import ROOT, Clone
from mlflow.server import get_app_client
from sqlalchemy.engine import URL
from stores import PATIENCE, address, command, free_port, sync
from teams import become, credentials, processes

import lottery.ticket
from lottery.files.data import load_test

sys.path.append(str(ROOT))
from benchmarks.serving import load

CHAMPION = "models:/lottery-ticket@champion"
JSON = {"Content-Type": "application/json"}
database = teams.database  # a fixture


@dataclass(frozen=True)
class Served:
    """A served model: its address, its process, and the clone whose ticket it is."""

    address: str
    process: "subprocess.Popen[str]"
    clone: Clone

    @cached_property
    def images(self) -> np.ndarray:
        """The test images, uint8 [N, 8, 8]."""
        return load_test(self.clone.folder / "data/digits.safetensors").pixels.reshape(-1, 8, 8).numpy()

    @cached_property
    def logits(self) -> np.ndarray:
        """Their logits by numpy alone, [N, C]."""
        return lottery.ticket.load(self.clone.folder / "tickets/ticket.safetensors").logits(self.images)

    def ask(self, images: object) -> dict[str, Any]:
        """The predictions for images, which have to be some."""
        answer = self.post(json.dumps({"inputs": images}))
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"]

    def post(self, body: str | bytes, headers: dict[str, str] = JSON) -> requests.Response:
        return requests.post(f"{self.address}/invocations", data=body, headers=headers, timeout=PATIENCE)

    def is_right(self) -> bool:
        """Whether it answers a good request as it should."""
        return self.ask(self.images[:3].tolist())["class"] == self.logits[:3].argmax(1).tolist()


@contextmanager
def serving(clone: Clone, folder: Path, **variables: str) -> Iterator[Served]:
    """`mlflow models serve` as docs/serving.md has it, with its files in an empty folder."""
    port = free_port()
    where = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    own = {"TMPDIR": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"} | variables
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, *where],
            cwd=folder,
            env=clone.environment | own,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C reaches every process of the group, and not the tests'
        )
    served = Served(f"http://127.0.0.1:{port}", process, clone)
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_up(served.address):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield served
    finally:
        family = processes(process)
        process.terminate()
        for one in psutil.wait_procs(family, timeout=60)[1]:
            one.kill()
        process.wait()


def is_up(address: str) -> bool:
    try:
        return requests.get(f"{address}/ping", timeout=5).ok
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def promoted(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose ticket is the champion."""
    clone = Clone(tmp_path_factory.mktemp("promoted") / "clone")
    shutil.copytree(finished.folder, clone.folder, symlinks=True)
    command(clone, "promote", "candidate")
    return clone


@pytest.fixture(scope="module")
def of_file(promoted: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The champion of the clone's SQLite file."""
    with serving(promoted, tmp_path_factory.mktemp("served"), MLFLOW_TRACKING_URI=address(promoted)) as served:
        yield served


@pytest.fixture(scope="module")
def of_team(promoted: Clone, database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The champion of a team's server, which knows a colleague by her account; she synced, promoted and serves it."""
    with teams.serving(database, tmp_path_factory.mktemp("team"), "--auth", "--workers", "1") as (uri, _):
        with pytest.MonkeyPatch.context() as environment:
            become(environment, "admin")
            get_app_client("basic-auth", tracking_uri=uri).create_user("ann", teams.PASSWORDS["ann"])
        ann = credentials("ann") | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
        sync(promoted, **ann)
        command(promoted, "promote", "candidate", **ann)
        with serving(promoted, tmp_path_factory.mktemp("served"), **ann) as served:
            yield served


@pytest.fixture(params=["of_file", pytest.param("of_team", marks=pytest.mark.slow)])
def served(request: pytest.FixtureRequest) -> Served:
    """A served champion: of a SQLite file, and of a team's server."""
    found: Served = request.getfixturevalue(request.param)
    return found


# --- what is answered ------------------------------------------------------------------------------------------------


def test_every_test_image_gets_the_class_that_the_exported_file_gives_it(served: Served) -> None:
    answer = served.ask(served.images.tolist())
    assert answer["class"] == served.logits.argmax(1).tolist()
    shares = np.exp(served.logits - served.logits.max(1, keepdims=True))
    assert np.allclose(answer["softmax"], shares / shares.sum(1, keepdims=True), atol=1e-5)


def test_an_image_alone_gets_the_answer_that_it_gets_among_others(served: Served) -> None:
    together = served.ask(served.images[:5].tolist())
    for place, image in enumerate(served.images[:5]):
        alone = served.ask([image.tolist()])
        assert alone["class"] == together["class"][place : place + 1]
        assert np.allclose(alone["softmax"][0], together["softmax"][place], atol=1e-6)


def test_a_thousand_images_at_once_are_answered(served: Served) -> None:
    chosen = np.random.default_rng(0).integers(len(served.images), size=1000)
    answer = served.ask(served.images[chosen].tolist())
    assert answer["class"] == served.logits[chosen].argmax(1).tolist()


def test_whole_numbers_may_be_written_as_fractions_and_inputs_called_instances(served: Served) -> None:
    floats = json.dumps({"instances": served.images[:3].astype(float).tolist()})
    assert served.post(floats).json()["predictions"]["class"] == served.logits[:3].argmax(1).tolist()


def test_it_listens_on_this_machine_alone(served: Served) -> None:
    family = processes(served.process)
    listening = {place.laddr.ip for one in family for place in one.net_connections("inet") if place.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


# --- what is refused -------------------------------------------------------------------------------------------------


def image(pixel: object = 0) -> list[list[object]]:
    """A black image but for one pixel."""
    rows: list[list[object]] = [[0] * 8 for _ in range(8)]
    rows[3][4] = pixel
    return rows


def inputs(value: object) -> str:
    return json.dumps({"inputs": value})


BETWEEN = "images: a pixel is no whole number from 0 to 255"
SHAPE = "does not match expected shape"
ONE_FIELD = "The input must be a JSON dictionary with exactly one of the input fields"
BROKEN = "Ensure that input is a valid JSON formatted string"
REFUSED = {
    "another size": (inputs([[[0] * 28] * 28]), SHAPE),
    "an image without its list": (inputs(image()), SHAPE),
    "a list too many": (inputs([[image()]]), SHAPE),
    "no images": (inputs([]), "Failed to enforce schema"),
    "an empty image": (inputs([[]]), SHAPE),
    "images of two sizes": (inputs([image(), image()[:7]]), "inhomogeneous shape"),
    "rows of two lengths": (inputs([[*image()[:7], [0] * 7]]), "inhomogeneous shape"),
    "text": (inputs("seven"), "Failed to convert data"),
    "text in an image": (inputs([image("seven")]), "could not convert string to float"),
    "NaN": (inputs([image(float("nan"))]), BETWEEN),
    "null in an image": (inputs([image(None)]), BETWEEN),
    "infinity": (inputs([image(777)]).replace("777", "1e400"), BETWEEN),
    "minus infinity": (inputs([image(777)]).replace("777", "-1e400"), BETWEEN),
    "a number that no float holds": (inputs([image(10**400)]), "int too large to convert to float"),
    "256": (inputs([image(256)]), BETWEEN),
    "300": (inputs([image(300)]), BETWEEN),
    "-1": (inputs([image(-1)]), BETWEEN),
    "0.5": (inputs([image(0.5)]), BETWEEN),
    "one bad image among good ones": (inputs([image(), image(300), image()]), BETWEEN),
    "null": ("null", ONE_FIELD),
    "null for images": (inputs(None), "Failed to parse input data"),
    "a list": (json.dumps([image()]), ONE_FIELD),
    "another field": (json.dumps({"images": [image()]}), ONE_FIELD),
    "two fields": (json.dumps({"inputs": [image()], "instances": [image()]}), ONE_FIELD),
    "names": (inputs({"images": [image()]}), "Failed to parse input data"),
    "a table": (json.dumps({"dataframe_split": {"columns": ["a"], "data": [[1]]}}), "Failed to enforce schema"),
    "broken JSON": ('{"inputs": [[', BROKEN),
    "nothing": ("", BROKEN),
    "bytes": (b"\x89PNG\r\n\x1a\n", BROKEN),
}


@pytest.mark.parametrize(("body", "why"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_with_the_reason_and_the_next_is_answered(
    served: Served, body: str | bytes, why: str
) -> None:
    answer = served.post(body)
    assert answer.status_code == 400
    assert why in answer.json()["message"]
    assert served.is_right()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415),
        ("image/png", 415),
        ("application/octet-stream", 415),
        ("application/json; charset=latin-1", 415),
        ("text/csv", 400),  # a table, of which MLflow can make no images
    ],
)
def test_another_kind_of_content_is_refused_and_the_next_request_is_answered(
    served: Served, kind: str, status: int
) -> None:
    assert served.post(inputs([image()]), {"Content-Type": kind}).status_code == status
    assert served.is_right()


@pytest.mark.parametrize(
    ("body", "headers"),
    [(inputs([image()]).encode(), {}), ('{"inputs": ' + "[" * 100_000 + "]" * 100_000 + "}", JSON)],
    ids=["no kind of content", "lists in lists in lists"],
)
def test_what_mlflow_itself_stumbles_over_gets_an_error_and_the_next_request_is_answered(
    served: Served, body: str | bytes, headers: dict[str, str]
) -> None:
    assert served.post(body, headers).status_code in (400, 415, 500)
    assert served.is_right()


def test_a_client_that_hangs_up_in_the_midst_of_a_request_costs_nobody_else_an_answer(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
            client.sendall(b'Content-Length: 1000000\r\n\r\n{"inputs": [')
    assert served.is_right()


# --- how it ends, and how it is put to use ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=lambda stop: stop.name)
def test_a_signal_ends_it_and_leaves_no_process(promoted: Clone, tmp_path: Path, stop: signal.Signals) -> None:
    with serving(promoted, tmp_path, MLFLOW_TRACKING_URI=address(promoted)) as served:
        family = processes(served.process)
        assert len(family) >= 2  # MLflow and its server
        if stop == signal.SIGINT:
            os.killpg(served.process.pid, stop)  # as a terminal does
        else:
            served.process.send_signal(stop)
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left
        assert not is_up(served.address)


@pytest.mark.slow
def test_without_a_champion_it_does_not_start_and_says_why(finished: Clone, tmp_path: Path) -> None:
    words = ["models", "serve", "-m", CHAMPION, "--env-manager", "local", "--port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *words],
        cwd=tmp_path,
        env=finished.environment | {"MLFLOW_TRACKING_URI": address(finished), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "Registered model alias champion not found." in done.stderr


@pytest.mark.slow
def test_a_load_of_four_connections_loses_no_request(of_file: Served) -> None:
    seconds = float(os.environ.get("LOTTERY_LOAD_SECONDS", "60"))
    answered = load(of_file.address, of_file.images, of_file.logits.argmax(1), seconds, connections=4)
    print(f"load: {answered}")
    assert len(answered.times) >= 4
    assert of_file.is_right()


@pytest.mark.slow
def test_the_proxy_of_the_documentation_refuses_a_request_that_is_too_large(of_file: Served, tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed here: `apt-get install nginx-light`")
    (settings,) = (
        block.partition("\n```")[0] for block in (ROOT / "docs/serving.md").read_text().split("```nginx\n")[1:]
    )
    port = free_port()
    for documented, own in (("127.0.0.1:8080", f"127.0.0.1:{port}"), ("http://127.0.0.1:5001", of_file.address)):
        assert documented in settings
        settings = settings.replace(documented, own)
    (tmp_path / "nginx.conf").write_text(settings)
    (tmp_path / "nginx").mkdir()
    start = [nginx, "-e", "stderr", "-p", str(tmp_path), "-c", "nginx.conf"]
    assert subprocess.run([*start, "-t"], capture_output=True).returncode == 0
    with subprocess.Popen(start, stderr=subprocess.DEVNULL) as process:
        try:
            proxied = Served(f"http://127.0.0.1:{port}", process, of_file.clone)
            deadline = time.monotonic() + PATIENCE
            while not opens(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            chosen = np.random.default_rng(0).integers(len(proxied.images), size=1000)
            assert proxied.ask(proxied.images[chosen].tolist())["class"] == proxied.logits[chosen].argmax(1).tolist()
            thousand = np.resize(of_file.images, (1000, 28, 28))  # as large as MNIST's, which this ticket cannot read
            assert proxied.post(inputs(thousand.tolist())).status_code == 400
            assert proxied.post(inputs(thousand.repeat(4, axis=0).tolist())).status_code == 413
            assert requests.get(f"{proxied.address}/docs", timeout=PATIENCE).status_code == 404
            assert proxied.is_right()
        finally:
            process.terminate()


def opens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
