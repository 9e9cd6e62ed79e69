"""params.yaml as a typed, validated schema.

Whatever reads params.yaml reads it here, before anything heavy is imported: ``load`` needs neither torch nor MLflow
nor DVC. DVC reads the same file before any code of ours, with ruamel.yaml: so does ``parse``.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, Node
from ruamel.yaml.reader import ReaderError

from lottery import LotteryError, plan
from lottery.core.arms import ARMS
from lottery.core.layout import PUBLISHED, Initialization, Kind, weights_left

Criterion = Literal["magnitude", "magnitude-increase", "movement", "random", "snip", "synflow"]
NetworkName = Literal["perceptron", "lenet-5", "conv-2", "conv-4", "conv-6", "own"]
Optimizer = Literal["adam", "sgd"]
Scale = Literal["standard", "unit"]
Schedule = Literal["constant", "warm-up", "step", "cosine"]
Scope = Literal["layer", "global"]
Source = Literal["ticket", "finetune", "lr-rewind"]

# Limits: larger values would fail in a later stage, or never end
MOST_BYTES = 180_000  # of params.yaml: room for 3,000 levels, which take about 2 s
MOST_VALUES = 200_000  # in params.yaml, all aliases written out
MOST_ITEMS = 1000  # of a list
MOST_LAYERS = 20  # hidden ones
MOST_ITERATIONS = 100_000_000
MOST_EVALUATIONS = 1_000_000  # of a network
MOST_MEMORY = 1000  # GB, of the networks that are trained together
MOST_GUESSES = 300  # words among which a person may have meant one
MOST_LINES = 10  # of mistakes told at once
MOST_CHARACTERS = 300  # of such a line
NO_LEVELS = ("auto", "dense", "download", "evaluate", "export", "plot")  # which mean something else
HOST_AND_PORT = r"[^\s/:]+:[0-9]{1,5}"

CONTINUED = [name for name, arm in ARMS.items() if arm.goes_on]
RATES: dict[Kind, tuple[str, str]] = {
    "output": ("output_rate", "output layer"),
    "convolution": ("conv_rate", "convolutions"),
}
UNTRAINED = [name for name, arm in ARMS.items() if arm.untrained]

# The context in which `Params` are validated that DVC recorded: each stage's as they were when it ran, so that together
# they need not agree.
RECORDED = "recorded"


@dataclass(frozen=True)
class Is:
    """The description of valid values, in words that follow "is not"; ``choices`` are what a person may have meant.

    In ``Annotated`` it wraps the checks on its left: whichever of them fails, the message is made of these words.
    """

    words: str
    choices: tuple[str, ...] = ()

    @classmethod
    def one_of(cls, choices: Iterable[str]) -> "Is":
        *most, last = choices
        return cls(f"{', '.join(most)} or {last}" if most else last, (*most, last))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            text = f"{_shown(value)} is not {self.words}{_did_you_mean(value, self.choices)}"
            raise PydanticCustomError("mistake", text) from None


SOME_LEVELS = "a mapping with at least one level, such as p80: {sparsity: 0.8, parent: dense}"
A_LIST = "a list with at least one item"
Mistake = tuple[tuple[str, ...], str]  # the key, from where it is found, and what is wrong there


def _refuse(mistakes: Iterable[Mistake]) -> None:
    """Raise the mistakes, where there are any, together."""
    errors = [
        InitErrorDetails(type=PydanticCustomError("mistake", text), loc=key, input=None) for key, text in mistakes
    ]
    if errors:
        raise ValidationError.from_exception_data("params.yaml", errors)


def _several(value: object) -> tuple[Any, ...]:
    if isinstance(value, list | tuple) and value:
        if len(value) > MOST_ITEMS:
            raise PydanticCustomError("mistake", f"a list of {len(value)} items; give {MOST_ITEMS} at most")
        return tuple(value)
    raise PydanticCustomError("mistake", f"{_shown(value)} is not {A_LIST}")


def _without(mistakes: Callable[[Any], Iterator[Mistake]]) -> AfterValidator:
    """A validator that refuses the values in which ``mistakes`` finds some."""

    def check(value: Any) -> Any:
        _refuse(mistakes(value))
        return value

    return AfterValidator(check)


def _repetitions(items: tuple[Any, ...]) -> Iterator[Mistake]:
    for item, count in Counter(items).items():
        if count > 1:
            yield (), f"{_shown(item)} is listed more than once; remove the repetition"


def _steps_back(items: tuple[int, ...]) -> Iterator[Mistake]:
    for first, second in pairwise(items):
        if second <= first:
            yield (), f"{_shown(second)} does not come after {_shown(first)}; list them in rising order"


def _excess(number: int) -> Iterator[Mistake]:
    if number > MOST_ITERATIONS:
        yield (), f"{_shown(number)} is too large; give {MOST_ITERATIONS} at most"


def _excess_depth(layers: tuple[int, ...]) -> Iterator[Mistake]:
    if len(layers) > MOST_LAYERS:
        yield (), f"{len(layers)} layers are too many; give {MOST_LAYERS} at most"


def _check_name(name: str) -> str:
    if name in NO_LEVELS or not re.fullmatch("[a-z0-9][a-z0-9-]{0,99}", name):
        raise ValueError(name)
    return name


def _check_path(path: str) -> str:
    if path.startswith(("/", "~", "-")) or ".." in path.split("/") or not path.isprintable() or "$" in path:
        raise ValueError(path)
    return path


def _odd_arguments(arguments: Mapping[str, Any]) -> Iterator[Mistake]:
    """Arguments that no JSON has: a date, a set, no number, or names that are no texts."""
    for name, value in arguments.items():
        try:
            same = json.loads(json.dumps({name: value}, allow_nan=False)) == {name: value}
        except (TypeError, ValueError):
            same = False
        if not isinstance(name, str):
            yield (), f"{_shown(name)} is not the name of an argument; put it in quotes"
        elif not same:
            yield (name,), f"{_shown(value)} is no text, number, truth value, list or mapping of these; make it one"


def _check_class(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(name)
    return name


Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], BeforeValidator(_several)]
Count = Annotated[int, Field(ge=1), Is("a whole number of 1 or more"), _without(_excess)]
Seed = Annotated[int, Field(ge=0, lt=2**63), Is("a whole number from 0 to 2**63 - 1")]
LevelName = Annotated[
    str,
    AfterValidator(_check_name),
    Is(
        'a name for a level: make it a text of up to 100 of a-z, 0-9 and "-" that begins with a letter or digit, other '
        f"than {', '.join(NO_LEVELS[:-1])} and {NO_LEVELS[-1]}"
    ),
]


class Section(BaseModel):
    """A part of params.yaml, frozen. Unknown keys are mistakes; nothing is converted, except an int to a float."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True)


