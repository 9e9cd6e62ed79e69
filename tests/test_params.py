"""params.yaml: read as DVC reads it, checked as a whole, and every mistake told in one line."""

from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from dvc.utils.serialize import parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lottery import LotteryError
from lottery.core.layout import perceptron, published
from lottery.params import RECORDED, Params, load, parse, read
from lottery.plan import DATA

DEFAULT = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")

CHAIN = """\
  p40: {sparsity: 0.40, parent: dense}
  p60: {sparsity: 0.60, parent: p40}
  p80: {sparsity: 0.80, parent: p60}
  p90: {sparsity: 0.90, parent: p80}
  p95: {sparsity: 0.95, parent: p90}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load_text(text: str) -> Params:
    Path("params.yaml").write_text(text, encoding="utf-8")
    return load()


def mistakes(text: str) -> list[str]:
    with pytest.raises(LotteryError) as caught:
        load_text(text)
    return str(caught.value).splitlines()


def default_with(*replacements: tuple[str, str]) -> str:
    text = DEFAULT
    for old, new in replacements:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in params.yaml"
        text = text.replace(old, new)
    return text


def default_with_levels(**parents_and_sparsities: tuple[str, float]) -> str:
    lines = (f"  {name}: {{sparsity: {s}, parent: {p}}}\n" for name, (p, s) in parents_and_sparsities.items())
    return default_with((CHAIN, "".join(lines)))


# What follows from a valid file


def test_the_default_file_is_valid() -> None:
    params = load_text(DEFAULT)
    assert params.data.name == "mnist"
    assert params.network.hidden == (300, 100)
    assert params.train.seeds == (0, 1, 2, 3, 4)
    assert params.train.learning_rate == 0.0012
    assert (params.train.momentum, params.train.weight_decay) == (0.0, 0.0)
    assert params.prune.arms == ("ticket", "reinit", "random")
    assert params.levels["p80"].parent == "p60"
    assert params.run.threads == "auto"


def test_the_data_set_decides_the_file_and_the_number_of_inputs() -> None:
    assert load_text(DEFAULT).layout == perceptron((784, 300, 100, 10))
    digits = load_text(default_with(("name: mnist", "name: digits")))
    assert digits.layout == perceptron((64, 300, 100, 10))
    assert digits.data_file == Path("data/digits.safetensors")


def test_params_are_frozen() -> None:
    params = load_text(DEFAULT)
    with pytest.raises(ValidationError, match="frozen"):
        params.train.batch_size = 1


def test_params_survive_being_dumped_and_checked_again() -> None:
    params = load_text(DEFAULT)
    assert Params.model_validate(params.model_dump()) == params


def test_an_epoch_drops_its_incomplete_last_batch() -> None:
    params = load_text(DEFAULT)
    assert params.training_images == 55_000
    assert params.validation_images == 5_000
    assert params.iterations == 5 * 916


def test_iterations_may_be_given_instead_of_epochs() -> None:
    assert load_text(default_with(("epochs: 5 ", "iterations: 1234 "))).iterations == 1234
    assert load_text(default_with(("epochs: 5 ", "epochs: null\n  iterations: 1234 "))).iterations == 1234


def test_digits_holds_out_a_tenth_whatever_the_file_says() -> None:
    params = load_text(default_with(("name: mnist", "name: digits")))
    assert DATA["digits"].training == 1_438
    assert params.validation_images == 143
    assert params.training_images == 1_295


def test_an_int_is_fine_where_a_float_is_expected() -> None:
    params = load_text(
        default_with(("learning_rate: 0.0012", "learning_rate: 1"), ("output_rate: 0.5", "output_rate: 0"))
    )
    assert (params.train.learning_rate, params.prune.output_rate) == (1.0, 0.0)
    assert isinstance(params.train.learning_rate, float)


def test_sgd_takes_momentum_and_weight_decay() -> None:
    sgd = default_with(("optimizer: adam ", "momentum: 0.9\n  weight_decay: 1e-4\n  optimizer: sgd "))
    assert (load_text(sgd).train.momentum, load_text(sgd).train.weight_decay) == (0.9, 0.0001)


def test_a_path_holds_the_sparsities_from_dense_down() -> None:
    params = load_text(DEFAULT)
    assert params.path("dense") == ()
    assert params.path("p40") == (0.4,)
    assert params.path("p90") == (0.4, 0.6, 0.8, 0.9)
    with pytest.raises(KeyError):
        params.path("p99")


def test_parents_come_before_their_children_and_the_rest_stays_in_file_order() -> None:
    assert load_text(DEFAULT).order == ("p40", "p60", "p80", "p90", "p95")
    tree = default_with_levels(
        deep=("mid", 0.9), other=("dense", 0.3), mid=("top", 0.7), top=("dense", 0.5), last=("other", 0.4)
    )
    assert load_text(tree).order == ("other", "top", "mid", "deep", "last")


def test_controls_alone_do_where_no_level_has_children() -> None:
    one_shot = default_with_levels(p50=("dense", 0.5), p90=("dense", 0.9))
    assert load_text(one_shot.replace("[ticket, reinit, random]", "[random]")).prune.arms == ("random",)


# Every mistake is one line with the file, the key, the value and the remedy

COUNT = "a whole number of 1 or more"
WHOLE = f"is not {COUNT}"
A_LIST = "is not a list with at least one item"
BELOW_1 = "is not a number above 0 and below 1"
FROM_0_BELOW_1 = "is not a number from 0 up to, but not including, 1"
SEED = "is not a whole number from 0 to 2**63 - 1"
THREADS = "is not auto or a whole number from 1 to 1024"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        # data
        (
            "name: mnist",
            "name: minst",
            'data.name: "minst" is not mnist, fashion-mnist, kmnist, cifar-10, digits or own (did you mean "mnist"?)',
        ),
        ("name: mnist", 'name: "mnist\\n"', 'data.name: "mnist\\n" is not mnist, '),
        ("name: mnist", "name: 3", "data.name: 3 is not mnist, fashion-mnist, kmnist, cifar-10, digits or own"),
        ("validation: 5000", "validation: 0", f"data.validation: 0 {WHOLE}"),
        ("validation: 5000", "validation: true", f"data.validation: true {WHOLE}"),
        ("validation: 5000", 'validation: "5000"', f'data.validation: "5000" {WHOLE}'),
        ("validation: 5000", "validation: 5e3", f"data.validation: 5000.0 {WHOLE}"),
        ("validation: 5000", "validation:", f"data.validation: null {WHOLE}"),
        ("scale: standard", "scale: Unit", 'data.scale: "Unit" is not standard or unit (did you mean "unit"?)'),
        ("scale: standard ", "scael: unit #", 'data.scael: unknown key (did you mean "scale"?)'),
        # network
        ("[300, 100]", "[]", f"network.hidden: [] {A_LIST}"),
        ("[300, 100]", "300", f"network.hidden: 300 {A_LIST}"),
        ("[300, 100]", "!!set {300}", f"network.hidden: a set {A_LIST}"),
        ("[300, 100]", "[300, 0]", f"network.hidden[1]: 0 {WHOLE}"),
        ("[300, 100]", "[300, 10.5]", f"network.hidden[1]: 10.5 {WHOLE}"),
        (
            "glorot-normal",
            "glorot",
            'network.initialization: "glorot" is not glorot-normal, kaiming-uniform or kaiming-normal '
            '(did you mean "glorot-normal"?)',
        ),
        ("  arguments: {}\n", "", "network.arguments: missing; give the arguments of your own network, or {}"),
        # train
        ("[0, 1, 2, 3, 4]", "[]", f"train.seeds: [] {A_LIST}"),
        ("[0, 1, 2, 3, 4]", "[0, 1, 0, 0]", "train.seeds: 0 is listed more than once; remove the repetition"),
        ("[0, 1, 2, 3, 4]", "[-1]", f"train.seeds[0]: -1 {SEED}"),
        ("[0, 1, 2, 3, 4]", "[9223372036854775808]", f"train.seeds[0]: 9223372036854775808 {SEED}"),
        ("[0, 1, 2, 3, 4]", "[no]", f'train.seeds[0]: "no" {SEED}'),
        ("epochs: 5 ", "epochs: 0 ", f"train.epochs: 0 {WHOLE}"),
        ("epochs: 5 ", "#", "train.epochs: missing; give either epochs or iterations"),
        (
            "epochs: 5 ",
            "epochs: 5\n  iterations: 9 ",
            "train.iterations: 9 stands beside epochs: 5; remove one of the two",
        ),
        ("  batch_size: 60\n", "", "train.batch_size: missing; give a whole number of 1 or more"),
        (
            "batch_size: 60\n",
            "batch_size: 60000\n",
            "train.batch_size: 60000 is more than the 55000 training images left (60000 - 5000 held out); "
            "give 55000 or less",
        ),
        ("optimizer: adam", "optimizer: adma", 'train.optimizer: "adma" is not adam or sgd (did you mean "adam"?)'),
        ("optimizer: adam", "optimizer: lbfgs", 'train.optimizer: "lbfgs" is not adam or sgd'),
        (
            "optimizer: adam",
            "momentum: 0.9\n  optimizer: adam",
            "train.momentum: 0.9 is for sgd alone; remove it, or set train.optimizer to sgd",
        ),
        (
            "optimizer: adam",
            "weight_decay: 1e-4\n  optimizer: adam",
            "train.weight_decay: 0.0001 is for sgd alone; remove it, or set train.optimizer to sgd",
        ),
        ("optimizer: adam", "momentum: 1\n  optimizer: sgd", f"train.momentum: 1 {FROM_0_BELOW_1}"),
        (
            "optimizer: adam",
            "weight_decay: -1\n  optimizer: sgd",
            "train.weight_decay: -1 is not a number of 0 or more",
        ),
        ("0.0012", "0", "train.learning_rate: 0 is not a number above 0"),
        ("0.0012", ".nan", "train.learning_rate: .nan is not a number above 0"),
        ("0.0012", ".inf", "train.learning_rate: .inf is not a number above 0"),
        ("0.0012", "-.inf", "train.learning_rate: -.inf is not a number above 0"),
        ("0.0012", "1e400", "train.learning_rate: .inf is not a number above 0"),
        ("0.0012", "fast", 'train.learning_rate: "fast" is not a number above 0'),
        ("evaluate_every: 250", "evaluate_every: [250]", f"train.evaluate_every: a list {WHOLE}"),
        # prune
        ("[ticket, reinit, random]", "[]", f"prune.arms: [] {A_LIST}"),
        (
            "[ticket, reinit, random]",
            "[ticket, renit]",
            'prune.arms[1]: "renit" is not ticket, reinit, random, random-inputs, small-dense, finetune or lr-rewind '
            '(did you mean "reinit"?)',
        ),
        (
            "[ticket, reinit, random]",
            "[ticket, ticket]",
            'prune.arms: "ticket" is listed more than once; remove the repetition',
        ),
        (
            "[ticket, reinit, random]",
            "[reinit]",
            "prune.arms: ticket is missing, yet p60 prunes the ticket of its parent p40; add it",
        ),
        (
            "criterion: magnitude",
            "criterion: magnitud",
            'prune.criterion: "magnitud" is not magnitude, magnitude-increase, movement, random, snip or synflow (did '
            'you mean "magnitude"?)',
        ),
        ("scope: layer", "scope: on", 'prune.scope: "on" is not layer or global'),
        ("output_rate: 0.5", "output_rate: 1.5", "prune.output_rate: 1.5 is not a number from 0 to 1"),
        ("rewind: 0 ", "rewind: -1 ", "prune.rewind: -1 is not a whole number of 0 or more"),
        ("rewind: 0 ", "rewind: 0.5 ", "prune.rewind: 0.5 is not a whole number of 0 or more"),
        ("rewind: 0 ", "#", "prune.rewind: missing; give a whole number of 0 or more"),
        ("from: ticket", "from: reinit", 'prune.from: "reinit" is not ticket, finetune or lr-rewind'),
        ("from: ticket", "source: ticket", "prune.source: unknown key"),
        (
            "from: ticket",
            "from: finetune",
            "prune.arms: finetune is missing, yet p60 prunes the finetune of its parent p40; add it",
        ),
        # schedules and twins
        (
            "schedule: constant",
            "schedule: cosin",
            'train.schedule: "cosin" is not constant, warm-up, step or cosine (did you mean "cosine"?)',
        ),
        ("schedule: constant", "schedule: warm-up", f"train.warm_up: missing; schedule warm-up needs it: give {COUNT}"),
        ("schedule: constant", "schedule: warm-up\n  warm_up: 0", f"train.warm_up: 0 {WHOLE}"),
        (
            "schedule: constant",
            "schedule: warm-up\n  warm_up: 5000",
            "train.warm_up: 5000 is not before the last of the 4580 iterations; give less",
        ),
        (
            "schedule: constant",
            "schedule: constant\n  warm_up: 5",
            "train.warm_up: 5 is for warm-up alone; remove it, or set train.schedule to warm-up",
        ),
        (
            "schedule: constant",
            "schedule: step",
            "train.drops: missing; schedule step needs it: give a list of iterations",
        ),
        ("schedule: constant", "schedule: step\n  drops: 5", f"train.drops: 5 {A_LIST}"),
        ("schedule: constant", "schedule: step\n  drops: [5, 0]", f"train.drops[1]: 0 {WHOLE}"),
        (
            "schedule: constant",
            "schedule: step\n  drops: [7, 5]",
            "train.drops: 5 does not come after 7; list them in rising order",
        ),
        (
            "schedule: constant",
            "schedule: step\n  drops: [7, 4580]",
            "train.drops: 4580 is not before the last of the 4580 iterations; give less",
        ),
        ("schedule: constant", "schedule: step\n  drops: [7]\n  drop_factor: 1", f"train.drop_factor: 1 {BELOW_1}"),
        (
            "schedule: constant",
            "schedule: cosine\n  drops: [7]",
            "train.drops: a list is for step alone; remove it, or set train.schedule to step",
        ),
        (
            "schedule: constant",
            "schedule: cosine\n  drop_factor: 0.5",
            "train.drop_factor: 0.5 is for step alone; remove it, or set train.schedule to step",
        ),
        ("twins: false", "twins: 1", "train.twins: 1 is not true or false"),
        (
            "rewind: 0 ",
            "rewind: 4580 ",
            "prune.rewind: 4580 is not before the last of the 4580 iterations; give less",
        ),
        # a level's own
        (
            "0.60, parent: p40}",
            "0.60, parent: p40, arms: [reinit]}",
            "levels.p60.arms: ticket is missing, yet p80 prunes the ticket of its parent p60; add it",
        ),
        (
            "0.60, parent: p40}",
            "0.60, parent: p40, scope: all}",
            'levels.p60.scope: "all" is not layer or global',
        ),
        (
            "0.60, parent: p40}",
            "0.60, parent: p40, scope: global}",
            "levels.p60.scope: p60 is pruned globally and may keep less of a layer than p80 is to keep; give both one "
            "scope",
        ),
        # verdict, export, tracking, run
        ("level: auto", "level: p59", 'export.level: no level is called "p59" (did you mean "p95"?)'),
        ("level: auto", "level: 7", 'export.level: 7 is not auto, "dense" or the name of a level'),
        ("seed: best", "seed: 5", "export.seed: 5 is not one of train.seeds; give best or one of 0, 1, 2, 3, 4"),
        ("seed: best", "seed: worst", 'export.seed: "worst" is not best, or one of train.seeds'),
        ("values: float32", "values: int8", 'export.values: "int8" is not float32 or half'),
        ("values: float32", "value: float32", 'export.value: unknown key (did you mean "values"?)'),
        ("margin: 0.2 ", "margin: 0 ", "verdict.margin: 0 is not a number above 0"),
        ("speed_margin: 1.25", "speed_margin: 1", "verdict.speed_margin: 1 is not a number above 1"),
        ("lottery-tickets", '""', 'tracking.mlflow_experiment: "" is not the name of an MLflow experiment'),
        (
            "lottery-tickets",
            "2026-01-01",
            "tracking.mlflow_experiment: the date 2026-01-01 is not the name of an MLflow experiment",
        ),
        ("threads: auto", "threads: 0", f"run.threads: 0 {THREADS}"),
        ("threads: auto", "threads: all", f'run.threads: "all" {THREADS}'),
        ("threads: auto", "threads: &x [*x]", f"run.threads: a list {THREADS}"),
        ("every: 20 ", "every: -1", "run.checkpoint_every: -1 is not a number of seconds from 0 to 86400"),
        ("every: 20 ", "every: often", 'run.checkpoint_every: "often" is not a number of seconds from 0 to 86400'),
        # sections
        ("run:  ", "rum:  ", 'rum: unknown key (did you mean "run"?)'),
        (
            "  mlflow_experiment: lottery-tickets\n  required: false ",
            "",
            "tracking: null is not a mapping; the keys ",
        ),
        ("engine: local", "engine: cloud", 'run.engine: "cloud" is not local or ray'),
        ("engine: local", "ray: {adress: a}", 'run.ray.adress: unknown key (did you mean "address"?)'),
        ("engine: local", "ray: null", "run.ray: null is not a mapping; the keys here are address, "),
        ("engine: local", "ray: {address: head}", 'run.ray.address: "head" is not host:port of a Ray cluster\'s head'),
        ("run:  ", "5: 6\nrun:  ", "[5]: unknown key; the keys here are "),
    ],
)
def test_a_mistake_is_told_with_its_key_and_value(old: str, new: str, line: str) -> None:
    assert mistakes(default_with((old, new)))[-1].startswith(f"params.yaml: {line}")


@pytest.mark.parametrize(
    "value", ["minst", "-3", "[]", "{}", "~", ".nan", "true", "2026-01-01", "!!binary YQ==", "'%s {x}'"]
)
@pytest.mark.parametrize(
    "key", ["name: mnist", "validation: 5000", "sparsity: 0.40", "parent: p60", "hidden: [300, 100]"]
)
def test_any_wrong_value_makes_a_single_line(key: str, value: str) -> None:
    assert len(mistakes(default_with((key, f"{key.split(':')[0]}: {value}")))) == 1


def test_a_level_without_tickets_is_not_exported() -> None:
    text = default_with(("0.95, parent: p90}", "0.95, parent: p90, arms: [reinit]}"), ("level: auto", "level: p95"))
    assert mistakes(text) == ["params.yaml: export.level: p95 has no arm ticket; choose a level that has it, or auto"]


def test_all_mistakes_are_told_at_once() -> None:
    text = default_with(("name: mnist", "name: svhn"), ("batch_size: 60\n", "batchsize: 60\n"), ("p80}", "p08}"))
    assert mistakes(text) == [
        'params.yaml: data.name: "svhn" is not mnist, fashion-mnist, kmnist, cifar-10, digits or own',
        "params.yaml: train.batch_size: missing; give a whole number of 1 or more",
        'params.yaml: train.batchsize: unknown key (did you mean "batch_size"?)',
        'params.yaml: levels.p90.parent: no level is called "p08" (did you mean "p80"?)',
    ]


def test_every_section_must_be_there() -> None:
    lines = mistakes("run: {threads: 1}\n")
    assert [line.split(": ")[1] for line in lines] == [
        "data", "network", "train", "prune", "levels", "verdict", "export", "tracking",
    ]  # fmt: skip
    assert lines[0] == "params.yaml: data: missing; give it the keys name, file, validation, scale"


@pytest.mark.parametrize(
    ("validation", "line"),
    [
        (59_940, None),  # one full batch
        (
            59_941,
            "train.batch_size: 60 is more than the 59 training images left (60000 - 59941 held out); give 59 or less",
        ),
        (60_000, "data.validation: 60000 leaves none of the 60000 training images; give less than 60000"),
    ],
)
def test_validation_leaves_at_least_one_batch(validation: int, line: str | None) -> None:
    text = default_with(("validation: 5000", f"validation: {validation}"))
    if line is None:
        assert load_text(text).iterations == 5
    else:
        assert mistakes(text) == [f"params.yaml: {line}"]


# Levels


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("P40", '"P40"'),
        ("-p", '"-p"'),
        ("p_40", '"p_40"'),
        ('"p40\\n"', '"p40\\n"'),
        ("p;touch y", '"p;touch y"'),
        ("dense", '"dense"'),
        ("40", "40"),
        ("0.4", "0.4"),
        ("true", "true"),
        ("~", "null"),
    ],
)
def test_a_level_has_a_plain_name(name: str, shown: str) -> None:
    assert mistakes(default_with((CHAIN, f"  {name}: {{sparsity: 0.5, parent: dense}}\n"))) == [
        f"params.yaml: levels: {shown} is not a name for a level: "
        'make it a text of up to 100 of a-z, 0-9 and "-" that begins with a letter or digit, other than '
        "auto, dense, download, evaluate, export and plot"
    ]


def test_words_that_older_yaml_took_for_booleans_are_names_too() -> None:
    assert load_text(default_with_levels(on=("dense", 0.5), y=("on", 0.6))).order == ("on", "y")


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        ("  {}\n", "levels: {} is not a mapping with at least one level, such as p80: {sparsity: 0.8, parent: dense}"),
        ("  [1]\n", "levels: a list is not a mapping with at least one level, such as "),
        ("  p40: 0.4\n", "levels.p40: 0.4 is not a mapping; the keys here are sparsity, parent, arms, "),
        ("  p40: {parent: dense}\n", "levels.p40.sparsity: missing; give a number above 0 and below 1"),
        ("  p40: {sparsity: 0.4}\n", 'levels.p40.parent: missing; give the name of a level, or "dense"'),
        ("  p40: {sparsity: 1, parent: dense}\n", f"levels.p40.sparsity: 1 {BELOW_1}"),
        ("  p40: {sparsity: -0.1, parent: dense}\n", f"levels.p40.sparsity: -0.1 {BELOW_1}"),
        ("  p40: {sparsity: .nan, parent: dense}\n", f"levels.p40.sparsity: .nan {BELOW_1}"),
        ("  p40: {sparsity: 0.4, parent: 40}\n", 'levels.p40.parent: 40 is not the name of a level, or "dense"'),
        (
            "  p40: {sparsity: 0.4, parent: dense, sparcity: 1}\n",
            'levels.p40.sparcity: unknown key (did you mean "sparsity"?)',
        ),
    ],
)
def test_a_level_is_a_sparsity_and_a_parent(levels: str, line: str) -> None:
    (told,) = mistakes(default_with((CHAIN, levels)))
    assert told.startswith(f"params.yaml: {line}")


def test_a_parent_that_does_not_exist_is_told_with_the_likely_one() -> None:
    assert mistakes(default_with(("0.80, parent: p60", "0.80, parent: p06"))) == [
        'params.yaml: levels.p80.parent: no level is called "p06" (did you mean "p60"?)'
    ]


def test_a_parent_that_resembles_no_level_is_told_with_all_of_them() -> None:
    assert mistakes(default_with(("0.80, parent: p60", "0.80, parent: lenet"))) == [
        'params.yaml: levels.p80.parent: no level is called "lenet"; choose from dense, p40, p60, p80, p90, p95'
    ]


def test_a_parent_that_resembles_several_levels_alike_is_not_guessed() -> None:
    (line,) = mistakes(default_with(("0.80, parent: p60", "0.80, parent: p70")))
    assert "did you mean" not in line


def test_each_cycle_is_named_once() -> None:
    text = default_with_levels(
        a=("c", 0.3), b=("a", 0.4), c=("b", 0.5), under=("c", 0.6), self=("self", 0.7), fine=("dense", 0.2)
    )
    assert mistakes(text) == [
        "params.yaml: levels.a.parent: the cycle a -> c -> b -> a never reaches dense; change one parent in it",
        "params.yaml: levels.self.parent: the cycle self -> self never reaches dense; change one parent in it",
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "sparsity: 0.80",
            "sparsity: 0.60",
            "levels.p80.sparsity: 0.6 is not above the 0.6 of its parent p60; raise it or change the parent",
        ),
        (
            "sparsity: 0.40",
            "sparsity: 0",
            "levels.p40.sparsity: 0 is not a number above 0 and below 1",
        ),
    ],
)
def test_a_child_must_be_sparser_than_its_parent(old: str, new: str, line: str) -> None:
    assert mistakes(default_with((old, new))) == [f"params.yaml: {line}"]


@pytest.mark.parametrize(
    ("scope", "weights"),
    [("layer", "235200 weights of hidden layer 1"), ("global", "266200 weights of the network")],
)
def test_a_level_keeps_at_least_one_weight(scope: str, weights: str) -> None:
    text = default_with(("scope: layer ", f"scope: {scope} "), ("sparsity: 0.95", "sparsity: 0.999999"))
    line = f"params.yaml: levels.p95.sparsity: 0.999999 keeps none of the {weights}; give less"
    assert mistakes(text) == [line]


# Combinations


def test_a_level_may_have_its_own_arms_criterion_and_scope() -> None:
    own = "  p40: {sparsity: 0.4, parent: dense, arms: [random, ticket], criterion: movement, scope: global}\n"
    params = load_text(default_with((CHAIN, own + "  p60: {sparsity: 0.6, parent: dense}\n")))
    assert [(params.arms(name), params.criterion(name), params.scope(name)) for name in params.order] == [
        (("random", "ticket"), "movement", "global"),
        (("ticket", "reinit", "random"), "magnitude", "layer"),
    ]
    assert params.every_arm == ("random", "ticket", "reinit")


@pytest.mark.parametrize("source", ["finetune", "lr-rewind"])
def test_children_may_prune_networks_that_were_trained_on(source: str) -> None:
    params = load_text(default_with(("from: ticket", f"from: {source}"), ("[ticket, ", f"[{source}, ticket, ")))
    assert params.prune.source == source
    assert Params.model_validate(params.model_dump()) == params


def test_a_source_without_children_to_prune_it_is_refused() -> None:
    text = default_with(("from: ticket", "from: finetune"), (CHAIN, "  p95: {sparsity: 0.95, parent: dense}\n"))
    line = "params.yaml: prune.from: finetune says what children prune, and no level is a parent; make it ticket"
    assert mistakes(text) == [line]


def test_finetune_and_lr_rewind_are_one_in_two_levels_too() -> None:
    levels = "".join(
        f"  {name}: {{sparsity: 0.9, parent: dense, arms: [ticket, {arm}]}}\n"
        for name, arm in (("p90", "finetune"), ("q90", "lr-rewind"))
    )
    (line,) = mistakes(default_with((CHAIN, levels)))
    assert line.startswith("params.yaml: levels.q90.arms: finetune and lr-rewind are one")


CONTINUED = ("[ticket, reinit, random]", "[ticket, finetune, lr-rewind]")
STEADY = "finetune and lr-rewind are one once rates are steady; remove one, or change train.schedule"


@pytest.mark.parametrize(
    ("schedule", "rewind", "line"),
    [
        (
            "constant",
            0,
            "finetune and lr-rewind are one with a constant learning rate; remove one, or change train.schedule",
        ),
        ("warm-up\n  warm_up: 10", 8, None),
        ("warm-up\n  warm_up: 10", 9, STEADY),  # the iteration after it is at the full rate
        ("step\n  drops: [5, 10]", 9, None),
        ("step\n  drops: [5, 10]", 10, STEADY),
        ("cosine", 4578, None),
        ("cosine", 4579, STEADY),  # one iteration is left
    ],
)
def test_finetune_and_lr_rewind_stand_side_by_side_where_the_learning_rate_still_changes(
    schedule: str, rewind: int, line: str | None
) -> None:
    text = default_with(
        ("schedule: constant", f"schedule: {schedule}"), ("rewind: 0 ", f"rewind: {rewind} "), CONTINUED
    )
    if line is None:
        assert load_text(text).every_arm == ("ticket", "finetune", "lr-rewind")
    else:
        assert mistakes(text) == [f"params.yaml: prune.arms: {line}"]


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_criteria_before_training_rank_the_dense_networks_weights_globally(criterion: str) -> None:
    level = f"  p40: {{sparsity: 0.4, parent: dense, criterion: {criterion}, scope: global}}\n"
    assert load_text(default_with((CHAIN, level))).criterion("p40") == criterion


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("", "prune.scope: layer is not how snip ranks (level a); make it global"),
        (", scope: layer", "levels.a.scope: layer is not how snip ranks (level a); make it global"),
        (
            ", scope: global, arms: [ticket, small-dense]",
            "levels.a.arms: small-dense does not go with snip (level a); use ticket, reinit and random",
        ),
    ],
)
def test_criteria_before_training_refuse_what_they_cannot_have(more: str, line: str) -> None:
    level = f"  a: {{sparsity: 0.4, parent: dense, criterion: snip{more}}}\n"
    assert mistakes(default_with((CHAIN, level))) == [f"params.yaml: {line}"]


def test_criteria_before_training_stand_alone_in_the_tree() -> None:
    levels = """\
  a: {sparsity: 0.4, parent: dense, criterion: synflow, scope: global}
  b: {sparsity: 0.5, parent: a, scope: global}
  c: {sparsity: 0.6, parent: b, criterion: snip, scope: global}
