"""Where the MLflow store is, before MLflow is imported."""

import os
from urllib.parse import unquote, urlsplit

from lottery.workplace import root


class StoreError(Exception):
    """The store cannot be used as it is: one line, with the remedy."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file at the repository's root. Raises StoreError where it is relative."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{root().resolve() / 'mlflow.db'}"
    if "://" not in uri or (uri.startswith("sqlite:") and not uri.startswith("sqlite:////")):
        raise StoreError(
            "MLFLOW_TRACKING_URI names no absolute address, so every stage would have a store of its own: write "
            "http://HOST:PORT, postgresql://... or sqlite:////absolute/path/mlflow.db"
        )
    return uri


def is_sqlite() -> bool:
    """Whether the store is a file, and not a server."""
    return os.environ.get("MLFLOW_TRACKING_URI", "sqlite:").startswith("sqlite:")


def shown_uri() -> str:
    """The address as it may be printed."""
    return without_password(os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri())


def without_password(text: str) -> str:
    """A text in which the tracking address's password is ***, and those that PostgreSQL takes after a question mark."""
    address = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    fields = [field.partition("=") for field in address.query.split("&")]
    for password in (address.password, *(value for name, _, value in fields if name in ("password", "sslpassword"))):
        for word in {password, unquote(password)} if password else ():
            text = text.replace(word, "***")
    return text
