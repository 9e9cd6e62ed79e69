"""A team's server as it runs for real: a PostgreSQL of its own, and `lottery server` in front of it."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from stores import PATIENCE, free_port, is_up

PASSWORDS = {"admin": "an administrator's", "ann": "a colleague's one", "bob": "another colleague's"}
DATABASE_PASSWORD = "100 %/p@ss:word"  # every character that an address has to escape
SECRET_KEY = "0123456789abcdef0123456789abcdef"


def wait_for(ready: Callable[[], bool], process: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps out of the PATH; of several versions the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    elsewhere = shutil.which("initdb")
    return found[-1].parent if found else Path(elsewhere).resolve().parent if elsewhere else None


@pytest.fixture(scope="module")
def database() -> Iterator[URL]:
    """An empty database on a PostgreSQL of its own, which ends with the tests."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed here: `apt-get install postgresql`")
    become: list[str] = []
    # not pytest's folder, which nobody else may enter: PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory(prefix="postgresql-") as parent:
        data = Path(parent) / "data"
        data.mkdir(mode=0o700)
        password = Path(parent) / "password"
        password.write_text(DATABASE_PASSWORD)
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip(
                    "PostgreSQL refuses to run as root, and there is no setpriv here: `apt-get install util-linux`"
                )
            users = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            Path(parent).chmod(0o711)
            for path in (data, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        make = ["-D", str(data), "-U", "lottery", f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "-N"]
        made = subprocess.run(
            [*become, str(folder / "initdb"), *make, "--locale=C"], cwd=parent, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stdout + made.stderr
        port = free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log = Path(parent) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*become, str(folder / "postgres"), "-D", str(data), *words],
                cwd=parent,
                stdout=output,
                stderr=output,
                text=True,
            )
        try:
            ask = [str(folder / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_for(lambda: subprocess.run(ask).returncode == 0, process, log)
            first = URL.create("postgresql", "lottery", DATABASE_PASSWORD, "127.0.0.1", port, "postgres")
            engine = create_engine(first, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text("CREATE DATABASE lottery"))
            engine.dispose()
            yield first.set(database="lottery")
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown, which waits for no client
            process.wait(PATIENCE)


@contextmanager
def serving(database: URL, folder: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`lottery server` in an empty folder: its address and its process."""
    port = free_port()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "PG"))}
    variables |= {
        "MLFLOW_BACKEND_STORE_URI": database.render_as_string(hide_password=False),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET_KEY,
    }
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lottery.cli", "server", "--port", str(port), *options],
            cwd=folder,
            env=variables,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C reaches every process of the group, and not the tests'
        )
    address = f"http://127.0.0.1:{port}"

    try:
        wait_for(lambda: is_up(address), process, log)
        yield address, process
    finally:
        family = processes(process)
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=60)
        for one in left:
            one.kill()


def processes(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """A process and all below it."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def become(environment: pytest.MonkeyPatch, name: str) -> None:
    for variable, value in credentials(name).items():
        environment.setenv(variable, value)


def credentials(name: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": PASSWORDS[name]}
