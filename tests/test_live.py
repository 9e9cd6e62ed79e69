"""What a working stage sees of its training."""

import time
from types import SimpleNamespace

import pytest
import torch
from clones import ROOT

from lottery.params import load
from lottery.tracking.live import StageRun


def test_every_evaluation_is_seen_once_with_its_own_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may have evaluated a group again before the stage looks at it."""
    monkeypatch.setattr(StageRun, "connect", lambda self: None)
    run = StageRun(load(ROOT / "params.yaml"), "p40")
    history = torch.arange(24, dtype=torch.float64).reshape(3, 2, 4)  # curves, networks, evaluations
    task = SimpleNamespace(recipe=SimpleNamespace(evaluations=[0, 250, 500, 600]))
    for evaluated in (1, 3, 3, 4):
        state = SimpleNamespace(history=history, evaluated=torch.tensor([evaluated]))
        run.watch(SimpleNamespace(first=5, task=task, state=state))
    seen = [run._seen.get() for _ in range(run._seen.qsize())]
    assert [(first, iteration) for first, iteration, _ in seen] == [(5, 0), (5, 250), (5, 500), (5, 600)]
    for place, (_, _, values) in enumerate(seen):
        assert values == history[:, :, place].T.tolist()


def test_a_stage_waits_for_mlflow_only_as_long_as_it_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StageRun, "connect", lambda self: None)
    monkeypatch.setattr("lottery.tracking.live.NO_ANSWER_SQLITE", 0.1)
    run = StageRun(load(ROOT / "params.yaml"), "plot")
    run._watched(lambda: None)
    begun = time.monotonic()
    run._wait(lambda: time.monotonic() > begun + 0.3)  # no call is under way, as while networks train
    assert run._failed is None
    run._since = time.monotonic()
    run._wait(lambda: False)
    assert capsys.readouterr().err.count("no answer in 0 s: this stage goes on untracked") == 1
