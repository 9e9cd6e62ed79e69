"""The address of the MLflow store and the words for its failures, without importing MLflow."""

import os
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from lottery.files.workplace import root


class StoreError(Exception):
    """The store cannot be used as it is: one line, with the remedy."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file at the repository's root. Raises StoreError where it is relative."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return sqlite_uri(root().resolve() / "mlflow.db")
    if "://" not in uri or (uri.startswith("sqlite:") and not uri.startswith("sqlite:////")):
        raise StoreError(
            "MLFLOW_TRACKING_URI names no absolute address, so every stage would have a store of its own: write "
            "http://HOST:PORT, postgresql://... or sqlite:////absolute/path/mlflow.db"
        )
    return uri


def is_sqlite() -> bool:
    """Whether the store is a file, and not a server."""
    return (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:")


def sqlite_uri(path: Path) -> str:
    """A file's address: SQLAlchemy decodes %20 in it, and takes what follows a question mark for options."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path() -> Path:
    """The file of a store that `is_sqlite`. Raises StoreError where its address is relative."""
    return Path(unquote(tracking_uri().removeprefix("sqlite:///").partition("?")[0]))


def is_own() -> bool:
    """Whether the store is this workspace's file."""
    return is_sqlite() and sqlite_path().resolve() == root().resolve() / "mlflow.db"


def shown_uri() -> str:
    """The address as it may be printed."""
    return without_password(os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri())


def without_password(text: str) -> str:
    """A text in which the tracking address's secrets are ***.

    They are its password, a server's token in the place of the account, all values that a server's address has after a
    question mark or a hash, and the passwords that PostgreSQL takes there.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    # to the last @, as SQLAlchemy reads it, for which a password may have any character
    secrets = re.findall("://[^:/@]*:(.+)@", address)
    if address.startswith("http"):
        secrets += re.findall("://([^:/@]+):?@", address) + re.findall("#(.+)", address)
        # the shortest are no secrets, and words that may stand anywhere
        secrets += re.findall("[?&#][^=&#]*=([^&#]{4,})", address) + re.findall("[?&]([^=&#]{4,})(?=[&#]|$)", address)
    else:
        secrets += re.findall("[?&][^=&]*(?:password|token)=([^&]+)", address)
    for secret in sorted(secrets, key=len, reverse=True):
        for word in {secret, unquote(secret)}:
            text = text.replace(word, "***")
    return text


def fault(error: Exception) -> str:
    """The message of the store's error, in a line without secrets, with the remedy where it is known."""
    return without_password(first_line(understood(error)))


def understood(error: Exception) -> Exception:
    """A StoreError in the place of an error of MLflow's or SQLAlchemy's whose remedy is known."""
    line = first_line(error)
    if is_sqlite() and ("malformed" in line or "not a database" in line):
        return StoreError(f"{sqlite_path()} is damaged ({line}); move it away and run `lottery sync`")
    found = re.search(r"database schema \(found version (\w+)", line)
    if found and not knows_schema(found[1]):
        newer = f"the store is of a newer MLflow than {version('mlflow')}, which is installed here"
        return StoreError(f"{newer}; install that one")
    return error


def first_line(error: Exception) -> str:
    """The message of an error, in a line."""
    # SQLAlchemy may begin with a remark in brackets on its own doings
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")]
    return (lines or [type(error).__name__])[0]


def knows_schema(revision: str) -> bool:
    """Whether the MLflow that is installed knows a schema of its database."""
    mlflow = find_spec("mlflow")
    places = mlflow.submodule_search_locations if mlflow else None
    return any(any(Path(place).glob(f"store/db_migrations/versions/{revision}_*")) for place in places or ())