"""
    assert mistakes(default_with((CHAIN, levels))) == [
        "params.yaml: levels.b.parent: a is pruned by synflow and has no children; make it dense",
        "params.yaml: levels.c.parent: b is trained, yet snip ranks weights before training; make it dense",
    ]


def test_criteria_before_training_prune_iteration_0() -> None:
    levels = "".join(
        f"  {name}: {{sparsity: 0.4, parent: dense, criterion: snip, scope: global}}\n" for name in ("a", "b")
    )
    assert mistakes(default_with((CHAIN, levels), ("rewind: 0 ", "rewind: 5 "))) == [
        "params.yaml: prune.rewind: 5 does not go with snip (level a), which prunes iteration 0; make it 0"
    ]


def test_a_mistake_in_the_settings_of_all_levels_is_told_once() -> None:
    text = default_with(("criterion: magnitude ", "criterion: snip "), ("[ticket, reinit, random]", "[random-inputs]"))
    one_shot = text.replace(CHAIN, "".join(f"  p{p}: {{sparsity: 0.{p}, parent: dense}}\n" for p in (40, 60)))
    assert mistakes(one_shot) == [
        "params.yaml: prune.scope: layer is not how snip ranks (level p40); make it global",
        "params.yaml: prune.arms: random-inputs does not go with snip (level p40); use ticket, reinit and random",
    ]


def test_children_of_levels_that_are_pruned_globally_are_so_too() -> None:
    # by layer they would keep weights that their parent pruned
    text = default_with(("scope: layer ", "scope: global "), ("0.95, parent: p90}", "0.95, parent: p90, scope: layer}"))
    (line,) = mistakes(text)
    assert line.startswith("params.yaml: levels.p95.scope: p90 is pruned globally")


def test_what_dvc_recorded_need_not_agree() -> None:
    values = parse(default_with(("rewind: 0 ", "rewind: 10000 ")))
    assert Params.model_validate(values, context=RECORDED).prune.rewind == 10_000
    with pytest.raises(ValidationError):
        Params.model_validate(values)


@pytest.mark.parametrize(("rate", "fine"), [("0.5", True), ("0", True), ("0.0", True), ("0.3", False), ("1.0", False)])
def test_an_output_rate_is_refused_where_no_level_is_pruned_by_layer(rate: str, fine: bool) -> None:
    text = default_with(("output_rate: 0.5", f"output_rate: {rate}"), ("scope: layer ", "scope: global "))
    if fine:
        assert load_text(text).prune.output_rate == float(rate)
    else:
        assert mistakes(text) == [
            f"params.yaml: prune.output_rate: {rate} is for scope layer, and no level has it; "
            "make it 0.5, or 0 to leave the output layer whole"
        ]


def test_an_output_rate_is_fine_where_one_level_is_pruned_by_layer() -> None:
    levels = "  a: {sparsity: 0.4, parent: dense}\n  b: {sparsity: 0.4, parent: dense, scope: layer}\n"
    load_text(
        default_with((CHAIN, levels), ("output_rate: 0.5", "output_rate: 1"), ("scope: layer ", "scope: global "))
    )


def test_an_output_layer_that_is_left_whole_leaves_weights_to_the_others() -> None:
    whole = [("output_rate: 0.5", "output_rate: 0"), ("scope: layer ", "scope: global ")]
    assert mistakes(default_with(*whole, ("sparsity: 0.95", "sparsity: 0.997"))) == [
        "params.yaml: levels.p95.sparsity: 0.997 keeps 799 of the 266200 weights of the network, "
        "and output_rate 0 keeps the 1000 of the output layer; give less"
    ]


# Networks

PERCEPTRON = "  hidden: [300, 100]       # LeNet-300-100\n"
LENET = (("name: perceptron  ", "name: lenet-5  "), (PERCEPTRON, ""))


def test_lenet_5_needs_no_hidden_layers_and_prunes_convolutions_at_half_the_rate() -> None:
    params = load_text(default_with(*LENET))
    assert params.layout == published("lenet-5", (28, 28), 10)
    assert params.slower == {"output": 0.5, "convolution": 0.5}
    own = load_text(default_with(*LENET, ("  output_rate", "  conv_rate: 0.25\n  output_rate")))
    assert own.slower == {"output": 0.5, "convolution": 0.25}


def test_a_file_without_a_network_name_means_a_perceptron() -> None:
    line = next(line for line in DEFAULT.splitlines() if "name: perceptron" in line)
    assert load_text(default_with((f"{line}\n", ""))).layout == perceptron((784, 300, 100, 10))


@pytest.mark.parametrize(
    ("replacements", "line"),
    [
        ((LENET[0],), "network.hidden: a list is for perceptron alone; remove it, or set network.name to perceptron"),
        (
            (LENET[1],),
            "network.hidden: missing; give a list of the units in each hidden layer, such as [300, 100]",
        ),
        (
            (("name: perceptron", "name: lenet5"),),
            'network.name: "lenet5" is not perceptron, lenet-5, conv-2, conv-4, conv-6 or own '
            '(did you mean "lenet-5"?)',
        ),
        (
            (*LENET, ("name: mnist", "name: digits")),
            "network.name: lenet-5's kernels do not fit the 8x8 pixels of digits; make it perceptron, or change "
            "data.name",
        ),
        (
            (*LENET, ("[ticket, reinit, random]", "[ticket, random-inputs]")),
            "prune.arms: random-inputs is for perceptrons alone, and network.name is lenet-5; remove it",
        ),
        (
            (*LENET, ("[ticket, reinit, random]", "[ticket, random-inputs, small-dense]")),
            "prune.arms: random-inputs and small-dense are for perceptrons alone, and network.name is lenet-5; "
            "remove both",
        ),
        (
            (("  output_rate", "  conv_rate: 0.5\n  output_rate"),),
            "prune.conv_rate: 0.5 is for convolutions, and a perceptron has none; remove it",
        ),
        (
            (*LENET, ("  output_rate", "  conv_rate: 1.5\n  output_rate")),
            "prune.conv_rate: 1.5 is not a number from 0 to 1",
        ),
        (
            (*LENET, ("  output_rate", "  conv_rate: 0.25\n  output_rate"), ("scope: layer ", "scope: global ")),
            "prune.conv_rate: 0.25 is for scope layer, and no level has it; "
            "make it 0.5, or 0 to leave convolutions whole",
        ),
    ],
)
def test_settings_that_a_network_does_not_have_are_told(replacements: tuple[tuple[str, str], ...], line: str) -> None:
    assert mistakes(default_with(*replacements)) == [f"params.yaml: {line}"]


def test_layers_that_are_left_whole_are_named_in_one_order() -> None:
    whole = (*LENET, ("  output_rate: 0.5", "  conv_rate: 0\n  output_rate: 0"))
    told = mistakes(default_with(*whole, ("scope: layer ", "scope: global ")))
    said = "output_rate 0 and conv_rate 0 keep the 30500 of the output layer and the convolutions; give less"
    assert told[-1].endswith(said)


def test_convolutions_that_are_left_whole_leave_weights_to_the_others() -> None:
    whole = (*LENET, ("  output_rate", "  conv_rate: 0\n  output_rate"), ("scope: layer ", "scope: global "))
    assert mistakes(default_with(*whole)) == [
        "params.yaml: levels.p95.sparsity: 0.95 keeps 21525 of the 430500 weights of the network, "
        "and conv_rate 0 keeps the 25500 of the convolutions; give less"
    ]
    load_text(default_with(*whole, ("sparsity: 0.95", "sparsity: 0.94")))


NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, norm, units=20, **more):
        layers = [nn.Flatten(), nn.Linear(784, units), nn.Linear(units, 10)]
        super().__init__(*layers[:2], getattr(nn, norm)(*[units] * (norm != "Tanh"), **more), *layers[2:])
"""