DATA_NAMES = (*plan.DATA, plan.OWN)
Path_ = Annotated[
    str,
    Field(min_length=1, max_length=200),
    AfterValidator(_check_path),
    Is("the path of a file in this repository, from its root"),
]


class Data(Section):
    """The images that networks learn from, or the rows of a table."""

    name: Annotated[str, Field(pattern=f"^({'|'.join(DATA_NAMES)})$"), Is.one_of(DATA_NAMES)]
    file: Path_ = plan.DATA_FILE  # of name own
    validation: Count  # images; `digits` has its own number: read Params.validation_images
    scale: Annotated[Scale, Is.one_of(get_args(Scale))]


class Network(Section):
    """The network: a multilayer perceptron, a published one, or a module of one's own."""

    name: Annotated[NetworkName, Is.one_of(get_args(NetworkName))] = plan.NETWORK
    hidden: Annotated[Several[Count], _without(_excess_depth)] | None = None  # a perceptron's units per layer
    # of name own: a torch.nn.Module, its class and what it is made with
    file: Path_ = plan.NETWORK_FILE
    class_: Annotated[str, AfterValidator(_check_class), Is("the name of a class of network.file")] = Field(
        plan.NETWORK_CLASS, alias="class"
    )
    arguments: Annotated[
        Mapping[Any, Any], Is("a mapping of network.class's arguments by their names"), _without(_odd_arguments)
    ] = Field(default_factory=dict)
    initialization: Annotated[Initialization, Is.one_of(get_args(Initialization))]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.name == "perceptron" and self.hidden is None:
            _refuse([(("hidden",), "missing; give a list of the units in each hidden layer, such as [300, 100]")])
        if self.name != "perceptron" and self.hidden is not None:
            text = f"{_shown(self.hidden)} is for perceptron alone; remove it, or set network.name to perceptron"
            _refuse([(("hidden",), text)])
        return self


