"""What `evaluate` says of a level's folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from clones import ROOT, Clone
from test_claims import networks

from lottery.core.arms import Rows
from lottery.core.experiment import Level
from lottery.core.families import Examples, accuracy, family
from lottery.core.images import Images, Split
from lottery.core.layout import perceptron
from lottery.core.stack import Stack, everything, stack
from lottery.core.training import History, Trained
from lottery.evaluation import connectivity, structure, verdicts
from lottery.evaluation import tables as reports
from lottery.evaluation.claims import ONE_SHOT, Finding
from lottery.evaluation.connectivity import barrier
from lottery.files.artifacts import load_twins, save_level
from lottery.params import Params, load
from lottery.stages import evaluate

LAYOUT, SEEDS, ARMS = perceptron((6, 5, 4)), (3, 8), ("random", "ticket", "reinit")


def _noise(networks: int, seed: int) -> Stack:
    parameters = Stack.zeros(networks, LAYOUT)
    for piece in (*parameters.weights, *parameters.biases):
        piece.normal_(generator=torch.Generator().manual_seed(seed))
    return parameters


def _save(folder: Path, path: tuple[float, ...], arms: tuple[str, ...]) -> Level:
    """A level's folder, of networks that were never trained."""
    rows = Rows(arms, SEEDS)
    start, end = _noise(len(rows), 1), _noise(len(rows), 2)
    masks = everything(len(rows), LAYOUT)
    for mask, weight in zip(masks.weights, start.weights, strict=True):
        mask.copy_(weight > 0 if path else weight.bool())
    histories = (History([0], *(torch.zeros(1).double() for _ in range(3))),) * len(rows)
    level = Level(path, rows, start.masked(masks), masks, Trained(end.masked(masks), end, histories))
    save_level(level, folder, {})
    return level


@pytest.fixture
def levels(workspace: Path) -> Level:
    """A workspace with dense and p50, which is given."""
    _save(Path("models/dense"), (), ("dense",))
    return _save(Path("models/p50"), (0.5,), ARMS)


def _examples(images: Images, split: Split) -> Examples:
    examples: Examples = family(LAYOUT).examples(images, split.scaling)
    return examples


def test_a_ticket_costs_the_trainings_before_it_and_its_own() -> None:
    p = load(ROOT / "presets/paper-short.yaml")
    costs = {level: evaluate.trainings(p, level) for level in ("dense", "r01", "r16", "one-shot-950")}
    assert costs == {"dense": 1, "r01": 2, "r16": 17, "one-shot-950": 2}


def test_the_papers_claims_are_judged_of_the_papers_method_alone() -> None:
    p = load(ROOT / "presets/paper-short.yaml")
    names = {f"r{r}": f"r{r:02}" for r in range(1, 17)} | {f"o{s}": f"one-shot-{1000 * s:03.0f}" for s in ONE_SHOT}
    table = networks(rounds=16).replace({"level": names, "parent": names})

    def finding(params: Params) -> Finding:
        return {claim.name: found for claim, found in evaluate.judge_claims(params, table)}["one-shot-accurate"]

    assert finding(p).verdict == "holds"
    level = p.levels["one-shot-950"].model_copy(update={"criterion": "movement"})
    other = p.model_copy(update={"levels": p.levels | {"one-shot-950": level}})
    assert finding(other).note == "no level is pruned from dense at once to 0.95"
    for section, change, said in (
        ("data", {"name": "kmnist"}, "the paper has data.name mnist, not kmnist"),
        ("prune", {"rewind": 500}, "the paper has prune.rewind 0, not 500"),
        ("prune", {"source": "finetune"}, "the paper has prune.from ticket, not finetune"),
        ("train", {"optimizer": "sgd"}, "the paper has train.optimizer adam, not sgd"),
    ):
        changed = p.model_copy(update={section: getattr(p, section).model_copy(update=change)})
        assert finding(changed) == Finding("not tested", note=said)