def own_with(norm: str, *replacements: tuple[str, str]) -> str:
    """The default file with a network of one's own that normalizes."""
    Path("networks").mkdir()
    Path("networks/example.py").write_text(NETS)
    own = (("name: perceptron  ", "name: own  "), (PERCEPTRON, ""), ("arguments: {}", f"arguments: {{norm: {norm}}}"))
    return default_with(*own, *replacements)


SYNFLOW = ((CHAIN, "  p50: {sparsity: 0.5, parent: dense, criterion: synflow, scope: global}\n"),)
TWINS = (("twins: false", "twins: true"),)


@pytest.mark.parametrize(
    ("norm", "replacements", "line"),
    [
        ("Identity", TWINS, None),
        ("LayerNorm", TWINS, None),
        ("BatchNorm1d", (), None),
        ("BatchNorm1d", SYNFLOW, None),
        (
            "BatchNorm1d",
            TWINS,
            "train.twins: true has no meaning for Net: a line between two networks says nothing of the means and "
            "variances of 2; make it false",
        ),
        (
            "BatchNorm1d",
            (("batch_size: 60", "batch_size: 1"),),
            "train.batch_size: 1 is not enough for 2 of Net, which normalizes by the images of a batch; give 2 or more",
        ),
        (
            "LayerNorm",
            SYNFLOW,
            "levels.p50.criterion: synflow has no meaning for Net, whose 2 divides by the size of what flows in; "
            "choose another criterion",
        ),
        (
            "LayerNorm",
            (*SYNFLOW, ("{norm: LayerNorm}", "{norm: LayerNorm, elementwise_affine: false}")),
            "levels.p50.criterion: synflow has no meaning for Net, whose 2 divides by the size of what flows in; "
            "choose another criterion",
        ),
        (
            "Tanh",
            SYNFLOW,
            "levels.p50.criterion: synflow has no meaning for Net: it scores all weights of 1 0, or not by finite "
            "numbers; choose another criterion",
        ),
        (
            "Identity",
            ((CHAIN, "  p99: {sparsity: 0.9999, parent: dense}\n"), ("{norm: Identity}", "{norm: Identity, units: 1}")),
            "levels.p99.sparsity: 0.9999 keeps none of the 784 weights of hidden layer 1; give less",
        ),
        (
            "Identity",
            (("{norm: Identity}", "{norm: Identity, units: 20000}"), ("[0, 1, 2, 3, 4]", str([*range(900)]))),
            "network.arguments: 2700 networks of 15880000 weights at once take 1029 GB of memory; give fewer weights "
            "or seeds",
        ),
        (
            "LayerNorm",
            (
                (CHAIN, "  p50: {sparsity: 0.5, parent: dense}\n  p60: {sparsity: 0.6, parent: dense}\n"),
                ("criterion: magnitude", "criterion: synflow"),
                ("scope: layer ", "scope: global "),
            ),
            "prune.criterion: synflow has no meaning for Net, whose 2 divides by the size of what flows in; choose "
            "another criterion",
        ),
        (
            "Linear",
            (),
            "network.file: networks/example.py: Net(norm='Linear') fails: TypeError: Linear.__init__() missing 1 "
            "required positional argument: 'out_features'; mend it, or change network.arguments",
        ),
    ],
)
def test_what_a_network_of_ones_own_does_not_go_with_is_told(
    norm: str, replacements: tuple[tuple[str, str], ...], line: str | None
) -> None:
    text = own_with(norm, *replacements)
    if line is None:
        assert load_text(text).layout.shown == "Net"
    else:
        assert mistakes(text) == [f"params.yaml: {line}"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("file: networks/example.py", "file: networks/no.py", "network.file: networks/no.py: cannot be read ("),
        (
            "file: networks/example.py",
            "file: ../net.py",
            'network.file: "../net.py" is not the path of a file in this ',
        ),
        ("file: networks/example.py", "file: /net.py", 'network.file: "/net.py" is not the path of a file in this rep'),
        ("file: networks/example.py", "#", "network.file: missing; give a file of your own network, or networks/exam"),
        ("class: Net", "class: Nett", "network.file: networks/example.py: has no module 'Nett'; its modules are Net: "),
        ("class: Net", "class: a.b", 'network.class: "a.b" is not the name of a class of network.file'),
        ("class: Net", "#", "network.class: missing; give the class of your own network, or Net"),
        ("{norm: ReLU}", "[1]", "network.arguments: a list is not a mapping of network.class's arguments by their "),
        ("{norm: ReLU}", "{norm: .nan}", "network.arguments.norm: .nan is no text, number, truth value, list or mapp"),
        ("{norm: ReLU}", "{norm: 2026-01-01}", "network.arguments.norm: the date 2026-01-01 is no text, number, truth"),
        ("{norm: ReLU}", "{1: 2}", "network.arguments: 1 is not the name of an argument; put it in quotes"),
        ("{norm: ReLU}", "{norm: {1: 2}}", "network.arguments.norm: a mapping is no text, number, truth value, list"),
        ("{norm: ReLU}", "{norm: !!set {a}}", "network.arguments.norm: a set is no text, number, truth value, list"),
        ("[ticket, reinit, random]", "[ticket, small-dense]", "prune.arms: small-dense is for perceptrons alone, and "),
        (
            "  class: Net",
            "  hidden: [5]\n  class: Net",
            "network.hidden: a list is for perceptron alone; remove it, or",
        ),
        (
            "  output_rate",
            "  conv_rate: 0.2\n  output_rate",
            "prune.conv_rate: 0.2 is for convolutions, and Net has no",
        ),
        ("name: mnist", "name: digits", "network.file: networks/example.py: Net: fails on inputs [4, 1, 8, 8]: Runtim"),
    ],
)
def test_a_mistake_about_a_network_of_ones_own_is_one_line(old: str, new: str, line: str) -> None:
    (told,) = mistakes(own_with("ReLU", (old, new)))
    assert told.startswith(f"params.yaml: {line}")


