"""Where the MLflow store is, and what of its address may be shown."""

import pytest

from lottery.tracking.address import StoreError, is_sqlite, shown_uri, tracking_uri, without_password


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
