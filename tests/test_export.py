"""What the stage `export` and `lottery export` write: which network, with which accuracy, and its card."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from clones import ROOT, SMALL, Clone
from stores import run_stage

import lottery
import lottery.ticket
from lottery import LotteryError
from lottery.files.data import load_test
from lottery.files.sealed import seal_folder
from lottery.ticket.graph import run
from lottery.ticket.workspace import chosen_level
from lottery.trained import export as write

FILES = ["model_card.md", "ticket.onnx", "ticket.safetensors"]


@pytest.fixture
def here(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    monkeypatch.chdir(clone.folder)
    return clone


def export(level: str, arm: str | None = None, seed: int | None = None, **options: bool) -> Path:
    """The folder that `lottery export` writes, called without the seconds that a process takes to import torch."""
    folder = Path("exported") / "-".join(map(str, (level, arm, seed, *options)))
    write(level, arm, seed, folder, **options)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- which network ---------------------------------------------------------------------------------------------------


def tables(verdicts: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    densities = {"dense": 1.0} | {level: 1 - int(level[1:]) / 100 for level in verdicts}
    rows = [
        {"level": level, "arm": "dense" if level == "dense" else "ticket", "density": density}
        for level, density in densities.items()
    ]
    return pd.DataFrame({"level": list(verdicts), "verdict": list(verdicts.values())}), pd.DataFrame(rows)


def test_auto_is_the_sparsest_level_with_a_winning_ticket() -> None:
    verdicts = {"p50": "winning ticket", "p90": "winning ticket", "p80": "winning ticket", "p95": "undecided"}
    assert chosen_level("auto", Path(), *tables(verdicts)) == "p90"
    assert chosen_level("p50", Path(), *tables(verdicts)) == "p50"


def test_without_winners_auto_is_the_level_whose_tickets_have_the_lowest_mean_validation_loss(finished: Clone) -> None:
    histories = {}
    for level in ("p50", "p75", "p80-at-once"):
        history = pd.read_csv(finished.folder / f"models/{level}/history.csv").query(
            "arm == 'ticket' and iteration > 0"
        )
        histories[level] = history.groupby("seed")["validation_loss"].min()
    chosen = lottery.ticket.load(finished.folder / "tickets/ticket.safetensors").facts
    means = {level: losses.mean() for level, losses in histories.items()}
    assert chosen.level == min(means, key=lambda level: means[level])
    assert chosen.seed == histories[chosen.level].idxmin()


def test_a_pipeline_without_tickets_exports_dense() -> None:
    assert chosen_level("auto", Path(), *tables({})) == "dense"


# --- the files -------------------------------------------------------------------------------------------------------


def test_every_network_can_be_exported_and_predicts_as_it_was_measured(here: Clone) -> None:
    test = load_test(Path("data/digits.safetensors"))
    images = test.pixels.reshape(-1, 8, 8)
    networks = pd.read_csv("reports/tables/networks.csv").set_index(["level", "arm", "seed"])
    for level, arm, seed in (("dense", "dense", 1), ("p75", "reinit", 0), ("p80-at-once", "random", 1)):
        folder = export(level, arm, seed)
        ticket = lottery.ticket.load(folder / "ticket.safetensors")
        with torch.no_grad():
            expected = lottery.load(level, arm, seed)(images).numpy()
        for logits in (ticket.logits(images.numpy()), run((folder / "ticket.onnx").read_bytes(), images.numpy())):
            assert np.array_equal(logits.argmax(1), expected.argmax(1))
            assert np.abs(logits - expected).max() < 1e-4
        row = networks.loc[(level, arm, seed)]
        assert ticket.kept == row["weights_kept"]
        assert ticket.facts.accuracy == pytest.approx(row["test_accuracy"], abs=5e-7)
        lock = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
        stage = "train" if level == "dense" else f"prune@{level}"
        assert ticket.facts.level_digest == lock[stage]["outs"][0]["md5"]


def test_the_command_writes_the_bytes_of_the_stage(here: Clone) -> None:
    """Also with the level's parameters edited since: those of dvc.lock count."""
    staged = read(here.folder / "tickets")
    facts = lottery.ticket.load("tickets/ticket.safetensors").facts
    here.change(train=SMALL["train"] | {"epochs": 9}, data=SMALL["data"] | {"name": "mnist"})
    assert list(staged) == FILES
    told = here.run("lottery", "export", facts.level, "--best", "--to", "best")
    assert told.startswith(f"<Ticket {facts.level} ticket {facts.seed}: 64-32-16-10 on digits, ")
    assert read(Path("best")) == staged
    assert read(export(facts.level, None, facts.seed)) == staged
    assert read(export(facts.level, None, 1 - facts.seed)) != staged