class Train(Section):
    """The training of every network, and the seeds."""

    seeds: Annotated[Several[Seed], _without(_repetitions)]
    epochs: Count | None = None  # either of these two is given: read Params.iterations
    iterations: Count | None = None
    batch_size: Count  # images
    optimizer: Annotated[Optimizer, Is.one_of(get_args(Optimizer))]
    learning_rate: Annotated[float, Field(gt=0), Is("a number above 0")]
    schedule: Annotated[Schedule, Is.one_of(get_args(Schedule))] = plan.SCHEDULE
    warm_up: Count | None = None  # iterations from 0 to the learning rate, of schedule warm-up
    drops: Annotated[Several[Count], _without(_steps_back)] | None = None  # iterations, of schedule step
    drop_factor: Annotated[float, Field(gt=0, lt=1), Is("a number above 0 and below 1")] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1), Is("a number from 0 up to, but not including, 1")] = plan.MOMENTUM
    weight_decay: Annotated[float, Field(ge=0), Is("a number of 0 or more")] = plan.WEIGHT_DECAY
    evaluate_every: Count  # iterations
    twins: Annotated[bool, Is("true or false")] = plan.TWINS  # a second copy, for linear mode connectivity

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _refuse(self._disagreements())
        return self

    def _disagreements(self) -> Iterator[Mistake]:
        if self.epochs is None and self.iterations is None:
            yield ("epochs",), "missing; give either epochs or iterations"
        if self.epochs is not None and self.iterations is not None:
            yield ("iterations",), f"{self.iterations} stands beside epochs: {self.epochs}; remove one of the two"
        for key, value in (("momentum", self.momentum), ("weight_decay", self.weight_decay)):
            if value and self.optimizer != "sgd":
                yield (key,), f"{value} is for sgd alone; remove it, or set train.optimizer to sgd"
        for key, schedule in (("warm_up", "warm-up"), ("drops", "step"), ("drop_factor", "step")):
            value = getattr(self, key)
            if value is not None and self.schedule != schedule:
                yield (key,), f"{_shown(value)} is for {schedule} alone; remove it, or set train.schedule to {schedule}"
            if value is None and self.schedule == schedule and key != "drop_factor":
                what = "a whole number of 1 or more" if key == "warm_up" else "a list of iterations"
                yield (key,), f"missing; schedule {schedule} needs it: give {what}"


Arms = Annotated[
    Several[Annotated[str, Field(pattern=f"^({'|'.join(ARMS)})$"), Is.one_of(ARMS)]], _without(_repetitions)
]


class Prune(Section):
    """The pruning of weights, and the arms of each level."""

    arms: Arms
    criterion: Annotated[Criterion, Is.one_of(get_args(Criterion))]
    scope: Annotated[Scope, Is.one_of(get_args(Scope))]
    # of the output layer and of convolutions: fractions of each step's rate
    output_rate: Annotated[float, Field(ge=0, le=1), Is("a number from 0 to 1")]
    conv_rate: Annotated[float, Field(ge=0, le=1), Is("a number from 0 to 1")] | None = None
    # iteration of the dense run
    rewind: Annotated[int, Field(ge=0), Is("a whole number of 0 or more"), _without(_excess)] = plan.REWIND
    # whose final weights a child prunes
    source: Annotated[Source, Is.one_of(get_args(Source))] = Field(plan.SOURCE, alias="from")


class Level(Section):
    """One rung of pruning."""

    sparsity: Annotated[float, Field(gt=0, lt=1), Is("a number above 0 and below 1")]  # fraction of weights removed
    parent: Annotated[str, Is('the name of a level, or "dense"')]
    # its own, in the place of prune's
    arms: Arms | None = None
    criterion: Annotated[Criterion, Is.one_of(get_args(Criterion))] | None = None
    scope: Annotated[Scope, Is.one_of(get_args(Scope))] | None = None


def _some_levels(value: object) -> object:
    if isinstance(value, Mapping) and value:
        return value
    raise PydanticCustomError("mistake", f"{_shown(value)} is not {SOME_LEVELS}")


def _mistakes_in_tree(levels: Mapping[str, Level]) -> Iterator[Mistake]:
    """Parents that do not exist, cycles (each once), and children that are no sparser than their parent."""
    cycles, told, strangers = _cycles(levels), set[str](), 0
    known = ("dense", *levels)
    for name, level in levels.items():
        parent = level.parent
        if parent != "dense" and parent not in levels:
            strangers += 1
            few = strangers <= MOST_LINES and len(known) <= MOST_GUESSES  # a guess among thousands takes its time
            hint = _did_you_mean(parent, known) if few else ""
            hint = hint or f"; choose from {', '.join(known[:MOST_GUESSES])}"
            yield (name, "parent"), f"no level is called {_shown(parent)}{hint}"
            continue
        if name in cycles and name not in told:
            told.update(cycles[name])
            start = cycles[name].index(name)
            cycle = " -> ".join((*cycles[name][start:], *cycles[name][:start], name))
            yield (name, "parent"), f"the cycle {cycle} never reaches dense; change one parent in it"
        floor = levels[parent].sparsity if parent in levels else 0
        if name not in cycles and level.sparsity <= floor:
            text = f"{level.sparsity} is not above the {floor} of its parent {parent}; raise it or change the parent"
            yield (name, "sparsity"), text


def _cycles(levels: Mapping[str, Level]) -> dict[str, list[str]]:
    """The cycle that each level in one is part of, every parent after its child."""
    cycles: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in levels:
        walk: dict[str, int] = {}  # with the place in it
        while name in levels and name not in seen:
            seen.add(name)
            walk[name] = len(walk)
            name = levels[name].parent
        if name in walk:
            cycle = list(walk)[walk[name] :]
            cycles.update(dict.fromkeys(cycle, cycle))
    return cycles