# Files that cannot be read


def test_a_missing_file_says_where_to_be() -> None:
    with pytest.raises(LotteryError) as caught:
        load()
    assert str(caught.value) == "params.yaml: no such file; run this in the folder that holds dvc.yaml"


def test_a_folder_is_no_file() -> None:
    Path("params.yaml").mkdir()
    with pytest.raises(LotteryError, match=r"^params\.yaml: cannot be read: Is a directory$"):
        load()


def test_a_file_that_is_not_utf_8_says_in_which_line() -> None:
    Path("params.yaml").write_bytes(b"data:\n  name: \xff\n")
    with pytest.raises(LotteryError, match=r"^params\.yaml: line 2: not UTF-8; save the file as UTF-8$"):
        load()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the file is empty; write the sections data, network, train, prune, levels, verdict, export, "),
        ("# nothing\n", "the file is empty; write the sections "),
        ("- 1\n", "a list is not a mapping; write the sections data, "),
        ("lottery\n", '"lottery" is not a mapping; write the sections data, '),
    ],
)
def test_a_file_must_hold_a_mapping(text: str, line: str) -> None:
    (told,) = mistakes(text)
    assert told.startswith(f"params.yaml: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "data:\n  name: a: b\n",
            "line 2: mapping values are not allowed here; check quotes, brackets and indentation from line 2 on",
        ),
        (
            "a: [1,\n  2\nb: 3\n",
            "line 3: while parsing a flow sequence, expected ',' or ']', but got ':'; "
            "check quotes, brackets and indentation from line 1 on",
        ),
        (
            "a:\n\t- 1\n",
            "line 2: while scanning for the next token, found character '\\t' that cannot start any token; "
            "check quotes, brackets and indentation from line 2 on",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "line 2: expected a single document in the stream, but found another document; "
            "check quotes, brackets and indentation from line 1 on",
        ),
        (
            "a: 1\nb: 2\na: 3\n",
            'line 3: while constructing a mapping, found duplicate key "a" with value "3" (original value: "1"); '
            "keep one of the two",
        ),
        (
            "a: {x: 1,\n x: 1}\n",
            'line 2: while constructing a mapping, found duplicate key "x" with value "1" (original value: "1"); '
            "keep one of the two",
        ),
        (
            "? {a: 1}\n: 2\n",
            "line 1: while constructing a mapping, found unhashable key; "
            "check quotes, brackets and indentation from line 1 on",
        ),
        ("a: 0x_\n", 'line 1: "0x_" cannot be read as int; put it in quotes if it is a text'),
        ("a: 2026-13-01\n", 'line 1: "2026-13-01" cannot be read as timestamp; put it in quotes if it is a text'),
        ("a: 1\nb: \a\n", "line 2: the character U+0007 is not allowed; remove it"),
        ('a: 1\nb: "\\ud800"\n', "line 2: the character U+D800 is not allowed; remove it"),
        (
            'a: 1\nb: "\\UFFFFFFFF"\n',
            "line 2: cannot be read as YAML; put the value in quotes if it is a text",
        ),
        ("[" * 1000, "nested too deeply to be read; make it flatter"),
    ],
)
def test_broken_yaml_is_one_line_that_names_the_line(text: str, line: str) -> None:
    assert mistakes(text) == [f"params.yaml: {line}"]


