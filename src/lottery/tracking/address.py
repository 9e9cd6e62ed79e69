"""Where the MLflow store is, before MLflow is imported."""

import os
import re
from urllib.parse import unquote

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
    return (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:")


def shown_uri() -> str:
    """The address as it may be printed."""
    return without_password(os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri())


def without_password(text: str) -> str:
    """A text in which the tracking address's password is ***, and those that PostgreSQL takes after a question mark."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    # to the last @, as SQLAlchemy reads it, for which a password may have any character
    passwords = re.findall("://[^:/@]*:(.+)@", address) + re.findall("[?&](?:ssl)?password=([^&]+)", address)
    for password in passwords:
        for word in {password, unquote(password)}:
            text = text.replace(word, "***")
    return text