def test_with_the_initialization_it_can_be_trained_again(here: Clone) -> None:
    ticket = lottery.ticket.load(export("p75", initialization=True) / "ticket.safetensors")
    whole = export("dense", None, ticket.facts.seed, initialization=True)
    dense = lottery.ticket.load(whole / "ticket.safetensors")
    assert ticket.initial is not None
    assert dense.initial is not None
    for name, values in ticket.initial.items():  # rewound to dense's initialization
        assert np.array_equal(values, dense.initial[name] * ticket.masks.get(name, 1))


def test_half_precision_has_the_accuracy_of_its_own_values(here: Clone) -> None:
    folder = export("p75", half=True)
    ticket = lottery.ticket.load(folder / "ticket.safetensors")
    test = load_test(Path("data/digits.safetensors"))
    classes = ticket.logits(test.pixels.numpy()).argmax(1)
    assert ticket.facts.accuracy == pytest.approx(float((classes == test.labels.numpy()).mean()))
    assert "as half" in (folder / "model_card.md").read_text()
    assert (folder / "ticket.safetensors").stat().st_size < (export("p75") / "ticket.safetensors").stat().st_size


def test_the_card_says_what_the_tables_say_and_its_code_runs(finished: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished.folder / "tickets"
    card = (folder / "model_card.md").read_text()
    facts = lottery.ticket.load(folder / "ticket.safetensors").facts
    networks = pd.read_csv(finished.folder / "reports/tables/networks.csv")
    own = networks.query("level == @facts.level and arm == 'ticket'")
    assert f"{100 * facts.accuracy:.2f} % of the 359 test images (95 % Wilson interval over them: " in card
    assert f"| of all seeds | {100 * own['test_accuracy'].mean():.2f} % (95 % t interval over 2 seeds: " in card
    assert f"`{facts.level_digest}` in dvc.lock" in card
    assert "each time after training, by the\ncriterion `magnitude`: the smallest weights went." in card
    sizes = json.loads((finished.folder / "reports/compression.json").read_text())
    (size,) = [each["ticket"] for each in sizes if (each["level"], each["seed"]) == (facts.level, facts.seed)]
    assert size == (folder / "ticket.safetensors").stat().st_size
    assert f"| `ticket.onnx` | {(folder / 'ticket.onnx').stat().st_size:,} |" in card
    assert "gives the classes of the masked network" in card
    assert not re.search(r"nan|None|\{\{|\}\}|\d{4}-\d\d-\d\d", card)
    monkeypatch.chdir(folder)
    test = load_test(finished.folder / "data/digits.safetensors")
    codes = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        names = {"images": test.pixels.reshape(-1, 8, 8).numpy()}
        exec(code, names)
        assert float((names["classes"] == test.labels.numpy()).mean()) == pytest.approx(facts.accuracy)


def test_the_readmes_lines_on_tickets_run(finished: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [text for text in codes if "ticket.load" in text]
    (module,) = [text for text in codes if "import compact" in text]
    monkeypatch.chdir(finished.folder)
    test = load_test(Path("data/digits.safetensors"))
    names: dict[str, Any] = {"images": test.pixels.reshape(-1, 8, 8).numpy()}
    exec(f"{code}\n{module}", names)
    images = test.pixels.reshape(-1, 8, 8)
    assert np.allclose(names["module"](images).detach().numpy(), names["ticket"].logits(images.numpy()), atol=1e-4)
    assert float((names["classes"] == test.labels.numpy()).mean()) == pytest.approx(names["ticket"].facts.accuracy)


# --- what re-runs, and what is refused -------------------------------------------------------------------------------


def test_changing_what_is_exported_runs_export_alone(clone: Clone) -> None:
    clone.change(export={"level": "p50", "seed": 1, "values": "half"})
    assert clone.repro() == ["export"]
    facts = lottery.ticket.load(clone.folder / "tickets/ticket.safetensors").facts
    assert (facts.level, facts.seed) == ("p50", 1)
    clone.change(export=SMALL["export"])
    assert clone.repro() == []  # restored


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("p99", None, None, "new"), "level p99: no such level; the levels are dense, p50, p75, p80-at-once"),
        (("../models", None, None, "new"), "level ../models: no such level; the levels are dense, p50, p75, p80-"),
        (("p50", "finetune", None, "new"), "level p50, finetune, seed 0: no such network; p50 has ticket 0, ticket 1"),
        (("p50", None, 7, "new"), "level p50, ticket, seed 7: no such network; p50 has ticket 0, ticket 1, "),
        (("p50", None, None, "reports"), "--to reports: is there already; name an empty folder, or a new one"),
        (("p50", None, None, "README.md"), "--to README.md: is there already; name an empty folder, or a new one"),
        (("p50", None, None, "link"), "--to link: is there already; name an empty folder, or a new one"),
        (("p50", None, None, "README.md/x"), "--to README.md/x: cannot be made ("),
        (("p50", None, None, "x" * 300), f"--to {'x' * 300}: cannot be made ("),
        (("p50", None, None, "a\0b"), "--to a\0b: cannot be made ("),
    ],
)
def test_what_cannot_be_exported_is_one_line(here: Clone, arguments: tuple[Any, Any, Any, str], line: str) -> None:
    before = here.files("tickets") | here.files("reports")
    Path("link").symlink_to("nowhere")
    with pytest.raises(LotteryError, match=f"^{re.escape(line)}"):
        write(*arguments[:3], Path(arguments[3]))
    assert not Path("new").exists()
    assert here.files("tickets") | here.files("reports") == before


