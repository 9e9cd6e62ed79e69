"""What the figures show, and that the same results draw the same bytes."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lottery import LotteryError, figures
from lottery.artifacts import save_level
from lottery.experiment import Level
from lottery.figures import FIGURES, Results, save_figures, save_mask_picture
from lottery.network import Parameters
from lottery.stages import plot
from lottery.statistics import early_stopping, summarize
from lottery.training import History, Trained

CHAIN = {"p40": ("dense", 0.4), "p60": ("p40", 0.6), "p90": ("p60", 0.9)}
ONE_SHOT = {"o90": ("dense", 0.9), "o60": ("dense", 0.6)}
BRANCHED = CHAIN | {"q80": ("p40", 0.8), "q95": ("q80", 0.95)}
ARMS = ("ticket", "reinit", "random")


def results(
    levels: Mapping[str, tuple[str, float]], arms: Sequence[str] = ARMS, seeds: Sequence[int] = (0, 1, 2)
) -> Results:
    """Results as the stages leave them, of networks with 8x8 inputs that were never trained."""
    random = np.random.default_rng(0)
    histories, networks = [], []
    for level, (parent, sparsity) in ({"dense": ("", 0.0)} | levels).items():
        rows = [(arm, seed) for arm in (("dense",) if level == "dense" else arms) for seed in seeds]
        loss = np.hstack([np.full((len(rows), 1), 2.3), random.uniform(0.1, 0.3, (len(rows), 5))])
        keys = pd.DataFrame(rows, columns=["arm", "seed"])
        history = keys.loc[keys.index.repeat(6)].assign(
            iteration=[0, 20, 40, 60, 80, 90] * len(rows), validation_loss=loss.flatten(), level=level
        )
        stops = early_stopping(history)
        networks.append(
            keys.assign(
                level=level,
                parent=parent,
                sparsity=sparsity,
                density=1 - sparsity,
                weights_kept=round(1000 * (1 - sparsity)),
                weights_kept_layer0=round(900 * (1 - sparsity)),
                weights_kept_layer1=round(100 * (1 - sparsity)),
                early_stopping_iteration=stops["early_stopping_iteration"],
                censored=stops["censored"],
                **{
                    accuracy: random.uniform(0.9, 0.98, len(rows))
                    for accuracy in ("test_accuracy", "test_accuracy_last", "test_accuracy_start")
                },
                train_accuracy=1.0,
                train_accuracy_last=1.0,
            )
        )
        histories.append(history)
    table = pd.concat(networks, ignore_index=True)
    connections = {level: random.uniform(0, 30, 64) for level in levels}
    return Results(summarize(table), table, pd.concat(histories, ignore_index=True), connections)


def texts(figure: Figure) -> set[str]:
    """All that is written in a figure."""
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()}


def only_axes(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def curve(axes: Axes, color: str) -> list[tuple[float, float]]:
    """The points of the one line of more than a point that has this colour."""
    (line,) = [line for line in axes.lines if line.get_color() == color and len(line.get_xdata()) > 2]
    return [(float(x), float(y)) for x, y in line.get_xydata()]


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_same_results_draw_the_same_bytes_whatever_the_settings_of_matplotlib(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    save_figures(results(ONE_SHOT, ["ticket"]), tmp_path / "first")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "pink", "savefig.dpi": 30}):
        before = dict(matplotlib.rcParams)
        save_figures(results(ONE_SHOT, ["ticket"]), tmp_path / "second")
        assert dict(matplotlib.rcParams) == before
    assert {path.stem for path in (tmp_path / "first").iterdir()} == set(FIGURES)
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
        with Image.open(path) as image:
            assert set(image.info) == {"dpi"}  # no date, and no version of matplotlib
            assert 1200 <= image.width <= 1400, "twice the width of a README is too large, less than it too coarse"


@pytest.mark.parametrize(
    ("levels", "arms", "seeds"),
    [
        ({"p80": ("dense", 0.8)}, ["random"], [7]),
        (BRANCHED | ONE_SHOT, [*ARMS, "finetune", "new"], [0, 1, 2]),
        ({f"round{k}": (f"round{k - 1}" if k > 1 else "dense", 1 - 0.8**k) for k in range(1, 18)}, ["ticket"], [1, 2]),
    ],
    ids=["one seed, arm and level", "a tree, and an arm unheard of", "many levels"],
)
def test_every_pipeline_draws_without_a_warning(
    levels: dict[str, tuple[str, float]],
    arms: list[str],
    seeds: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figures(results(levels, arms, seeds), tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(FIGURES)


# --- what figures say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("parameter_reduction", "mask_inputs")])
def test_every_figure_that_compares_arms_names_them_all(name: str) -> None:
    arms = (*ARMS, "finetune")
    assert {"dense", *arms} <= texts(FIGURES[name](results(CHAIN, arms)))


def test_an_arm_looks_the_same_whatever_stands_beside_it() -> None:
    alone, together = results(CHAIN, ["random"]).looks, results(CHAIN, ["new", "random", "ticket"]).looks
    assert alone["random"] == together["random"]
    assert len({(look.color, look.marker) for look in together.values()}) == 4


def test_accuracy_runs_from_dense_to_the_sparsest_level_on_a_logarithmic_axis() -> None:
    drawn = results(CHAIN)
    axes = only_axes(figures.accuracy_vs_pruning(drawn))
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "sparser to the right"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100 %", "60 %", "40 %", "10 %"]
    mean = drawn.networks.groupby(["level", "arm"])["test_accuracy"].mean()
    expected = [mean["dense", "dense"], *(mean[level, "ticket"] for level in CHAIN)]
    points = curve(axes, figures.LOOKS["ticket"].color)
    assert [x for x, _ in points] == pytest.approx([100, 60, 40, 10])
    assert [y for _, y in points] == pytest.approx([100 * value for value in expected])


def test_the_band_spans_the_seeds() -> None:
    drawn = results({"p80": ("dense", 0.8)}, ["ticket"])
    band = only_axes(figures.accuracy_vs_pruning(drawn)).collections[0].get_paths()[0].vertices
    seeds = 100 * drawn.networks.query("level == 'p80'")["test_accuracy"]
    at_level = band[np.isclose(band[:, 0], 20), 1]
    assert (at_level.min(), at_level.max()) == pytest.approx((seeds.min(), seeds.max()))


@pytest.mark.parametrize(
    ("levels", "lines"),
    [
        (CHAIN, [["dense", "p40", "p60", "p90"]]),
        (BRANCHED, [["dense", "p40", "p60", "p90"], ["p40", "q80", "q95"]]),
        (ONE_SHOT, [["dense", "o60", "o90"]]),
        (CHAIN | ONE_SHOT, [["dense", "p40", "p60", "p90"], ["dense", "o60", "o90"]]),
    ],
    ids=["chain", "branches", "one-shot", "chain and one-shot"],
)
def test_a_line_joins_each_level_to_its_parent(levels: dict[str, tuple[str, float]], lines: list[list[str]]) -> None:
    assert results(levels).lines == lines


def test_where_there_are_several_paths_the_figure_says_which_line_is_which() -> None:
    notes = [text for text in texts(figures.accuracy_vs_pruning(results(BRANCHED))) if "Lines:" in text]
    assert notes == ["Mean over 3 seeds, shaded from the lowest to the highest. Lines: solid to p90, dashed to q95."]


def test_the_difference_is_paired_by_seed() -> None:
    drawn = results(CHAIN)
    accuracy = drawn.networks.set_index(["level", "arm", "seed"])["test_accuracy"]
    for row in drawn.differences.to_dict("records"):
        own, dense = accuracy[row["level"], row["arm"], row["seed"]], accuracy["dense", "dense", row["seed"]]
        assert row["difference"] == pytest.approx(100 * (own - dense))
    assert len(drawn.differences) == len(CHAIN) * len(ARMS) * 3


def test_the_markers_of_censored_levels_are_hollow() -> None:
    drawn = results(CHAIN, ["ticket"])
    drawn.levels["censored"] = [0, 2, 0, 1]  # dense, p40, p60, p90
    axes = only_axes(figures.early_stopping(drawn))
    faces = {round(line.get_xdata()[0]): line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"}
    assert {density for density, face in faces.items() if face == "white"} == {60, 10}


def test_the_table_shows_means_deviations_and_differences() -> None:
    drawn = results({"p80": ("dense", 0.8)}, ["ticket"])
    drawn.networks["test_accuracy"] = [0.97, 0.98, 0.99, 0.96, 0.965, 0.97]
    written = texts(figures.results_table(Results(summarize(drawn.networks), drawn.networks, drawn.history, {})))
    assert {"p80", "20 %", "200", "98.00 ± 1.00", "96.50 ± 0.50", "\N{MINUS SIGN}1.50"} <= written


def test_one_seed_has_no_deviation() -> None:
    drawn = results({"p80": ("dense", 0.8)}, ["ticket"], seeds=[4])
    assert not any("±" in text for text in texts(figures.results_table(drawn)))


# --- mask pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "side"), [(784, 28), (64, 8), (90_000, 300)])
def test_a_mask_picture_is_a_square_of_square_blocks_wide_enough_for_the_ui(
    inputs: int, side: int, tmp_path: Path
) -> None:
    mask = torch.rand(inputs, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    save_mask_picture(mask, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        pixels = np.asarray(image)
    block = len(pixels) // side
    assert pixels.shape[0] == pixels.shape[1] == side * block >= 280
    blocks = pixels.reshape(side, block, side, block, -1)
    assert (blocks == blocks[:, :1, :, :1]).all()
    shown = blocks[:, 0, :, 0].reshape(inputs, -1)
    counts = mask.sum(dim=1).numpy()
    for count in np.unique(counts):
        assert len(np.unique(shown[counts == count], axis=0)) == 1, "as many connections, the same colour"
    assert len(np.unique(shown, axis=0)) == len(np.unique(counts)), "more connections, another colour"


def test_a_mask_picture_of_inputs_that_fill_no_square_leaves_the_rest_empty(tmp_path: Path) -> None:
    save_mask_picture(torch.ones(7, 4, dtype=torch.bool), tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        opacity = np.asarray(image)[50::100, 50::100, 3]
    assert opacity.tolist() == [[255, 255, 255], [255, 255, 255], [255, 0, 0]]


def test_a_mask_that_keeps_nothing_has_a_picture(tmp_path: Path) -> None:
    save_mask_picture(torch.zeros(64, 4, dtype=torch.bool), tmp_path / "mask.png")
    assert (tmp_path / "mask.png").exists()


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arms", [("random", "ticket"), ("random", "reinit"), ("small-dense", "lr-rewind")])
def test_connections_are_those_of_the_tickets_mask(arms: tuple[str, ...], workspace: Path) -> None:
    masks = torch.rand(4, 9, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    weights = Parameters.zeros(4, (9, 5))
    histories = (History([0], *(torch.zeros(1).double() for _ in range(3))),) * 4
    save_level(Level((0.5,), arms, (0, 1), weights, (masks,), Trained(weights, weights, histories)), Path("models/p50"))
    expected = (masks[2].sum(dim=1) + masks[3].sum(dim=1)) / 2
    assert plot.load_connections(Path("models/p50")).tolist() == expected.tolist()


def test_level_names_that_look_like_numbers_or_nothing_stay_names(workspace: Path) -> None:
    Path("reports").mkdir()
    levels = results({"007": ("dense", 0.4), "1e5": ("007", 0.5), "nan": ("1e5", 0.6), "null": ("nan", 0.7)}).levels
    levels.to_csv("reports/levels.csv", index=False)
    pd.testing.assert_frame_equal(
        plot.load_report("levels.csv").fillna({"parent": ""}), levels, check_dtype=False, check_exact=True
    )


def test_a_report_that_is_missing_is_named_with_the_remedy(workspace: Path) -> None:
    with pytest.raises(LotteryError, match=r"^reports/levels\.csv: missing.*dvc repro evaluate"):
        plot.load_results()
