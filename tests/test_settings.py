"""The settings that runs are filtered by, from params.yaml and from dvc.lock."""

from typing import Any

import pytest
import yaml
from clones import ROOT, SMALL

from lottery import LotteryError
from lottery.params import Params
from lottery.tracking.outputs import recorded
from lottery.tracking.runs import SECTIONS, level_settings, network_settings

OWN = {"criterion": "movement", "scope": "global"}


def _params(train: dict[str, Any] | None = None, prune: dict[str, Any] | None = None, **levels: Any) -> Params:
    sections: dict[str, Any] = {
        "train": SMALL["train"] | (train or {}),
        "prune": SMALL["prune"] | (prune or {}),
        "levels": SMALL["levels"] | levels,
    }
    return Params.model_validate(SMALL | sections)


def test_a_level_and_its_networks_have_the_criterion_and_scope_by_which_it_was_pruned() -> None:
    params = _params(own={"sparsity": 0.9, "parent": "dense"} | OWN)
    for shown in (level_settings(params, "own"), network_settings(params, "own", "ticket", 0)):
        assert {key: shown[key] for key in OWN} == OWN
    assert level_settings(params, "p50")["criterion"] == "magnitude"


def test_every_run_says_how_far_it_rewinds_what_children_prune_and_which_schedule_it_has() -> None:
    shown = level_settings(_params(), "p50")
    assert (shown["schedule"], shown["rewind"], shown["from"]) == ("constant", "0", "ticket")
    assert not {"warm_up", "drops", "drop_factor"} & set(shown)
    shown = level_settings(_params(train={"schedule": "step", "drops": [10, 20], "drop_factor": 0.2}), "dense")
    assert (shown["drops"], shown["drop_factor"]) == ("10, 20", "0.2")
    shown = level_settings(_params(train={"schedule": "warm-up", "warm_up": 7}), "dense")
    assert shown["warm_up"] == "7"


def test_every_setting_of_a_network_is_in_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the short name that people filter by, which no two sections have in common; a name is of what it names."""
    monkeypatch.chdir(ROOT)  # where the examples of own data and an own network are
    names = {("data", "name"): "dataset", ("network", "name"): "network"}
    names |= {(section, "file"): f"{section}_file" for section in ("data", "network")}
    keys = [
        names.get((section, name), field.alias or name)
        for section in SECTIONS
        for name, field in Params.model_fields[section].annotation.model_fields.items()
    ]
    assert len(set(keys)) == len(keys)
    lenet = {
        "data": SMALL["data"] | {"name": "mnist"},
        "network": {**SMALL["network"], "name": "lenet-5", "hidden": None},
    }
    own = {
        "data": SMALL["data"] | {"name": "own", "validation": 20},
        "network": {**SMALL["network"], "name": "own", "hidden": None, "class": "Table", "arguments": {"units": 5}},
    }
    several = (
        _params(train={"schedule": "step", "drops": [10], "drop_factor": 0.2}),
        _params(train={"schedule": "warm-up", "warm_up": 7}),
        Params.model_validate(SMALL | lenet | {"prune": SMALL["prune"] | {"conv_rate": 0.5}}),
        Params.model_validate(SMALL | own),
    )
    shown = set().union(*(network_settings(params, "p50", "ticket", 0) for params in several))
    assert set(keys) <= shown
    assert not {"data_file", "network_file", "class", "arguments"} & set(level_settings(_params(), "p50"))


def test_a_list_is_cut_where_mlflow_takes_no_more() -> None:
    shown = level_settings(_params(train={"seeds": [10**12 + seed for seed in range(1000)]}), "p50")
    assert (len(shown["seeds"]), shown["seeds"][:15]) == (6000, "1000000000000, ")


def _lock(rewind: int | None, levels: dict[str, Any], prune: dict[str, Any]) -> str:
    """A dvc.lock whose stage `train` ran with this rewind, if any, and its levels with ``prune``."""
    shared = {"data.name": "digits", "data.scale": "standard", "data.validation": 143}
    shared |= {"network": SMALL["network"], "train": SMALL["train"]}

    def entry(params: dict[str, Any]) -> dict[str, Any]:
        deps = [{"path": "data/digits.safetensors", "md5": "d" * 32}]
        return {"params": {"params.yaml": params}, "deps": deps, "outs": [{"path": "models/x", "md5": "m" * 32}]}

    stages = {"train": entry(shared | ({} if rewind is None else {"prune.rewind": rewind}))}
    for name, level in levels.items():
        stages[f"prune@{name}"] = entry(shared | {f"levels.{name}": level, "prune": prune})
    return yaml.safe_dump({"schema": "2.0", "stages": stages})


def test_dense_is_recorded_with_the_iteration_that_it_kept_and_the_levels_with_theirs() -> None:
    lock = _lock(5, {"p50": SMALL["levels"]["p50"]}, SMALL["prune"] | {"rewind": 3})
    dense, p50 = recorded(lock, _params())
    assert (dense.params.prune.rewind, p50.params.prune.rewind) == (5, 3)
    assert dense.params.prune.arms == p50.params.prune.arms == ("ticket", "reinit", "random")
    (alone,) = recorded(_lock(5, {}, {}), _params(prune={"output_rate": 1.0}))
    assert (alone.params.prune.rewind, alone.params.prune.output_rate) == (5, 1.0)


def test_a_lock_whose_dense_networks_have_no_rewind_is_none_of_this_version() -> None:
    with pytest.raises(LotteryError, match=r"^dvc\.lock: this version cannot read it; "):
        recorded(_lock(None, {}, {}), _params())


@pytest.mark.parametrize("path", ["/etc/models", "../models", "models/../../other"])
def test_a_lock_whose_outputs_lie_outside_the_repository_is_not_read(path: str) -> None:
    lock = yaml.safe_load(_lock(5, {}, {}))
    lock["stages"]["train"]["outs"] = [{"path": path, "md5": "0" * 32}]
    with pytest.raises(LotteryError, match=r"^dvc\.lock: this version cannot read it; "):
        recorded(yaml.safe_dump(lock), _params())


def test_parameters_of_another_version_are_told_with_the_commit_whose_code_reads_them() -> None:
    lock = yaml.safe_load(_lock(5, {}, {}))
    lock["stages"]["train"]["params"]["params.yaml"]["network"] = SMALL["network"] | {"name": "resnet-20"}
    told = r"^dvc\.lock: this version does not know its parameters \(.*resnet-20.*\); the code of abc1234 does$"
    with pytest.raises(LotteryError, match=told):
        recorded(yaml.safe_dump(lock), _params(), "abc1234")


def test_levels_that_were_removed_since_are_no_outputs() -> None:
    """DVC keeps their entries in dvc.lock."""
    lock = yaml.safe_load(_lock(5, SMALL["levels"], SMALL["prune"]))
    left = {"p50": SMALL["levels"]["p50"]}
    lock["stages"]["evaluate"] = lock["stages"]["train"] | {"params": {"params.yaml": {"levels": left}}}
    params = Params.model_validate(SMALL | {"levels": left})
    assert [entry.name for entry in recorded(yaml.safe_dump(lock), params)] == ["dense", "p50", "evaluate"]


def test_stages_that_ran_with_other_settings_than_their_neighbours_are_read_all_the_same() -> None:
    at_start = {"sparsity": 0.8, "parent": "dense", "criterion": "snip", "scope": "global"}
    dense, snip = recorded(_lock(5, {"snip": at_start}, SMALL["prune"]), _params())
    assert (dense.params.prune.rewind, snip.params.criterion("snip")) == (5, "snip")