def test_an_empty_folder_is_filled_and_what_lies_beside_it_stays(here: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", ".new.old", ".new.new"):
        Path(name).mkdir()
    Path(".new.old/mine").touch()
    monkeypatch.chdir("new")
    monkeypatch.setenv("DVC_ROOT", str(here.folder))
    write("p50", None, None, Path())
    assert sorted(path.name for path in Path().iterdir()) == FILES
    assert Path("../.new.old/mine").exists()


def test_a_mistake_is_one_line_of_the_command(here: Clone) -> None:
    told = here.run("lottery", "export", "p99", "--to", "new", check=False)
    assert told == "level p99: no such level; the levels are dense, p50, p75, p80-at-once\n"


def test_a_network_that_was_not_evaluated_is_one_line(here: Clone) -> None:
    table = Path("reports/tables/networks.csv")
    table.write_text("level,arm,seed,test_accuracy\n")
    with pytest.raises(LotteryError, match=r"^.*reports/tables/networks.csv: not what SHA256SUMS beside it says; "):
        export("p50")
    seal_folder(table.parent)
    line = r"^reports/tables/networks.csv: has no p50 ticket \d; `dvc repro` makes it$"
    with pytest.raises(LotteryError, match=line):
        export("p50")
    (told,) = run_stage(here, "export", "export", code=2)
    assert told.startswith("reports/tables/networks.csv: has no p")


def test_a_level_that_was_trained_since_it_was_evaluated_is_one_line(here: Clone) -> None:
    table = pd.read_csv("reports/tables/networks.csv")
    table.loc[table["level"] == "p50", "test_accuracy"] -= 0.01
    table.to_csv("reports/tables/networks.csv", index=False)
    seal_folder(Path("reports/tables"))
    line = r"^reports/tables/networks.csv: has p50 ticket \d at .*; `dvc repro evaluate` makes it anew$"
    with pytest.raises(LotteryError, match=line):
        export("p50")