# Read as DVC reads it


def outcome(read: Any, text: str) -> str:
    """What came of reading: the value with its types, or that it was refused."""
    try:
        return repr(read(text) or {})
    except Exception:  # DVC lets any error through on some texts
        return "refused"


def by_dvc(text: str) -> Any:
    return parse_yaml(text, "params.yaml")


@pytest.mark.parametrize(
    "text",
    [
        DEFAULT,
        "\ufeffa: 1\r\nb: on\r\n",
        "a: 1e-3\nb: 017\nc: 0o17\nd: 1_0.5_0\ne: 1:30\n",
        "%YAML 1.1\n---\na: on\nb: 017\n",
        "a: 1 # \u2028\n",
        "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [*x, {r: 4, q: 5}]}\n",
        "a: &x {p: 1}\na: &x {p: 2}\n",
        "a: !!str 5\nb: !!float 1\nc: !!int 017\nd: !!set {x, y}\n",
        "? [1]\n: 2\n",
        "1: a\n1.0: b\n",
        "a: 2001-12-14t21:59:43.10\nb: 2001-12-14\n",
    ],
)
def test_a_text_is_what_dvc_reads(text: str) -> None:
    assert outcome(parse, text) == outcome(by_dvc, text)


PIECES = (
    "! !! !!int !!float !!bool !!null !!binary !!set !!omap !!pairs !!timestamp !!python/name:os & * &a *a << <<: ? | >"
    " %YAML %TAG --- ... { } [ ] , : - # ' \" \\U \\x \\ud800 @ ` 0x 0x_ 0o 1e 1:30 2026-13-01 .inf .nan _ = ~"
)


