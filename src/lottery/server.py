"""The team's MLflow server: runs and accounts in PostgreSQL, artifacts through the server.

Whoever can reach only 127.0.0.1 needs no account there; beyond that, nobody comes in without one. Secrets come from
the environment under the names that MLflow gives them, and no command line shows one.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lottery import LotteryError
from lottery.files.workplace import replacing, root

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SHORTEST = {"MLFLOW_AUTH_ADMIN_PASSWORD": 12, "MLFLOW_FLASK_SERVER_SECRET_KEY": 32}  # characters; 12 is MLflow's rule
# what older MLflow versions shipped, which MLflow refuses with a traceback
OLD_DEFAULT_PASSWORD = "password1234"  # noqa: S105  # known to all
# A password's hash is slow on purpose: 0.2 s a request, 0.01 s where it is remembered. The price is that another worker
# accepts for so long a password that was changed and an account that was deleted.
CACHE_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """The addresses of the server, and the requests that it answers."""

    host: str = "127.0.0.1"
    port: int = 5000
    names: tuple[str, ...] = ()  # the host names that clients use, beside this machine's own
    accounts: bool = False  # on 127.0.0.1 too
    default_permission: str = "EDIT"
    artifacts: str = ""  # a folder or an object store's URI; without one, mlartifacts at the root
    workers: int = 2

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server: no other address, and no other name through a proxy."""
        return _loopback(self.host) and not self.names

    @property
    def authenticated(self) -> bool:
        """Whether requests need an account."""
        return self.accounts or not self.local

    def __post_init__(self) -> None:
        if self.host in ("", "0", "0.0.0.0", "::") and not self.names:  # noqa: S104  # what is refused
            raise LotteryError(
                f"lottery server: --host {self.host or '(empty)'} says no name; list those that clients use, such as "
                "--allowed-hosts mlflow.example.org"
            )
        for name in self.names:
            if not name or "*" in name or "/" in name or "," in name:
                raise LotteryError(
                    f'lottery server: --allowed-hosts: "{name}" is not a host name; write the names out, separated by '
                    "commas and without a scheme, such as mlflow.example.org,10.0.0.5"
                )


def serve(server: Server) -> None:
    """Become `mlflow server`. Raises LotteryError where settings are missing, or the database or the port are."""
    uri = database(os.environ)
    environment = secrets(os.environ, server) | {
        # jobs are for language models; nothing here asks for one, and they take as many processes again
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_BACKEND_STORE_URI": without_password(uri),
    }
    if uri.password:
        environment["PGPASSWORD"] = str(uri.password)  # libpq's own variable: then no file and no message has it
    _check_extra(server)
    _check_database(uri)
    # before MLflow creates its tables, not after
    check_port(f"lottery server: --host {server.host} --port {server.port}", server.host, server.port)
    if server.authenticated:
        settings = root() / ".lottery" / f"server-{server.port}.ini"
        with replacing(settings) as path:
            path.write_text(basic_auth(uri, server.default_permission), encoding="utf-8")
        environment["MLFLOW_AUTH_CONFIG_PATH"] = str(settings.resolve())
    who = "accounts only" if server.authenticated else "no accounts: for this machine alone"
    print(f"MLflow server: http://{_bracketed(server.host)}:{server.port} ({who})", flush=True)
    os.execve(sys.executable, command(server), dict(environment))  # noqa: S606  # a shell is not wanted


def command(server: Server) -> list[str]:
    """`mlflow server` with its options, none of them a secret."""
    words = [sys.executable, "-m", "mlflow", "server", "--host", server.host, "--port", str(server.port)]
    words += ["--workers", str(server.workers), "--allowed-hosts", ",".join(allowed_hosts(server))]
    if origins := allowed_origins(server):
        words += ["--cors-allowed-origins", ",".join(origins)]
    words += ["--serve-artifacts", "--default-artifact-root", "mlflow-artifacts:/"]
    words += ["--artifacts-destination", server.artifacts or str((root() / "mlartifacts").resolve())]
    return words + (["--app-name", "basic-auth"] if server.authenticated else [])


def allowed_hosts(server: Server) -> list[str]:
    """The Host headers to answer.

    MLflow's own default knows private addresses as `10.*`, which the name 10.example.org matches too.
    """
    # any port of this machine's own names, or nobody would come through an SSH tunnel from another port
    hosts = [*LOOPBACK, *(f"{name.replace('[', '[[]')}:*" for name in LOOPBACK)]
    return hosts + _names(server)