def test_masks_are_described_arm_by_arm(levels: Level) -> None:
    table = evaluate.describe_masks(Path("models/p50"))
    expected = structure.describe({"ticket": levels.masks.rows(slice(2, 4))})
    pd.testing.assert_frame_equal(table[table["arm"] == "ticket"].reset_index(drop=True), expected)
    assert list(table["arm"].unique()) == list(ARMS)


def test_kept_weights_are_the_tickets(levels: Level) -> None:
    table = evaluate.distribute_weights(Path("models/p50")).set_index("layer")
    kept = [int(mask[2:4].sum()) for mask in levels.masks.weights]
    assert [table.loc[layer, "start"].sum() for layer in (0, 1)] == kept
    first, mask = levels.trained.final.weights[0][2:4], levels.masks.weights[0][2:4]
    low, high = table.loc[0, ["low", "high"]].to_numpy()[60]
    inside = (first >= low) & (first < high) & mask
    assert table.loc[0, "end"].iloc[60] == int(inside.sum())
    assert evaluate.distribute_weights(Path("models/dense"))["start"].sum() == 2 * (30 + 20)


def test_a_level_without_tickets_has_no_distribution(levels: Level) -> None:
    _save(Path("models/p50"), (0.5,), ("random",))
    assert evaluate.distribute_weights(Path("models/p50")) is None


def test_a_level_without_twins_has_no_barriers(levels: Level, make_split: Callable[..., Split]) -> None:
    split = make_split(3, 1, 6, 4)
    images = partial(accuracy, examples=_examples(split.train, split), threads=1)
    assert load_twins(Path("models/p50")) is None
    assert evaluate.measure_barriers(Path("models/p50"), images, images) is None


def test_barriers_are_between_the_final_networks_of_an_arm_and_their_twins(
    levels: Level, make_split: Callable[..., Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = _noise(4, 5)
    monkeypatch.setattr(evaluate, "load_twins", lambda folder: (Rows(("ticket", "reinit"), SEEDS), twins))
    split = make_split(200, 150, 6, 4)
    parts = (_examples(part, split) for part in (split.validation, split.train))
    test, train = (partial(accuracy, examples=part, threads=1) for part in parts)
    table = evaluate.measure_barriers(Path("models/p50"), test, train)
    final = stack([levels.trained.final.rows(slice(2, 4)), levels.trained.final.rows(slice(4, 6))])
    assert list(zip(table["arm"], table["seed"], strict=True)) == [
        ("ticket", 3),
        ("ticket", 8),
        ("reinit", 3),
        ("reinit", 8),
    ]
    assert table["barrier_test"].tolist() == barrier(final, twins, test).tolist()
    assert table["barrier_train"].tolist() == barrier(final, twins, train).tolist()
    assert set(table) | {"level"} == set(connectivity.COLUMNS)


def test_numbers_are_rounded_only_after_verdicts_are_computed(finished: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    p = load(Path("params.yaml"))
    networks = evaluate.measure(p, *evaluate.images(p))

    def conditions(table: pd.DataFrame) -> pd.DataFrame:
        judged = verdicts.judge(table, p.verdict.margin, p.verdict.speed_margin)
        return reports.rounded(verdicts.conditions_table(judged))

    written = reports.load_table(Path("reports/tables/conditions.csv"))
    pd.testing.assert_frame_equal(written, conditions(networks), check_dtype=False, check_exact=True)
    assert not written["mean"].equals(conditions(reports.rounded(networks))["mean"])


def test_tables_have_six_decimals_at_most(finished: Clone) -> None:
    for path in (finished.folder / "reports/tables").glob("*.csv"):
        table = reports.load_table(path).drop(columns=["p", "p_holm"], errors="ignore").select_dtypes("float")
        assert table.equals(table.round(6)), path.name


def test_a_small_p_value_keeps_its_digits() -> None:
    table = pd.DataFrame({"p": [1.23456789e-9, 0.5], "mean": [1.23456789, 0.1 + 0.2]})
    assert reports.rounded(table).to_csv(index=False).splitlines() == ["p,mean", "1.23457e-09,1.234568", "0.5,0.3"]