def told(read: Any, *arguments: Any) -> list[str]:
    """The lines that reading ends with; none where it succeeds."""
    try:
        read(*arguments)
    except LotteryError as error:
        return str(error).split("\n")
    return []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(DEFAULT)),
            st.integers(0, 4),
            st.one_of(st.sampled_from(PIECES.split(" ")), st.text(max_size=3)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_file_with_slips_of_the_pen_is_told_in_lines_or_read_as_dvc_reads_it(slips: list[Any]) -> None:
    text = DEFAULT
    for start, length, piece in slips:
        text = text[:start] + piece + text[start + length :]
    lines = told(read, text, Path("params.yaml"))
    assert all(line.startswith("params.yaml: ") and len(line) <= 300 for line in lines)
    if not told(parse, text):
        assert outcome(parse, text) == outcome(by_dvc, text)


# What would take for ever, or fail in a later stage


def _two_seconds() -> float:
    """Two seconds of a machine that adds two million squares in a tenth; more on one that is slower at the moment."""
    begin = process_time()
    sum(i * i for i in range(2_000_000))
    return max(2.0, 20 * (process_time() - begin))


def chain(names: list[str]) -> str:
    """Levels of which each is the next one's parent."""
    lines = (
        f"  {name}: {{sparsity: {(place + 1) / (len(names) + 1)}, parent: {parent}}}\n"
        for place, (parent, name) in enumerate(pairwise(["dense", *names]))
    )
    return "".join(lines)


EIGHT_DEEP = "".join(f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 9))
ENORMOUS = "0x" + "f" * 5000


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "lottery-tickets",
            r'"\U00110000"',
            "line HERE: cannot be read as YAML; put the value in quotes if it is a text",
        ),
        (
            "lottery-tickets",
            r'"\UFFFFFFFF"',
            "line HERE: cannot be read as YAML; put the value in quotes if it is a text",
        ),
        ("epochs: 5 ", f"epochs: {ENORMOUS} ", "train.epochs: an enormous number is too large; give 100000000 at most"),
        ("epochs: 5 ", f"iterations: {ENORMOUS} ", "train.iterations: an enormous number is too large; give 100000000"),
        ("epochs: 5 ", f"epochs: {'9' * 5000} ", 'line HERE: "99999'),
        ("epochs: 5 ", "epochs: 1000000000000 ", "train.epochs: 1000000000000 is too large; give 100000000 at most"),
        ("epochs: 5 ", "epochs: 1000000 ", "train.epochs: 1000000 are 916000000 iterations; give 100000000 at most"),
        (
            "evaluate_every: 250",
            f"evaluate_every: 1{'0' * 18}",
            "train.evaluate_every: 1000000000000000000 is too large",
        ),
        ("rewind: 0 ", f"rewind: {ENORMOUS} ", "prune.rewind: an enormous number is too large; give 100000000 at most"),
        ("[300, 100]", f"[{ENORMOUS}]", "network.hidden[0]: an enormous number is too large; give 100000000 at most"),
        ("[300, 100]", f"[{', '.join(['10'] * 100)}]", "network.hidden: 100 layers are too many; give 20 at most"),
        ("[300, 100]", f"[{', '.join(['10'] * 3000)}]", "network.hidden: a list of 3000 items; give 1000 at most"),
        ("[300, 100]", "[1000000000]", "network.hidden[0]: 1000000000 is too large; give 100000000 at most"),
        (
            "[300, 100]",
            "[100000000]",
            "network.hidden: 15 networks of 79400000000 weights at once take 28584 GB of memory; give fewer units or",
        ),
        ("[0, 1, 2, 3, 4]", f"{[*range(18_000)]}", "train.seeds: a list of 18000 items; give 1000 at most"),
        ("lottery-tickets", "x" * 251, f'tracking.mlflow_experiment: "{"x" * 60}..." is not the name of an MLflow exp'),
        ("threads: auto", f"threads: {ENORMOUS}", "run.threads: an enormous number is not auto or a whole number"),
        ("run:  ", '"\\ud800": 1\nrun:  ', "line HERE: the character U+D800 is not allowed; remove it"),
        ("run:  ", f"x0: &x0 {{a: 1}}\n{EIGHT_DEEP}run:  ", "line 2: aliases make more than 200000 values of this; "),
        ("epochs: 5", "epochs: !!int --1", 'line HERE: "--1" is not a number; write one sign at most'),
        ("0.0012", "!!float 1:30", 'line HERE: "1:30" cannot be read as float; put it in quotes if it is a text'),
        ("lottery-tickets", f"[{'x, ' * 200_000}]", "has 60"),
        ("lottery-tickets", f"&{'x' * 1000} [*{'y' * 1000}]", "line HERE: found undefined alias"),
        (CHAIN, chain(["a" * 256]), f'levels: "{"a" * 60}..." is not a name for a level: make it a text of up to 100'),
        (
            CHAIN,
            "".join(f"  p{n}: {{sparsity: 0.5, parent: p{(n + 1) % 200}}}\n" for n in range(200)),
            "levels.p0.parent: the cycle p0 -> p1 -> p2 -> ",
        ),
        (
            CHAIN,
            chain([f"p{n}" for n in range(200)]) + "  q: {sparsity: 0.5, parent: lenet}\n",
            'levels.q.parent: no level is called "lenet"; choose from dense, p0, p1, ',
        ),
    ],
    ids=range(26),
)
def test_a_hostile_file_is_one_short_line_within_2_seconds(old: str, new: str, line: str) -> None:
    text = default_with((old, new))
    begin = process_time()
    (mistake,) = mistakes(text)
    assert process_time() - begin < _two_seconds()
    here = DEFAULT.count("\n", 0, DEFAULT.index(old)) + 1
    assert mistake.startswith(f"params.yaml: {line.replace('HERE', str(here))}")
    assert len(mistake) <= 300


