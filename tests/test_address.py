"""Where the MLflow store is, and what of its address may be shown."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from lottery.tracking.address import StoreError, is_sqlite, shown_uri, tracking_uri, without_password
from lottery.tracking.store import Content, Store


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite://", "mlruns", "./store", "127.0.0.1:5000"])
def test_a_relative_address_is_refused(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match="names no absolute address"):
        tracking_uri()


@pytest.mark.parametrize("uri", ["sqlite:////a/mlflow.db", "http://127.0.0.1:5000", "postgresql://host/name"])
def test_an_absolute_address_is_taken(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == shown_uri() == uri


def test_a_password_is_never_shown_in_either_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://someone:p%40ss%2Fword@host/name")
    assert shown_uri() == "postgresql://someone:***@host/name"
    assert without_password("password p@ss/word and p%40ss%2Fword") == "password *** and ***"


def test_a_password_in_an_addresses_query_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://host/name?user=someone&password=p%40ss&sslpassword=key")
    assert shown_uri() == "postgresql://host/name?user=someone&password=***&sslpassword=***"
    assert without_password("p@ss") == "***"


@pytest.mark.parametrize("password", ["pa#ss", "pa?ss", "p/a", "a@b", "p[ss", "a:b"])
def test_a_password_of_any_characters_is_never_shown(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://ann:{password}@host/name")
    assert shown_uri() == "postgresql://ann:***@host/name"


def test_an_address_that_cannot_be_parsed_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[::1:5000")
    assert shown_uri() == "http://[::1:5000"


def test_an_empty_address_is_the_sqlite_file_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri().startswith("sqlite:////")
    assert is_sqlite()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://TOKEN@host:5000", "http://***@host:5000"),
        ("https://TOKEN:@host", "https://***:@host"),
        ("http://ann:TOKEN@host/?token=OTHER", "http://ann:***@host/?token=***"),
        ("http://host/?access_token=TOKEN&x=OTHER", "http://host/?access_token=***&x=***"),
        ("http://host/?TOKEN", "http://host/?***"),
        ("http://host/#TOKEN", "http://host/#***"),
        ("http://host/#token=TOKEN", "http://host/#***"),
    ],
)
def test_a_token_of_a_server_is_never_shown(monkeypatch: pytest.MonkeyPatch, address: str, shown: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert shown_uri() == shown
    assert "TOKEN" not in without_password("what MLflow says of TOKEN and OTHER")


ODD = [
    "per%20cent",
    "quest?ion",
    "50%",
    "ha#sh",
    "pl+us",
    "sp ace",
    "am&p=x",
    "co:lon",
    "ümlaut",
    "sem;i",
    "a'b",
    "[x]",
]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_any_name_holds_its_store(workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(workspace / name))
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)  # else a fault takes two minutes to show
    (workspace / name).mkdir()
    store = Store("lottery-tickets")
    run = store.create("network", {}, 0)
    store.complete(run, "key", Content("network", {}, (), artifacts={"mask": _write}))
    assert (workspace / name / "mlflow.db").exists()
    assert [path.name for path in (workspace / name).rglob("a.txt")] == ["a.txt"]
    assert [item.path for item in MlflowClient(store.uri).list_artifacts(run, "mask")] == ["mask/a.txt"]
    assert [path.name for path in workspace.iterdir()] == [name]


def _write(folder: Path) -> None:
    (folder / "a.txt").write_text("a")