def allowed_origins(server: Server) -> list[str]:
    """The origins whose pages may send requests: MLflow blocks its own page under any name but localhost's."""
    return [f"{scheme}://{name}" for name in _names(server) for scheme in ("https", "http")]


def database(environment: Mapping[str, str]) -> URL:
    """The PostgreSQL database that MLFLOW_BACKEND_STORE_URI names."""
    text = environment.get("MLFLOW_BACKEND_STORE_URI", "")
    remedy = "name the team's database, such as postgresql://lottery@127.0.0.1/lottery"
    if not text:
        raise LotteryError(f"MLFLOW_BACKEND_STORE_URI is not set; {remedy}")
    try:
        uri = make_url(text)
    except (ArgumentError, ValueError):
        raise LotteryError(f"MLFLOW_BACKEND_STORE_URI is no database's address; {remedy}") from None
    if {"password", "sslpassword"} & uri.query.keys():
        raise LotteryError(
            "MLFLOW_BACKEND_STORE_URI has a password after its question mark; write postgresql://user:password@host/..."
        )
    if uri.get_backend_name() != "postgresql":
        raise LotteryError(
            f"MLFLOW_BACKEND_STORE_URI: {uri.get_backend_name()} is not for a team's server; {remedy} (`lottery ui` "
            "shows the store of this folder)"
        )
    return uri


def without_password(uri: URL) -> str:
    """The address as text, without its password."""
    bare = URL.create(uri.drivername, uri.username, None, uri.host, uri.port, uri.database, uri.query)
    return bare.render_as_string(hide_password=False)


def secrets(environment: Mapping[str, str], server: Server) -> dict[str, str]:
    """The environment, in which the secrets that accounts need are set and long enough."""
    if not server.authenticated:
        return dict(environment)
    for name, characters in SHORTEST.items():
        secret = environment.get(name, "")
        wrong = "is not set" if not secret else f"has fewer than {characters} characters"
        if len(secret) < characters:
            raise LotteryError(
                f"{name} {wrong}: the server needs it for its accounts; `python -c 'import secrets; "
                "print(secrets.token_hex(32))'` draws one, docs/team.md says where to keep it"
            )
    if environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == OLD_DEFAULT_PASSWORD:
        raise LotteryError(
            "MLFLOW_AUTH_ADMIN_PASSWORD is the password that older MLflow versions shipped; choose another"
        )
    return {**environment, "MLFLOW_AUTH_ADMIN_USERNAME": environment.get("MLFLOW_AUTH_ADMIN_USERNAME") or "admin"}


def basic_auth(uri: URL, default_permission: str) -> str:
    """MLflow's basic_auth.ini; it has no secret."""
    return (
        "# written by `lottery server` at every start\n"
        "[mlflow]\n"
        f"default_permission = {default_permission}\n"
        f"database_uri = {without_password(uri).replace('%', '%%')}\n"  # the file's own escape
        f"auth_cache_ttl_seconds = {CACHE_SECONDS}\n"
    )


def _check_extra(server: Server) -> None:
    for module in ("psycopg", *(("flask_wtf",) if server.authenticated else ())):
        if find_spec(module) is None:
            raise LotteryError(
                f"lottery server: {module} is not installed; `pip install -c constraints.txt -e '.[team]'` brings it"
            )


def _check_database(uri: URL) -> None:
    # MLflow itself would try again for a minute and end in a traceback
    try:
        engine = create_engine(uri, connect_args={"connect_timeout": 5})
        engine.connect().close()
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise LotteryError(
            f"MLFLOW_BACKEND_STORE_URI: {without_password(uri)} does not answer: {reason}; start PostgreSQL or correct "
            "the address"
        ) from None


def check_port(options: str, host: str, port: int) -> None:
    """Raise LotteryError, which names the options, where a server cannot listen at a host and port."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise LotteryError(f"{options}: {str(error).partition(' (while')[0]}; choose another") from None


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may stand for any address
        return False


def _names(server: Server) -> list[str]:
    """The names of the server for clients elsewhere: those listed, else its host; without the port and with it."""
    names = server.names or (() if server.local else (_bracketed(server.host),))
    ported = [name for name in names if ":" in name.rpartition("]")[2]]
    return [*ported, *(name + port for name in names if name not in ported for port in ("", f":{server.port}"))]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