def test_more_evaluations_than_memory_holds_are_refused() -> None:
    text = default_with(("epochs: 5 ", "iterations: 100000000 "), ("evaluate_every: 250", "evaluate_every: 99"))
    assert mistakes(text) == [
        "params.yaml: train.evaluate_every: 99 evaluates each network 1010101 times; give 100 or more"
    ]
    load_text(text.replace("evaluate_every: 99", "evaluate_every: 100"))


def test_of_many_mistakes_ten_are_told() -> None:
    begin = process_time()
    lines = mistakes(default_with((CHAIN, "".join(f"  p{n}: {{sparsity: 0.5, parent: q{n}}}\n" for n in range(2000)))))
    assert process_time() - begin < _two_seconds()
    assert len(lines) == 11
    assert lines[9].startswith('params.yaml: levels.p9.parent: no level is called "q9"')
    assert lines[10] == "params.yaml: and 1990 more; mend these first"
    assert max(map(len, lines)) <= 300


@pytest.mark.parametrize("step", [1, -1])
def test_a_chain_of_3000_levels_is_accepted_within_2_seconds(step: int) -> None:
    names = [f"p{n}" for n in range(3000)]
    text = default_with((CHAIN, "".join(chain(names).splitlines(keepends=True)[::step])))
    begin = process_time()
    params = load_text(text)
    assert params.order == tuple(names)
    assert len(params.path("p2999")) == 3000
    assert process_time() - begin < _two_seconds()
