"""What the figures show, and that the same results draw the same bytes."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_masks
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from lottery import LotteryError
from lottery.core.arms import ARMS as EVERY_ARM
from lottery.core.arms import Rows
from lottery.core.experiment import Level
from lottery.core.families import family
from lottery.core.layout import perceptron, published
from lottery.core.stack import Masks, Stack, everything
from lottery.core.training import History, Trained
from lottery.evaluation.connectivity import BARRIERS
from lottery.evaluation.statistics import early_stopping, summarize
from lottery.evaluation.tables import load_table
from lottery.files.artifacts import save_level
from lottery.report import figures, mask_figures
from lottery.report.drawing import LOOKS, Results
from lottery.report.figures import FIGURES, save_figures
from lottery.report.mask_figures import save_mask_picture
from lottery.stages import plot

CHAIN = {"p40": ("dense", 0.4), "p60": ("p40", 0.6), "p90": ("p60", 0.9)}
ONE_SHOT = {"o90": ("dense", 0.9), "o60": ("dense", 0.6)}
BRANCHED = CHAIN | {"q80": ("p40", 0.8), "q95": ("q80", 0.95)}
ARMS = ("ticket", "reinit", "random")
WITHOUT_TWINS = set(FIGURES) - {"connectivity"}
TICKETS_ALONE = {"compression", "parameter_reduction", "mask_inputs", "mask_overlap", "kept_weights"}


def results(
    levels: Mapping[str, tuple[str, float]],
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    twins: Sequence[str] = (),
) -> Results:
    """Results as the stages leave them, of networks with 8x8 inputs that were never trained."""
    random = np.random.default_rng(0)
    histories, networks = [], []
    for level, (parent, sparsity) in ({"dense": ("", 0.0)} | levels).items():
        rows = [(arm, seed) for arm in (("dense",) if level == "dense" else arms) for seed in seeds]
        loss = np.hstack([np.full((len(rows), 1), 2.3), random.uniform(0.1, 0.3, (len(rows), 5))])
        keys = pd.DataFrame(rows, columns=["arm", "seed"])
        history = (
            keys.loc[keys.index.repeat(6)]
            .reset_index(drop=True)
            .assign(iteration=[0, 20, 40, 60, 80, 90] * len(rows), validation_loss=loss.flatten(), level=level)
        )
        stops = early_stopping(history)
        networks.append(
            keys.assign(
                level=level,
                parent=parent,
                sparsity=sparsity,
                density=1 - sparsity,
                effective_density=(1 - sparsity) * random.uniform(0.9, 1.0, len(rows)),
                connected_inputs=random.integers(50, 64, len(rows)),
                connected_hidden1=random.integers(5, 10, len(rows)),
                weights_kept=round(1000 * (1 - sparsity)),
                weights_kept_layer0=round(900 * (1 - sparsity)),
                weights_kept_layer1=round(100 * (1 - sparsity)),
                early_stopping_iteration=stops["early_stopping_iteration"],
                censored=stops["censored"],
                dense_loss_iteration=80,
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
    pictures = {level: random.uniform(0, 30, (8, 8)) for level in levels}
    return Results(
        levels=summarize(table),
        networks=table,
        history=pd.concat(histories, ignore_index=True),
        pictures=pictures,
        layout=perceptron((64, 10, 10)),
        structure=structure(table, random),
        kept_weights=weights(table, random),
        connectivity=barriers(table, twins, random),
        compression=compression(table),
    )


def compression(networks: pd.DataFrame) -> pd.DataFrame:
    """reports/compression.json, of dense and of the levels with tickets."""
    rows = networks[networks["arm"].isin(["dense", "ticket"])].groupby("level", sort=False).first().reset_index()
    kept = rows["weights_kept"]
    sizes = {"checkpoint": 4000, "checkpoint_zstd": 4 * kept + 500, "ticket": 5 * kept + 90, "ticket_half": 3 * kept}
    adds = {"multiply_adds": 1000, "multiply_adds_kept": kept, "multiply_adds_compact": 1000}
    return rows[["level", "density"]].assign(**sizes, **adds)


def structure(networks: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """reports/tables/structure.csv, of which figures read the overlap: undefined for one seed."""
    arms = networks[["level", "arm"]].drop_duplicates()
    rows = arms.merge(pd.DataFrame({"layer": ["0", "1", "all"]}), how="cross")
    several = networks["seed"].nunique() > 1
    for column in ("overlap", "chance", "chance_by_input"):
        rows[column] = random.uniform(0.01, 1, len(rows)) if several else math.nan
    rows.loc[rows["layer"] != "0", "chance_by_input"] = math.nan
    return rows


def weights(networks: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """reports/tables/kept_weights.csv, with fewer bins."""
    levels = networks.loc[networks["arm"].isin(["dense", "ticket"]), "level"].drop_duplicates()
    rows = levels.to_frame().merge(pd.DataFrame({"layer": [0, 1]}), how="cross")
    rows = rows.merge(pd.DataFrame({"low": np.arange(-8.0, 8.0), "high": np.arange(-7.0, 9.0)}), how="cross")
    return rows.assign(**{when: random.integers(1, 20, len(rows)) for when in ("start", "end")})


def barriers(networks: pd.DataFrame, arms: Sequence[str], random: np.random.Generator) -> pd.DataFrame:
    """reports/tables/connectivity.csv where these arms have twins."""
    rows = networks.loc[networks["arm"].isin(arms), ["level", "arm", "seed"]]
    return rows.assign(**{images: random.uniform(0, 0.5, len(rows)) for images in BARRIERS})


def texts(figure: Figure) -> set[str]:
    """All that is written in a figure."""
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()}


def only_axes(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def drawn_through(axes: Axes, color: str) -> list[Line2D]:
    """The lines of this colour that join points; markers alone do not."""
    return [line for line in axes.lines if line.get_color() == color and line.get_linestyle() != "None"]


def dots(axes: Axes, color: str) -> list[tuple[float, float]]:
    """The seeds that are drawn in this colour."""
    lines = [line for line in axes.lines if line.get_color() == color and line.get_marker() == "."]
    return [(float(x), float(y)) for line in lines for x, y in line.get_xydata()]


def curve(axes: Axes, color: str) -> list[tuple[float, float]]:
    """The points of the one line of this colour through more than two points."""
    (line,) = [line for line in drawn_through(axes, color) if len(line.get_xdata()) > 2]
    return [(float(x), float(y)) for x, y in line.get_xydata()]


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_same_results_draw_the_same_bytes_whatever_matplotlibs_settings_and_processes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    save_figures(results(ONE_SHOT, ["ticket"]), tmp_path / "first")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "pink", "savefig.dpi": 30}):
        before = dict(matplotlib.rcParams)
        save_figures(results(ONE_SHOT, ["ticket"]), tmp_path / "second", processes=2)
        assert dict(matplotlib.rcParams) == before
    assert {path.stem for path in (tmp_path / "first").iterdir()} == WITHOUT_TWINS
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
        with Image.open(path) as image:
            assert set(image.info) == {"dpi", "Description"}  # no date, and no version of matplotlib
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
    without = set() if "ticket" in arms else {"compression"}
    assert {path.stem for path in tmp_path.iterdir()} == WITHOUT_TWINS - without


# --- what figures say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WITHOUT_TWINS - TICKETS_ALONE))
def test_every_figure_that_compares_arms_names_them_all(name: str) -> None:
    arms = (*ARMS, "finetune")
    assert {"dense", *arms} <= texts(FIGURES[name](results(CHAIN, arms)))


def test_every_arm_has_a_look_of_its_own() -> None:
    arms = ("dense", *EVERY_ARM)
    assert set(arms) <= set(LOOKS)
    assert len({LOOKS[arm].color for arm in arms}) == len(arms)


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
    points = curve(axes, LOOKS["ticket"].color)
    assert [x for x, _ in points] == pytest.approx([100, 60, 40, 10])
    assert [y for _, y in points] == pytest.approx([100 * value for value in expected])


def with_accuracies(*accuracies: float) -> Results:
    """One level with tickets of these test accuracies, and dense networks of 97, 98 and 99 %."""
    drawn = results({"p80": ("dense", 0.8)}, ["ticket"], range(len(accuracies)))
    drawn.networks["test_accuracy"] = [*(0.97, 0.98, 0.99)[: len(accuracies)], *accuracies]
    return replace(drawn, levels=summarize(drawn.networks))


def test_the_band_is_the_95_percent_interval_and_the_seeds_are_dots() -> None:
    axes = only_axes(figures.accuracy_vs_pruning(with_accuracies(0.96, 0.965, 0.97)))
    band = axes.collections[0].get_paths()[0].vertices
    at_level = band[np.isclose(band[:, 0], 20), 1]
    reach = 4.302653 * 0.5 / 3**0.5  # t of two degrees of freedom, a deviation of 0.5 points, three seeds
    assert (at_level.min(), at_level.max()) == pytest.approx((96.5 - reach, 96.5 + reach))
    assert dots(axes, LOOKS["ticket"].color) == [(pytest.approx(20), pytest.approx(y)) for y in (96, 96.5, 97)]


def test_the_difference_from_dense_has_its_interval_and_the_seeds_as_dots() -> None:
    axes = only_axes(figures.accuracy_difference(with_accuracies(0.96, 0.965, 0.97)))
    (interval,) = axes.collections[0].get_segments()
    assert interval[:, 1] == pytest.approx([-1.5 - 1.2421, -1.5 + 1.2421], abs=1e-4)  # -1, -1.5 and -2
    assert sorted(y for _, y in dots(axes, LOOKS["ticket"].color)) == pytest.approx([-2, -1.5, -1])


@pytest.mark.parametrize("draw", [figures.accuracy_vs_pruning, figures.early_stopping, figures.accuracy_difference])
def test_the_dots_of_every_arm_are_within_the_axes(draw: Callable[[Results], Figure]) -> None:
    axes = only_axes(draw(results(CHAIN, ["ticket", "reinit", "random"])))
    drawn = [line for line in axes.lines if line.get_marker() == "."]
    assert drawn
    for line in drawn:
        assert line.get_transform().transform(line.get_xydata())[:, 0].max() < axes.bbox.x1


@pytest.mark.parametrize("draw", [figures.accuracy_vs_pruning, figures.accuracy_difference])
def test_an_interval_smaller_than_a_marker_is_seen_at_its_sides(draw: Callable[[Results], Figure]) -> None:
    axes = only_axes(draw(with_accuracies(0.96, 0.96, 0.960001)))
    lines = [line for line in axes.lines if line.get_color() == LOOKS["ticket"].color]
    (mean,) = [line for line in lines if line.get_marker() == LOOKS["ticket"].marker]
    ends = [line for line in lines if line.get_marker() == "_"]
    assert ends
    assert all(end.get_markersize() > mean.get_markersize() + 2 for end in ends)


def test_the_wide_interval_of_two_seeds_leaves_the_means_readable() -> None:
    axes = only_axes(figures.accuracy_vs_pruning(with_accuracies(0.96, 0.97)))
    low, high = axes.get_ylim()
    assert high - low < 10, "the interval of the tickets alone is 12.7 points wide"


def test_the_interval_of_a_censored_level_has_no_upper_limit() -> None:
    drawn = results(CHAIN, ["ticket"])
    drawn.levels["censored"] = [0, 0, 0, 1]
    drawn.networks["early_stopping_iteration"] = [40, 60, 40] * 4
    axes = only_axes(figures.early_stopping(drawn))
    band = axes.collections[0].get_paths()[0].vertices
    top = axes.get_ylim()[1]
    assert band[np.isclose(band[:, 0], 10), 1].max() == top
    assert band[np.isclose(band[:, 0], 40), 1].max() < top
    (words,) = [text for text in texts(figures.early_stopping(drawn)) if "Hollow" in text]
    assert "no upper limit" in words.replace("\n", " ")


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
    assert notes == ["Mean over 3 seeds with its 95 % interval. Dots: seeds. Lines: solid to p90, dashed to q95."]


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
    written = texts(figures.results_table(with_accuracies(0.96, 0.965, 0.97)))
    assert {"p80", "20.00 %", "200", "98.00 ± 1.00", "96.50 ± 0.50", "\N{MINUS SIGN}1.50"} <= written


def test_denses_accuracy_stands_in_a_column_of_its_own() -> None:
    axes = only_axes(figures.results_table(results(CHAIN)))
    places: dict[str, set[float]] = {}
    for text in axes.texts:
        places.setdefault(text.get_text(), set()).add(round(text.get_position()[0], 3))
    (dense,) = [text for text in axes.texts if "±" in text.get_text() and text.get_position()[1] < 0.9]
    assert round(dense.get_position()[0], 3) in places["dense"]
    assert not {round(dense.get_position()[0], 3)} & (places["ticket"] | places["reinit"] | places["random"])


def test_one_seed_has_no_deviation() -> None:
    drawn = results({"p80": ("dense", 0.8)}, ["ticket"], seeds=[4])
    assert not any("±" in text for text in texts(figures.results_table(drawn)))


ROUNDS = {f"round{k}": (f"round{k - 1}" if k > 1 else "dense", 1 - 0.8**k) for k in range(1, 18)}


def test_learning_curves_show_every_level_up_to_six_and_dense_in_each_panel() -> None:
    six = {f"p{k}": (f"p{k - 1}" if k > 1 else "dense", 0.1 * k) for k in range(1, 7)}
    for levels, note in ((CHAIN, ""), (six, ""), (ROUNDS, "6 of 17 levels.")):
        figure = figures.learning_curves(results(levels))
        panels = [axes for axes in figure.axes if axes.get_visible()]
        shown = [axes.get_title().partition(",")[0] for axes in panels]
        assert shown == (list(levels) if not note else ["round1", "round4", "round7", "round11", "round14", "round17"])
        for axes in panels:
            assert curve(axes, LOOKS["dense"].color)
        assert any(note in text for text in texts(figure))
    above_an_empty_place = figures.learning_curves(results(CHAIN)).axes[1]
    assert above_an_empty_place.get_xlabel() == "iteration"


def test_learning_curves_are_told_apart_without_colours() -> None:
    figure = figures.learning_curves(results(CHAIN, [*ARMS, "finetune"]))
    for axes in figure.axes[:3]:
        styles = [line._unscaled_dash_pattern for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(styles) == len({str(style) for style in styles}) == 5
    handles = {line.get_label(): line._unscaled_dash_pattern for line in figure.legends[0].get_lines()}
    assert len({str(style) for style in handles.values()}) == 5


@pytest.mark.parametrize("levels", [CHAIN, ROUNDS, dict(list(ROUNDS.items())[:5])], ids=["3", "17", "5"])
@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_axis_with_numbers_says_what_they_are(name: str, levels: dict[str, tuple[str, float]]) -> None:
    figure = FIGURES[name](results(levels, twins=("dense", "ticket")))
    assert figure
    figure.draw_without_rendering()
    for axes in figure.axes:
        if axes.get_visible() and axes.axison:
            for axis in (axes.xaxis, axes.yaxis):
                numbers = [text for text in axis.get_ticklabels() if text.get_visible() and text.get_text()]
                assert not numbers or axis.get_label_text(), (axes.get_title(), [text.get_text() for text in numbers])
            bottom = axes.get_subplotspec() is None or axes.get_subplotspec().is_last_row()
            assert not bottom or axes.get_xlabel() or name == "mask_inputs", axes.get_title()


@pytest.mark.parametrize("name", ["combined_metrics", "parameter_reduction"])
def test_the_legend_of_layers_is_over_no_bar_and_within_the_figure(name: str) -> None:
    drawn = results(ROUNDS | {f"once{k}": ("dense", k / 10) for k in range(1, 7)})
    with matplotlib.rc_context():
        matplotlib.rcParams.update(figures.STYLE)
        figure = FIGURES[name](drawn)
        assert figure
        figure.draw_without_rendering()
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Weights kept"]
    legend = axes.get_legend()
    assert legend
    box = legend.get_window_extent()
    assert not [bar for bar in axes.patches if bar.get_width() and bar.get_window_extent().overlaps(box)]
    assert not [text for text in axes.texts if text.get_window_extent().overlaps(box)]
    assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1


def test_the_legend_of_all_arms_is_within_the_figure() -> None:
    figure = FIGURES["accuracy_vs_pruning"](results(CHAIN, arms=tuple(EVERY_ARM)))
    assert figure
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_figure_has_words_that_give_its_values(name: str) -> None:
    drawn = results(CHAIN, twins=("dense", "ticket"))
    figure = FIGURES[name](drawn)
    assert figure
    words = figure.get_label()
    assert re.search(r"\d", words)
    assert words != (FIGURES[name].__doc__ or "").partition("\n")[0]
    assert len(words) < 700
    if name == "accuracy_vs_pruning":
        mean = 100 * drawn.networks.groupby(["level", "arm"])["test_accuracy"].mean()
        assert f"ticket {mean['p40', 'ticket']:.2f} (p40), {mean['p60', 'ticket']:.2f} (p60)" in words


# --- masks -----------------------------------------------------------------------------------------------------------


def test_structure_shows_the_units_that_are_cut_off_and_the_kept_weights_on_no_path() -> None:
    drawn = results(CHAIN)
    drawn.networks.loc[drawn.networks["level"] == "dense", ["connected_inputs", "effective_density"]] = [64, 1.0]
    panels = mask_figures.mask_structure(drawn).axes
    titles = ["Inputs without a connection", "Units of hidden layer 1 without a connection", "Kept weights on no path"]
    assert [axes.get_title() for axes in panels if axes.get_visible()] == titles
    assert panels[0].get_ylabel() == "of 64"
    means = drawn.networks.groupby(["level", "arm"])
    path = [("dense", "dense"), *((level, "ticket") for level in CHAIN)]
    assert curve(panels[0], LOOKS["ticket"].color) == [
        (pytest.approx(100 * means["density"].mean()[at]), pytest.approx(64 - means["connected_inputs"].mean()[at]))
        for at in path
    ]
    last = curve(panels[2], LOOKS["ticket"].color)[-1]
    p90 = drawn.networks.query("level == 'p90' and arm == 'ticket'")["effective_density"]
    assert last == (pytest.approx(10), pytest.approx(100 * (1 - p90.mean() / 0.1)))


def test_few_units_that_are_cut_off_fill_the_panel() -> None:
    drawn = results(CHAIN)
    drawn.networks["connected_inputs"] = [64] * 3 + [64, 63, 62] * 9
    axes = mask_figures.mask_structure(drawn).axes[0]
    low, high = axes.get_ylim()
    assert low == 0
    assert 1 <= high < 5, "two of 64 inputs would lie on the edge of an axis of 64"


def test_structure_says_which_arms_lie_under_the_ticket() -> None:
    assert any(
        "Under ticket, with the same mask: reinit." in text for text in texts(figures.mask_structure(results(CHAIN)))
    )


def test_overlap_stands_beside_chance_in_each_layer_and_in_all() -> None:
    drawn = results(CHAIN)
    figure = mask_figures.mask_overlap(drawn)
    assert {"hidden layer 1", "output layer", "all layers", "chance given each pixel's connections"} <= texts(figure)
    rows = drawn.structure[drawn.structure["arm"].isin(["dense", "ticket"])].set_index(["layer", "level"])
    for layer, axes in zip(("0", "1", "all"), figure.axes, strict=False):
        (line,) = [line for line in axes.lines if line.get_color() == LOOKS["ticket"].color]
        assert line.get_xdata() == pytest.approx([100, 60, 40, 10])
        assert line.get_ydata() == pytest.approx(100 * rows.loc[layer, "overlap"].to_numpy())
        chances = [line.get_ydata() for line in axes.lines if line.get_color() == mask_figures.CHANCES[0][1]]
        assert chances == [pytest.approx(100 * rows.loc[layer, "chance"].to_numpy())]


def test_of_one_seed_the_figure_says_that_there_is_no_overlap() -> None:
    written = texts(mask_figures.mask_overlap(results(CHAIN, seeds=[3])))
    assert "Overlap is between the masks of different seeds, and this pipeline has one seed." in written


@pytest.mark.parametrize("draw", [mask_figures.mask_overlap, mask_figures.kept_weights])
def test_without_tickets_the_figures_of_tickets_say_so(draw: Callable[[Results], Figure]) -> None:
    assert mask_figures.NO_TICKETS in texts(draw(results(CHAIN, ["random"])))


def test_kept_weights_are_drawn_for_six_levels_at_most_with_dense_and_the_sparsest_among_them() -> None:
    drawn = results(ROUNDS)
    figure = mask_figures.kept_weights(drawn)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert len(labels) == 6
    assert labels[0] == "dense\n100 %"
    assert labels[-1] == "round17\n2.25 %"
    start, end = figure.axes[1].patches  # of dense's output layer
    rows = drawn.kept_weights.query("level == 'dense' and layer == 1")
    assert start.get_data().values.tolist() == rows["start"].tolist()
    assert end.get_data().values.tolist() == rows["end"].tolist()


def test_a_ticket_is_so_many_times_smaller_than_dense() -> None:
    files, adds = FIGURES["compression"](results(CHAIN)).axes
    for axes, whole, columns in (
        (files, "checkpoint", ["ticket_half", "ticket", "checkpoint_zstd"]),
        (adds, "multiply_adds", ["multiply_adds_kept", "multiply_adds_compact"]),
    ):
        sizes = results(CHAIN).compression
        for line, column in zip(axes.lines, columns, strict=False):
            assert list(line.get_xdata()) == [100 * density for density in sizes["density"]]
            assert np.allclose(line.get_ydata(), sizes[whole][0] / sizes[column])


def test_connectivity_is_drawn_where_there_are_twins_for_the_arms_that_have_them() -> None:
    assert figures.connectivity(results(CHAIN)) is None
    drawn = results(CHAIN, twins=("dense", "ticket", "reinit"))
    figure = figures.connectivity(drawn)
    written = texts(figure)
    assert {"dense", "ticket", "reinit", "test images", "training images"} <= written
    assert "random" not in written
    mean = drawn.connectivity.query("level == 'p90' and arm == 'ticket'")[list(BARRIERS)].mean()
    for axes, images in zip(figure.axes, BARRIERS, strict=True):
        assert curve(axes, LOOKS["ticket"].color)[-1] == (pytest.approx(10), pytest.approx(100 * mean[images]))


# --- mask pictures ---------------------------------------------------------------------------------------------------


def _first_layer(mask: Tensor) -> Masks:
    """The masks of one perceptron whose first layer has this one, bool [in, out]."""
    masks = everything(1, perceptron((*mask.shape, 2)))
    masks.weights[0][0] = mask
    return masks


def test_the_picture_of_a_convolutions_mask_shows_its_kernels_side_by_side() -> None:
    masks = random_masks(2, published("lenet-5", (28, 28), 10), 0.5, 0)
    picture = family(masks.layout).picture(masks)
    assert picture.shape == (4 * 5 + 3, 5 * 5 + 4)
    kernels = masks.weights[0][0, :, 0]
    for place, kernel in enumerate(kernels):
        top, left = 6 * (place // 5), 6 * (place % 5)
        assert torch.equal(picture[top : top + 5, left : left + 5], kernel.float())
    assert picture[5::6].isnan().all()
    assert picture[:, 5::6].isnan().all()


@pytest.mark.parametrize(("inputs", "side"), [(784, 28), (64, 8), (90_000, 300)])
def test_a_mask_picture_is_a_square_of_square_blocks_wide_enough_for_the_ui(
    inputs: int, side: int, tmp_path: Path
) -> None:
    mask = torch.rand(inputs, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    save_mask_picture(_first_layer(mask), tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        pixels = np.asarray(image)[: image.width]  # the scale is below
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
    save_mask_picture(_first_layer(torch.ones(7, 4, dtype=torch.bool)), tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        opacity = np.asarray(image)[50:300:100, 50::100, 3]
    assert opacity.tolist() == [[255, 255, 255], [255, 255, 255], [255, 0, 0]]


def test_a_mask_picture_has_a_scale_from_none_to_the_most(tmp_path: Path) -> None:
    mask = torch.rand(784, 300, generator=torch.Generator().manual_seed(0)) < 0.5
    save_mask_picture(_first_layer(mask), tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        pixels = np.asarray(image)
    side, colors = pixels.shape[1], matplotlib.colormaps["viridis"]
    ends = pixels[side + 15, [0, -1]]
    assert ends.tolist() == [list(colors(end, bytes=True)) for end in (0.0, 1.0)]
    words = pixels[side + 22 :, :, 3] > 0
    assert [bool(words[:, at - 20 : at].any()) for at in (20, side // 2, side)] == [True, True, True]


def test_a_mask_that_keeps_nothing_has_a_picture(tmp_path: Path) -> None:
    save_mask_picture(_first_layer(torch.zeros(64, 4, dtype=torch.bool)), tmp_path / "mask.png")
    assert (tmp_path / "mask.png").exists()


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arms", [("random", "ticket"), ("random", "reinit"), ("small-dense", "lr-rewind")])
def test_connections_are_those_of_the_tickets_mask(arms: tuple[str, ...], workspace: Path) -> None:
    kept = torch.rand(4, 9, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    weights, masks = Stack.zeros(4, perceptron((9, 5))), everything(4, perceptron((9, 5)))
    masks.weights[0].copy_(kept)
    histories = (History([0], *(torch.zeros(1).double() for _ in range(3))),) * 4
    trained = Trained(weights, weights, histories)
    save_level(Level((0.5,), Rows(arms, (0, 1)), weights, masks, trained), Path("models/p50"), {})
    expected = (kept[2].sum(dim=1) + kept[3].sum(dim=1)) / 2
    assert plot.load_picture(Path("models/p50")).flatten().tolist() == expected.tolist()


def test_level_names_that_look_like_numbers_or_nothing_stay_names(workspace: Path) -> None:
    Path("reports/tables").mkdir(parents=True)
    levels = results({"007": ("dense", 0.4), "1e5": ("007", 0.5), "nan": ("1e5", 0.6), "null": ("nan", 0.7)}).levels
    levels.to_csv("reports/tables/levels.csv", index=False)
    pd.testing.assert_frame_equal(
        load_table(Path("reports/tables/levels.csv")).fillna({"parent": ""}),
        levels,
        check_dtype=False,
        check_exact=True,
    )


def test_a_data_set_that_is_missing_is_named_with_the_remedy(workspace: Path) -> None:
    with pytest.raises(LotteryError, match=r"^data/digits\.safetensors: missing.*dvc repro download"):
        plot.digest_of_data(Path("data/digits.safetensors"))