class Verdict(Section):
    """The margins within which a level matches dense when it is judged."""

    margin: Annotated[float, Field(gt=0), Is("a number above 0")]  # points of test accuracy
    speed_margin: Annotated[float, Field(gt=1), Is("a number above 1")]  # ratio of early-stopping iterations


class Export(Section):
    """The network that is exported as files which other programs read."""

    level: Annotated[str, Is('auto, "dense" or the name of a level')]
    seed: Annotated[Literal["best"] | Seed, Is("best, or one of train.seeds")]
    values: Annotated[Literal["float32", "half"], Is.one_of(("float32", "half"))]


class Tracking(Section):
    """The MLflow experiment of the runs."""

    mlflow_experiment: Annotated[
        str, Field(pattern=r"\S", max_length=250), Is("the name of an MLflow experiment, of up to 250 characters")
    ]
    required: Annotated[bool, Is("true or false")] = False


class Ray(Section):
    """The cluster that `engine: ray` trains on."""

    address: Annotated[
        Annotated[str, Field(pattern=f"^{HOST_AND_PORT}$")] | None,
        Is("host:port of a Ray cluster's head, or null for a Ray of this machine alone"),
    ] = None
    networks_per_task: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024)], Is("auto or a whole number from 1 to 1024")
    ] = "auto"
    mixed: Annotated[bool, Is("true or false")] = False


class Run(Section):
    """The way to run, which never changes results."""

    threads: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024)], Is("auto or a whole number from 1 to 1024")
    ]
    checkpoint_every: Annotated[float, Field(ge=0, le=86_400), Is("a number of seconds from 0 to 86400")] = 20.0
    engine: Annotated[Literal["local", "ray"], Is.one_of(("local", "ray"))] = "local"
    device: Annotated[Literal["auto", "cpu", "cuda"], Is.one_of(("auto", "cpu", "cuda"))] = "auto"
    ray: Ray = Ray()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.engine == "ray" and self.device == "cuda":
            _refuse([(("device",), "cuda does not go with run.engine: ray, whose workers use processors; make it cpu")])
        return self

    @property
    def mixed(self) -> bool:
        """Whether networks may be trained where torch, numpy or the processor is another than here."""
        return self.engine == "ray" and self.ray.mixed


