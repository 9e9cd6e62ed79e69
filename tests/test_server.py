"""The team's server: real PostgreSQL, a real `lottery server`, and the pipeline on digits tracked through it."""

import os
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import teams
from clones import SMALL, Clone
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from stores import PATIENCE
from teams import DATABASE_PASSWORD, PASSWORDS, SECRET_KEY, become, credentials, processes, serving

from lottery import server as module
from lottery.cli import main
from lottery.server import Server, allowed_hosts, allowed_origins, basic_auth, command

NAME = "mlflow.example.org"
database = teams.database  # a fixture


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def team(database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server as behind a proxy: on 127.0.0.1, with a name, and so with accounts. Its address and its folder."""
    folder = tmp_path_factory.mktemp("team")
    options = ["--allowed-hosts", NAME, "--default-permission", "READ", "--workers", "1"]
    with serving(database, folder, *options) as (address, process):
        told = "\0".join(word for one in processes(process) for word in one.cmdline())
        (folder / "told").write_text(told)
        yield address, folder


@pytest.fixture(scope="module")
def address(team: tuple[str, Path]) -> str:
    """The address, with accounts for two colleagues."""
    with pytest.MonkeyPatch.context() as environment:
        become(environment, "admin")
        accounts = get_app_client("basic-auth", tracking_uri=team[0])
        for name in ("ann", "bob"):
            accounts.create_user(name, PASSWORDS[name])
    return team[0]


def ask(address: str, name: str | None = None, **headers: str) -> int:
    """The status of a search for runs, as the page sends it."""
    return requests.post(
        f"{address}/ajax-api/2.0/mlflow/runs/search",
        json={"experiment_ids": ["0"]},
        auth=(name, PASSWORDS[name]) if name else None,
        headers=headers,
        timeout=PATIENCE,
    ).status_code


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(
            ["--single-item", "evaluate"], id="evaluate", marks=pytest.mark.slow
        ),  # which tracks what it misses: here everything
        pytest.param([], id="everything", marks=pytest.mark.slow),
    ],
)
def test_the_pipeline_is_tracked_through_the_server(
    what: list[str], address: str, team: tuple[str, Path], clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone.folder / "mlflow.db").unlink()
    shutil.rmtree(clone.folder / "mlartifacts")
    name = " ".join(["through the server", *what])
    clone.change(tracking={"mlflow_experiment": name})
    done = subprocess.run(
        ["dvc", "repro", "--force", *what],
        cwd=clone.folder,
        # a request's 2 s are tested elsewhere: here a slow machine loses nothing either
        env=clone.environment
        | {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
        | credentials("ann"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "untracked" not in done.stderr
    assert not (clone.folder / "mlflow.db").exists()
    assert not (clone.folder / "mlartifacts").exists()

    become(monkeypatch, "ann")
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    networks = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    arms = Counter(run.data.params["arm"] for run in networks)
    each = len(SMALL["levels"]) * len(SMALL["train"]["seeds"])
    assert arms == {"dense": 2, "ticket": each, "reinit": each, "random": each}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in networks:
        assert 0 < run.data.metrics["test_accuracy"] <= 1
        # the server's word for its own folder: a client gets no path and no credentials
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert {file.path for file in client.list_artifacts(run.info.run_id, "mask")} == {
            "mask/mask.png",
            "mask/mask.safetensors",
        }
    run_id = networks[0].info.run_id
    (kept,) = (team[1] / "mlartifacts").rglob(f"{run_id}/artifacts/mask/mask.safetensors")
    assert Path(client.download_artifacts(run_id, "mask/mask.safetensors")).read_bytes() == kept.read_bytes()


def test_nobody_comes_in_without_an_account(address: str) -> None:
    assert ask(address) == 401
    assert requests.get(f"{address}/", timeout=PATIENCE).status_code == 401
    first = f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0"
    wrong = requests.get(first, auth=("admin", "x"), timeout=PATIENCE)
    assert wrong.status_code == 401
    assert ask(address, "ann") == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": NAME}, 200),
        ({"Host": "localhost:1234"}, 200),  # an SSH tunnel's end
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "10.example.org"}, 403),  # MLflow's default lets it in, as a private address
        ({"Host": NAME, "Origin": f"https://{NAME}"}, 200),  # the server's own page
        ({"Host": NAME, "Origin": "https://evil.example.org"}, 403),
    ],
)
def test_another_hosts_name_and_another_pages_requests_are_refused(
    address: str, headers: dict[str, str], status: int
) -> None:
    assert ask(address, "ann", **headers) == status


def test_accounts_are_in_postgresql(address: str, team: tuple[str, Path], database: URL) -> None:
    engine = create_engine(database)
    with engine.connect() as connection:
        users = connection.execute(text("SELECT username, is_admin FROM users ORDER BY username")).all()
    engine.dispose()
    assert [tuple(user) for user in users] == [("admin", True), ("ann", False), ("bob", False)]
    assert not list(team[1].rglob("*.db"))


def test_a_new_account_has_the_default_permission(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(address)
    become(monkeypatch, "ann")
    experiment = client.create_experiment("ann's")
    run = client.create_run(experiment).info.run_id
    become(monkeypatch, "bob")
    assert client.get_run(run).info.run_id == run
    with pytest.raises(MlflowException, match="403"):
        client.create_run(experiment)
    become(monkeypatch, "admin")
    get_app_client("basic-auth", tracking_uri=address).grant_user_permission("bob", "experiment", experiment, "EDIT")
    become(monkeypatch, "bob")
    client.create_run(experiment)


def test_no_command_line_file_or_message_shows_a_secret(address: str, team: tuple[str, Path]) -> None:
    folder = team[1]
    (settings,) = (folder / ".lottery").glob("server-*.ini")
    seen = (folder / "told").read_text() + (folder / "log").read_text() + settings.read_text()
    assert "postgresql://lottery@127.0.0.1" in seen
    assert "mlflow.server.auth" in seen
    for secret in (DATABASE_PASSWORD, "p%40ss", PASSWORDS["admin"], SECRET_KEY):
        assert secret not in seen


@pytest.mark.parametrize(
    "stop",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda stop: stop.name,
)
def test_on_this_machine_alone_no_account_is_needed_and_a_signal_ends_all(
    database: URL, tmp_path: Path, stop: signal.Signals
) -> None:
    with serving(database, tmp_path) as (address, process):
        assert ask(address) == 200
        assert ask(address, Host=NAME) == 403
        family = processes(process)
        assert len(family) >= 4  # MLflow, its server and two workers
        listening = {
            place.laddr.ip for one in family for place in one.net_connections("inet") if place.status == "LISTEN"
        }
        assert listening == {"127.0.0.1"}
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)  # as a terminal does
        else:
            process.send_signal(stop)
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left
        assert "Traceback" not in (tmp_path / "log").read_text()


# --- what is refused -------------------------------------------------------------------------------------------------

GOOD = {
    "MLFLOW_BACKEND_STORE_URI": "postgresql://lottery:secret@127.0.0.1:9/lottery",  # nothing listens at port 9
    "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
    "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET_KEY,
}


def refusal(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **changes: str
) -> str:
    """The one line with which `lottery server` ends."""
    for variable in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(variable)
    for variable, value in (GOOD | changes).items():
        monkeypatch.setenv(variable, value)
    assert main(["server", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "secret" not in printed.err.replace("import secrets", "").replace("print(secrets", "")
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"MLFLOW_BACKEND_STORE_URI": ""}, "MLFLOW_BACKEND_STORE_URI is not set; name the team's database, such as "),
        ({"MLFLOW_BACKEND_STORE_URI": "secret"}, "MLFLOW_BACKEND_STORE_URI is no database's address; name the "),
        (
            {"MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db"},
            "MLFLOW_BACKEND_STORE_URI: sqlite is not for a team's server; name the team's database, such as ",
        ),
        ({}, "MLFLOW_BACKEND_STORE_URI: postgresql://lottery@127.0.0.1:9/lottery does not answer: "),
    ],
)
def test_a_database_that_is_none_is_refused(
    changes: dict[str, str],
    start: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refusal([], monkeypatch, capsys, **changes).startswith(start)


@pytest.mark.parametrize(
    "options",
    [["--auth"], ["--host", "192.0.2.1"], ["--allowed-hosts", NAME], ["--host", "0.0.0.0", "--allowed-hosts", NAME]],
)
@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "MLFLOW_AUTH_ADMIN_PASSWORD is not set: "),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "eleven char"}, "MLFLOW_AUTH_ADMIN_PASSWORD has fewer than 12 characters: "),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "password1234"}, "MLFLOW_AUTH_ADMIN_PASSWORD is the password that older "),
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": ""}, "MLFLOW_FLASK_SERVER_SECRET_KEY is not set: "),
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 31}, "MLFLOW_FLASK_SERVER_SECRET_KEY has fewer than 32 characters: "),
    ],
)
def test_accounts_need_secrets_that_somebody_chose(
    options: list[str],
    changes: dict[str, str],
    start: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refusal(options, monkeypatch, capsys, **changes).startswith(start)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--host", "0.0.0.0"], "lottery server: --host 0.0.0.0 says no name; list those that clients use, such as "),
        (["--host", ""], "lottery server: --host (empty) says no name; "),
        (["--allowed-hosts", "*"], 'lottery server: --allowed-hosts: "*" is not a host name; write the names out, '),
        (["--allowed-hosts", "https://a.example"], 'lottery server: --allowed-hosts: "https://a.example" is not a '),
        (["--allowed-hosts", "a.example,"], 'lottery server: --allowed-hosts: "" is not a host name; '),
    ],
)
def test_a_name_that_is_none_is_refused(
    options: list[str],
    start: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refusal(options, monkeypatch, capsys).startswith(start)


def test_a_port_in_use_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_check_database", lambda uri: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refusal(["--port", port], monkeypatch, capsys)
    assert line == f"lottery server: --host 127.0.0.1 --port {port}: [Errno 98] Address already in use; choose another"


def test_without_the_extra_the_line_says_how_to_install_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "flask_wtf" else True)
    line = refusal(["--auth"], monkeypatch, capsys)
    assert line == (
        "lottery server: flask_wtf is not installed; `pip install -c constraints.txt -e '.[team]'` brings it"
    )


# --- what MLflow is told ---------------------------------------------------------------------------------------------


def test_names_are_answered_with_the_port_and_without_it() -> None:
    server = Server(host="0.0.0.0", port=5001, names=(NAME, "mlflow:443"))
    own = ["localhost", "127.0.0.1", "[::1]", "localhost:*", "127.0.0.1:*", "[[]::1]:*"]
    assert allowed_hosts(server) == [*own, "mlflow:443", NAME, f"{NAME}:5001"]
    assert allowed_hosts(Server()) == own
    assert allowed_hosts(Server(host="2001:db8::1"))[6:] == ["[2001:db8::1]", "[2001:db8::1]:5000"]
    assert allowed_origins(Server(host="192.0.2.1")) == [
        "https://192.0.2.1",
        "http://192.0.2.1",
        "https://192.0.2.1:5000",
        "http://192.0.2.1:5000",
    ]
    assert allowed_origins(Server()) == []


@pytest.mark.parametrize(
    ("server", "authenticated"),
    [
        (Server(), False),
        (Server(host="localhost"), False),
        (Server(host="::1"), False),
        (Server(accounts=True), True),
        (Server(names=(NAME,)), True),
        (Server(host="192.0.2.1"), True),
        (Server(host="127.example.org"), True),
        (Server(host="0.0.0.0", names=("localhost",)), True),
    ],
)
def test_accounts_are_on_beyond_this_machine(server: Server, authenticated: bool) -> None:
    assert server.authenticated == authenticated
    assert ("basic-auth" in command(server)) == authenticated


def test_mlflows_settings_file_escapes_the_address_and_omits_its_password() -> None:
    uri = URL.create("postgresql", "a@b", DATABASE_PASSWORD, "127.0.0.1", 5432, "lottery", {"sslrootcert": "/a%b"})
    assert basic_auth(uri, "EDIT").splitlines()[1:] == [
        "[mlflow]",
        "default_permission = EDIT",
        "database_uri = postgresql://a%%40b@127.0.0.1:5432/lottery?sslrootcert=%%2Fa%%25b",
        "auth_cache_ttl_seconds = 60",
    ]