class Params(Section, plan.Plan):
    """All of params.yaml, and what follows from it."""

    data: Data
    network: Network
    train: Train
    prune: Prune
    levels: Annotated[Mapping[LevelName, Level], BeforeValidator(_some_levels), _without(_mistakes_in_tree)]
    verdict: Verdict
    export: Export
    tracking: Tracking
    run: Run

    @property
    def unread(self) -> dict[str, set[str]]:
        """The keys, by section, that say what own data or an own network is where there is none."""
        unread = {"data": {"file"}} if self.data.name != plan.OWN else {}
        return unread | ({"network": {"file", "class_", "arguments"}} if self.network.name != plan.OWN else {})

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> Self:
        if info.context != RECORDED:
            told: dict[tuple[str, ...], str] = {}
            for key, text in self._disagreements():
                told.setdefault(key, text)  # one mistake in `prune` is one in many levels
            _refuse(told.items())
        return self

    def _disagreements(self) -> Iterator[Mistake]:
        yield from self._missing()
        unusable = [*self._unusable()]
        if unusable:  # nothing else can be known
            yield from unusable
            return
        yield from self._disagreements_on_images_and_sizes()
        yield from self._disagreements_on_iterations()
        yield from self._disagreements_on_arms()
        yield from self._disagreements_on_scopes()
        yield from self._disagreements_before_training()
        yield from self._disagreements_on_normalization()
        yield from self._disagreements_on_export()

    def _missing(self) -> Iterator[Mistake]:
        """Keys that DVC reads, although they have a value where they are missing."""
        for section, key, remedy in (
            ("data", "file", f"give a file of your own data, or {plan.DATA_FILE}"),
            ("network", "file", f"give a file of your own network, or {plan.NETWORK_FILE}"),
            ("network", "class_", f"give the class of your own network, or {plan.NETWORK_CLASS}"),
            ("network", "arguments", "give the arguments of your own network, or {}"),
            ("prune", "rewind", "give a whole number of 0 or more"),
        ):
            if key not in getattr(self, section).model_fields_set:
                yield (section, key.rstrip("_")), f"missing; {remedy}"

    def _unusable(self) -> Iterator[Mistake]:
        """Data and networks that a person brought, or put together, and that nothing can be made of."""
        if Path(self.data.file) == self.data_file:
            yield ("data", "file"), f"{self.data.file} is what the stage download leaves; give yours another name"
            return
        try:
            shape = self.examples.shape
        except LotteryError as error:
            yield ("data", "file"), str(error)
            return
        if self.network.name in PUBLISHED and len(shape) == 1:
            text = f"{self.network.name} takes images, and {self.data.name} has {shape[0]} features"
            yield ("network", "name"), f"{text}; make it perceptron or own, or change data.name"
        elif self.network.name in PUBLISHED and min(PUBLISHED[self.network.name].sides(shape)) < 1:
            text = f"{self.network.name}'s kernels do not fit the {shape[0]}x{shape[1]} pixels of {self.data.name}"
            yield ("network", "name"), f"{text}; make it perceptron, or change data.name"
        elif len(shape) == 1 and self.data.scale == "unit":
            yield ("data", "scale"), "unit is for images; make it standard"
        else:
            try:
                _ = self.layout
            except LotteryError as error:
                yield ("network", "file"), str(error)

    def _disagreements_on_export(self) -> Iterator[Mistake]:
        level, seed = self.export.level, self.export.seed
        known = ("auto", "dense", *self.levels)
        if level not in known:
            hint = _did_you_mean(level, known) or f"; choose from {', '.join(known[:MOST_GUESSES])}"
            yield ("export", "level"), f"no level is called {_shown(level)}{hint}"
        elif level not in ("auto", "dense") and "ticket" not in self.arms(level):
            yield ("export", "level"), f"{level} has no arm ticket; choose a level that has it, or auto"
        if seed != "best" and seed not in self.train.seeds:
            text = f"{seed} is not one of train.seeds"
            yield ("export", "seed"), f"{text}; give best or one of {', '.join(map(str, self.train.seeds[:10]))}"

    def _disagreements_on_images_and_sizes(self) -> Iterator[Mistake]:
        total, held_out, left = self.examples.training, self.validation_images, self.training_images
        if left < 1:
            text = f"{held_out} leaves none of the {total} training images; give less than {total}"
            yield ("data", "validation"), text
        elif (size := self.train.batch_size) > left:
            text = f"{size} is more than the {left} training images left ({total} - {held_out} held out)"
            yield ("train", "batch_size"), f"{text}; give {left} or less"
        pieces = self.layout.weights
        layers = [piece.size for piece in pieces]
        kinds = {piece.kind for piece in pieces}
        unpruned = [kind for kind in RATES if kind in kinds and self.slower[kind] == 0]
        whole = sum(piece.size for piece in pieces if piece.kind in unpruned)
        if self.prune.conv_rate is not None and "convolution" not in kinds:
            whose = self.network.class_ if self.network.name == plan.OWN else f"a {self.network.name}"
            yield ("prune", "conv_rate"), f"{self.prune.conv_rate} is for convolutions, and {whose} has none; remove it"
        at_once = max(map(self.networks, self.levels))
        if (gigabytes := 24 * sum(layers) * at_once / 1e9) > MOST_MEMORY:  # weights, gradients, Adam's two, start, best
            text = f"{at_once} networks of {sum(layers)} weights at once take {gigabytes:.0f} GB of memory"
            keys = {"perceptron": (("network", "hidden"), "units"), plan.OWN: (("network", "arguments"), "weights")}
            where, fewer = keys.get(self.network.name, (("train", "seeds"), "arms"))
            yield where, f"{text}; give fewer {fewer} or seeds"
        left_of = {"dense": layers}  # by level, where layers are pruned one by one
        for name in self.order:
            level = self.levels[name]
            if self.scope(name) == "global":
                kept = round((1 - level.sparsity) * sum(layers))
                text = f"{level.sparsity} keeps {kept or 'none'} of the {sum(layers)} weights of the network"
                if kept == 0:
                    yield ("levels", name, "sparsity"), f"{text}; give less"
                elif whole and kept <= whole:
                    rates = " and ".join(f"{RATES[kind][0]} 0" for kind in unpruned)
                    layers_of = " and the ".join(RATES[kind][1] for kind in unpruned)
                    whole_text = f"{rates} keep{'s' * (len(unpruned) == 1)} the {whole} of the {layers_of}"
                    yield ("levels", name, "sparsity"), f"{text}, and {whole_text}; give less"
            elif level.parent in left_of:
                before = 0.0 if level.parent == "dense" else self.levels[level.parent].sparsity
                counts = [
                    weights_left(piece, kept, level.sparsity, before, self.slower)
                    for piece, kept in zip(pieces, left_of[level.parent], strict=True)
                ]
                if 0 in counts:
                    place = counts.index(0)
                    text = f"{level.sparsity} keeps none of the {layers[place]} weights of {self.layout.titles[place]}"
                    yield ("levels", name, "sparsity"), f"{text}; give less"
                else:
                    left_of[name] = counts

    def _disagreements_on_iterations(self) -> Iterator[Mistake]:
        last = self.iterations
        if last > MOST_ITERATIONS:
            yield ("train", "epochs"), f"{self.train.epochs} are {last} iterations; give {MOST_ITERATIONS} at most"
        elif (evaluations := last // self.train.evaluate_every) > MOST_EVALUATIONS:
            text = f"{self.train.evaluate_every} evaluates each network {evaluations} times"
            yield ("train", "evaluate_every"), f"{text}; give {-(-last // MOST_EVALUATIONS)} or more"
        for section, key, value in (
            ("prune", "rewind", self.prune.rewind),
            ("train", "warm_up", self.train.warm_up),
            ("train", "drops", (self.train.drops or (None,))[-1]),
        ):
            if value is not None and value >= max(last, 1):
                yield (section, key), f"{value} is not before the last of the {last} iterations; give less"

    def _disagreements_on_arms(self) -> Iterator[Mistake]:
        source, children = self.prune.source, self._children
        if source != "ticket" and not children:
            yield ("prune", "from"), f"{source} says what children prune, and no level is a parent; make it ticket"
        continued: set[str] = set()
        for name in self.order:
            arms = self.arms(name)
            key = ("levels", name, "arms") if self.levels[name].arms else ("prune", "arms")
            if self.network.name != "perceptron" and (others := [arm for arm in arms if ARMS[arm].for_perceptrons]):
                verb, them = ("is", "it") if len(others) == 1 else ("are", "both")
                text = f"{' and '.join(others)} {verb} for perceptrons alone, and network.name is {self.network.name}"
                yield key, f"{text}; remove {them}"
            child = children.get(name)
            if child is not None and source not in arms:
                yield key, f"{source} is missing, yet {child} prunes the {source} of its parent {name}; add it"
            continued |= set(CONTINUED) & set(arms)
            if self._is_steady and len(continued) == len(CONTINUED):
                continued.clear()  # a line for both
                what = "with a constant learning rate" if self.train.schedule == "constant" else "once rates are steady"
                yield key, f"finetune and lr-rewind are one {what}; remove one, or change train.schedule"

    @property
    def _is_steady(self) -> bool:
        """Whether the learning rate stays the same from iteration ``prune.rewind`` on."""
        t = self.train
        steady_from = {
            "constant": 0,
            "warm-up": (t.warm_up or 1) - 1,
            "step": (t.drops or (0,))[-1],
            "cosine": self.iterations - 1,
        }
        return self.prune.rewind >= steady_from[t.schedule]

    @property
    def _children(self) -> dict[str, str]:
        """The first child of each level that has any."""
        parents = {child: self.levels[child].parent for child in reversed(self.order)}
        return {parent: child for child, parent in parents.items() if parent != "dense"}

    def _disagreements_on_scopes(self) -> Iterator[Mistake]:
        rate = self.prune.output_rate
        if rate not in (0, plan.OUTPUT_RATE) and all(self.scope(name) == "global" for name in self.levels):
            text = f"{rate} is for scope layer, and no level has it"
            yield ("prune", "output_rate"), f"{text}; make it {plan.OUTPUT_RATE}, or 0 to leave the output layer whole"
        rates = (None, 0, plan.CONV_RATE)
        if self.prune.conv_rate not in rates and all(self.scope(name) == "global" for name in self.levels):
            text = f"{self.prune.conv_rate} is for scope layer, and no level has it"
            yield ("prune", "conv_rate"), f"{text}; make it {plan.CONV_RATE}, or 0 to leave convolutions whole"
        for name, level in self.levels.items():
            if level.parent != "dense" and (self.scope(level.parent), self.scope(name)) == ("global", "layer"):
                where = ("levels", name, "scope") if level.scope else ("levels", level.parent, "scope")
                text = f"{level.parent} is pruned globally and may keep less of a layer than {name} is to keep"
                yield where, f"{text}; give both one scope"

    def _disagreements_before_training(self) -> Iterator[Mistake]:
        """The demands of criteria that look at untrained weights."""
        children = self._children
        for name, level in self.levels.items():
            criterion = self.criterion(name)
            if criterion not in plan.BEFORE_TRAINING:
                continue
            own = ("levels", name)
            if level.parent != "dense":
                text = f"{level.parent} is trained, yet {criterion} ranks weights before training; make it dense"
                yield (*own, "parent"), text
            child = children.get(name)
            if child is not None:
                yield ("levels", child, "parent"), f"{name} is pruned by {criterion} and has no children; make it dense"
            if self.scope(name) != "global":
                where = (*own, "scope") if level.scope else ("prune", "scope")
                yield where, f"{self.scope(name)} is not how {criterion} ranks (level {name}); make it global"
            if others := [arm for arm in self.arms(name) if arm not in UNTRAINED]:
                where = (*own, "arms") if level.arms else ("prune", "arms")
                remedy = f"use {', '.join(UNTRAINED[:-1])} and {UNTRAINED[-1]}"
                yield where, f"{others[0]} does not go with {criterion} (level {name}); {remedy}"
            if self.prune.rewind:
                text = f"{self.prune.rewind} does not go with {criterion} (level {name}), which prunes iteration 0"
                yield ("prune", "rewind"), f"{text}; make it 0"

    def _disagreements_on_normalization(self) -> Iterator[Mistake]:
        """What has no meaning for a network that normalizes."""
        pieces, name = self.layout.pieces, self.network.class_
        keeping = [piece.layer for piece in pieces if piece.kind == "statistics"]
        by_synflow = [level for level in self.levels if self.criterion(level) == "synflow"]
        why = self.without_flow if by_synflow else ""
        for level in by_synflow if why else ():
            where = ("levels", level, "criterion") if self.levels[level].criterion else ("prune", "criterion")
            yield where, f"synflow has no meaning for {name}{why}; choose another criterion"
        if keeping and self.train.twins:
            text = (
                f"true has no meaning for {name}: a line between two networks says nothing of the means and variances"
            )
            yield ("train", "twins"), f"{text} of {keeping[0]}; make it false"
        if keeping and self.train.batch_size == 1:
            text = f"1 is not enough for {keeping[0]} of {name}, which normalizes by the images of a batch"
            yield ("train", "batch_size"), f"{text}; give 2 or more"


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises LotteryError where the file cannot be read or holds mistakes: a line each, with the file, the key, the value
    and the remedy.
    """
    try:
        _check_size(path.stat().st_size, path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LotteryError(f"{path}: no such file; run this in the folder that holds dvc.yaml") from None
    except OSError as error:
        raise LotteryError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LotteryError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from None
    return read(text, path)


def read(text: str, path: Path) -> Params:
    """Check the text of a params.yaml, which ``path`` names in what is said of it. Raises LotteryError as `load`."""
    _check_size(len(text.encode()), path)
    try:
        content = parse(text)
    except LotteryError as error:
        raise LotteryError(_in_short(f"{path}: {error}")) from None
    if not isinstance(content, dict):
        what = "the file is empty" if content is None else f"{_shown(content)} is not a mapping"
        raise LotteryError(f"{path}: {what}; write the sections {', '.join(Params.model_fields)}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = [_in_short(f"{path}: {_line(details)}") for details in error.errors()[:MOST_LINES]]
        if more := error.error_count() - len(lines):
            lines.append(f"{path}: and {more} more; mend these first")
        raise LotteryError("\n".join(lines)) from None


def _check_size(size: int, path: Path) -> None:
    if size > MOST_BYTES:
        raise LotteryError(f"{path}: has {size} bytes; give {MOST_BYTES} at most")


# How a mistake reads


def _in_short(text: str) -> str:
    """A text on one line; the middle of a long one is left out, because key and remedy are at the ends."""
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:180]} ... {text[5 + 180 - MOST_CHARACTERS :]}"


def _line(details: ErrorDetails) -> str:
    """One mistake that pydantic found, as the key and what to do about it."""
    key, kind = details["loc"], details["type"]
    if kind == "mistake":
        return f"{_path(key[:-2] if key[-1] == '[key]' else key)}: {details['msg']}"
    if kind == "missing":
        return f"{_path(key)}: missing; {_give(_section(key[:-1]), str(key[-1]))}"
    if kind in ("extra_forbidden", "invalid_key"):
        known = _keys(_section(key[:-1]))
        hint = _did_you_mean(key[-1], known) or f"; the keys here are {', '.join(known)}"
        return f"{_path(key)}: unknown key{hint}"
    if kind == "model_type":
        keys = ", ".join(_keys(_section(key)))
        return f"{_path(key)}: {_shown(details['input'])} is not a mapping; the keys here are {keys}"
    return f"{_path(key)}: {details['msg']}"


def _section(key: tuple[int | str, ...]) -> type[Section]:
    """The part of the schema that a key leads to."""
    if key[:1] == ("levels",):
        return Level
    section: type[Section] = Params
    for name in key:
        section = cast(type[Section], section.model_fields[str(name)].annotation)
    return section


def _keys(section: type[Section]) -> list[str]:
    """The keys of a part of params.yaml, as one writes them."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _give(section: type[Section], name: str) -> str:
    """The remedy where a key of a section is missing."""
    if name == "levels":
        return f"give {SOME_LEVELS}"
    if section is Params:
        return f"give it the keys {', '.join(_keys(_section((name,))))}"
    return f"give {next((part.words for part in section.model_fields[name].metadata if isinstance(part, Is)), A_LIST)}"


def _path(key: tuple[int | str, ...]) -> str:
    """A key as one says it: levels.p40.parent, network.hidden[0]."""
    path = ""
    for part in key:
        word = part if re.fullmatch(r"[\w-]{1,60}", str(part)) else _shown(str(part))
        path += f"[{part}]" if isinstance(part, int) and key[0] != "levels" else f".{word}"
    return path.removeprefix(".")


def _shown(value: object) -> str:
    """A value on one line, as one would write it in YAML."""
    match value:
        case None:
            return "null"
        case str():
            text = value if len(value) <= 60 else f"{value[:60]}..."
            return json.dumps(text, ensure_ascii=not text.isprintable())
        case bool():
            return str(value).lower()
        case int():
            return str(value) if abs(value) < 10**30 else "an enormous number"
        case float():
            return re.sub("(nan|inf)", r".\1", repr(value))
        case list() | tuple():
            return "a list" if value else "[]"
        case dict():
            return "a mapping" if value else "{}"
        case date():
            return f"the date {value}"
        case _:
            return f"a {type(value).__name__}"


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    """The one known word that is closest to ``word``, as a question in brackets; nothing where none clearly is."""

    def closeness(other: str) -> float:
        # the letters in any order count as much as those in place: "p06" is meant for "p60" rather than "p90"
        pairs = ((typed, other.lower()), (sorted(typed), sorted(other.lower())))
        return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2

    typed = (word if isinstance(word, str) else _shown(word))[:100].lower()
    best, second = (sorted(((closeness(other), other) for other in known), reverse=True) + [(0.0, "")] * 2)[:2]
    return f' (did you mean "{best[1]}"?)' if best[0] > 0.62 and best[0] > second[0] else ""


# Reading YAML as DVC does


class _Constructor(SafeConstructor):
    """The constructor of ruamel.yaml, which says of every failure in which line it is, and bounds what aliases add."""

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except (YAMLError, RecursionError):
            raise
        except Exception:  # of the scanner, as in "\U00110000"
            line = getattr(getattr(self.loader, "reader", None), "line", None)
            where = "" if line is None else f"line {line + 1}: "
            raise YAMLError(f"{where}cannot be read as YAML; put the value in quotes if it is a text") from None

    def construct_document(self, node: Node) -> Any:
        if _expanded(node, {}) > MOST_VALUES:
            raise _mistake(node, f"aliases make more than {MOST_VALUES} values of this", "write fewer of them")
        return super().construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if str(node.tag).endswith(":int") and re.match("[-+]{2}", str(node.value)):  # with a tag; read as one sign
            raise _mistake(node, f"{_shown(node.value)} is not a number", "write one sign at most")
        try:
            return super().construct_object(node, deep)
        except (YAMLError, RecursionError):
            raise
        except Exception:  # ruamel.yaml lets several kinds through, as for `0x_` or a thirteenth month
            value = "this" if isinstance(node, CollectionNode) else _shown(node.value)
            problem = f"{value} cannot be read as {str(node.tag).rpartition(':')[2]}"
            raise _mistake(node, problem, "put it in quotes if it is a text") from None

    def construct_scalar(self, node: Node) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and (found := re.search("[\ud800-\udfff]", value)):
            raise _mistake(node, f"the character U+{ord(found[0]):04X} is not allowed", "remove it")
        return value


def _expanded(node: Node, known: dict[int, int]) -> int:
    """Count the values of a node, each alias written out."""
    if id(node) not in known:
        known[id(node)] = 1  # for an alias inside of its anchor
        items = node.value if isinstance(node, CollectionNode) else ()
        children = (child for item in items for child in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def _mistake(node: Node, problem: str, remedy: str) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=node.start_mark, note=remedy)


def parse(text: str) -> Any:
    """YAML text as DVC reads it; None where it is empty.

    Raises LotteryError, with a text of one line that names the line at fault where one is known.
    """
    reader = YAML(typ="safe")  # as in dvc.utils.serialize
    reader.Constructor = _Constructor
    try:
        with warnings.catch_warnings(action="ignore"):
            return reader.load(text)
    except MarkedYAMLError as error:
        marks = [mark.line + 1 for mark in (error.problem_mark, error.context_mark) if mark is not None] or [1]
        remedy = f"check quotes, brackets and indentation from line {min(marks)} on"
        if isinstance(error, DuplicateKeyError):
            remedy = "keep one of the two"
        elif type(error) is MarkedYAMLError and error.note:  # our own
            remedy = error.note
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise LotteryError(f"line {marks[0]}: {problem}; {remedy}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise LotteryError(f"line {line}: the character U+{error.character:04X} is not allowed; remove it") from None
    except YAMLError as error:
        raise LotteryError(str(error)) from None
    except RecursionError:
        raise LotteryError("nested too deeply to be read; make it flatter") from None
