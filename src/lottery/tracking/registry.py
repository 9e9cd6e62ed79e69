"""The exported ticket in MLflow's registry: `lottery-ticket`, whose versions are tickets.

`candidate` is the version that the workspace exported last, `champion` the one that `lottery promote` chose. The tag
`dvc` of a version is DVC's hash of tickets/, so that the same ticket has one version; its source is the run with its
files.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.pyfunc import FLAVOR_NAME
from mlflow.types.schema import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NOTE

from lottery import LotteryError
from lottery.files.data import load_test
from lottery.files.workplace import root, scratch
from lottery.plan import DATA as KNOWN
from lottery.plan import OWN
from lottery.ticket.export import CARD, FILE, GRAPH
from lottery.ticket.format import load
from lottery.ticket.graph import run as run_graph
from lottery.ticket.ticket import Facts
from lottery.tracking.address import fault, shown_uri
from lottery.tracking.outputs import DIRTY, KEY
from lottery.tracking.store import Store

NAME, CANDIDATE, CHAMPION = "lottery-ticket", "candidate", "champion"
DVC = "dvc"  # the tag
MODEL = "ticket"  # the folder of the run's artifacts that is the MLflow model
ABOUT = (
    "Tickets that the pipeline exported. `candidate` is what the workspace exported last. `lottery promote VERSION` "
    "checks a version on the test images and makes it the `champion`, which docs/serving.md says how to serve."
)
SERVED = Path(__file__).with_name("served.py")
REQUIRES = ("mlflow", "numpy", "onnxruntime")  # of whoever serves it


def save(folder: Path, target: Path) -> None:
    """Make an MLflow model of an exported network's folder: its files as artifacts, and the code that answers."""
    ticket = load(folder / FILE)
    shape = ticket.facts.image
    signature = ModelSignature(
        # floats, because MLflow would turn a request's 300 into an uint8 of 44, and its 0.5 into 0
        Schema([TensorSpec(np.dtype(np.float64), (-1, *shape))]),
        Schema([TensorSpec(np.dtype(np.int64), (-1,), "class"), TensorSpec(np.dtype(np.float32), (-1, -1), "softmax")]),
    )
    model = target / "model"
    mlflow.pyfunc.save_model(
        model,
        python_model=str(SERVED),
        artifacts={name: str(folder / file) for name, file in (("graph", GRAPH), ("ticket", FILE))},
        signature=signature,
        input_example=np.zeros((1, *shape)),
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIRES],
    )
    _forget_circumstances(model / MLMODEL_FILE_NAME)
    for file in model.iterdir():
        file.rename(target / file.name)
    model.rmdir()
    (target / CARD).write_text((folder / CARD).read_text(encoding="utf-8"), encoding="utf-8")


def _forget_circumstances(description: Path) -> None:
    """Take out of a model's description when it was made and in which folder, which its reader does not need.

    So the same ticket has the same artifacts.
    """
    model: dict[str, Any] = yaml.safe_load(description.read_text(encoding="utf-8"))
    for name in ("model_uuid", "utc_time_created"):
        del model[name]
    function = model["flavors"][FLAVOR_NAME]
    function["model_code_path"] = SERVED.name
    for artifact in function["artifacts"].values():
        artifact["uri"] = artifact["path"]
    description.write_text(yaml.safe_dump(model), encoding="utf-8")


def register(store: Store, run: Run, verdict: str, is_current: bool) -> None:
    """Make the version of an exported ticket's run, unless it has one; `candidate` is it where the run is current."""
    aliases = _aliases(store)
    if aliases is None:
        aliases = {}
        try:
            store.call("create_registered_model", NAME, description=ABOUT)
        except MlflowException as error:  # another machine was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    known = {name: run.data.params[f"ticket.{name}"] for name in ("level", "arm", "seed")}
    known |= {
        "density": f"{run.data.metrics['ticket/density']:.6g}",
        "accuracy": f"{run.data.metrics['ticket/test_accuracy']:.6g}",
        "verdict": verdict,
        "commit": run.data.tags.get(MLFLOW_GIT_COMMIT, ""),
        "dirty": run.data.tags.get(DIRTY, ""),
        DVC: f"{run.data.tags[KEY].rpartition('/')[2]}.dir",
    }
    tags = {name: value for name, value in known.items() if value}
    found = (each for each in _versions(store, f" and tags.{DVC} = '{tags[DVC]}'") if _run_of(store, each))
    made = min(found, key=_number, default=None)
    if made is None:
        source = f"runs:/{run.info.run_id}/{MODEL}"  # which stays right when the store moves
        note = run.data.tags.get(MLFLOW_RUN_NOTE, "")
        made = store.call("create_model_version", NAME, source, run.info.run_id, tags, description=note)
    for name, value in tags.items():  # a verdict may come later
        if name not in made.tags:
            store.find_or_make("set_model_version_tag", NAME, str(made.version), name, value)
    if is_current and aliases.get(CANDIDATE) != str(made.version):
        store.find_or_make("set_registered_model_alias", NAME, CANDIDATE, str(made.version))


def promote(store: Store, wanted: str) -> str:
    """Make a version, by its number or alias, the champion; say what was it before.

    Raises LotteryError where there is no such version, or where it is not as accurate as its card says.
    """
    try:
        versions = {str(each.version): each for each in sorted(_versions(store), key=_number)}
        if not versions:
            raise LotteryError(f"{NAME}: nothing is registered yet: `lottery sync` registers the ticket that is here")
        aliases = _aliases(store) or {}
        number = wanted if wanted in versions else aliases.get(wanted)
        if number not in versions:
            known = ", ".join([*versions, *aliases])
            raise LotteryError(f"{NAME}: no version has the number or the alias {wanted!r}; choose from {known}")
        facts = _checked(store, versions[number])
        before = (_aliases(store) or {}).get(CHAMPION)
        store.find_or_make("set_registered_model_alias", NAME, CHAMPION, number)
    except (LotteryError, MemoryError):
        raise
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error
    told = f"{NAME}: version {number} is the {CHAMPION}: {facts.level} {facts.arm} {facts.seed}, "
    told += f"{100 * facts.accuracy:.2f} % of the test images, checked; "
    return told + ("no version was before it" if before is None else f"before it was version {before}")


def _checked(store: Store, found: ModelVersion) -> Facts:
    """What is known of a ticket, once its graph is as accurate on the test images as that and its card say."""
    name, run = f"{NAME} version {found.version}", _run_of(store, found)
    if run is None:
        raise LotteryError(f"{name}: its run is gone from MLflow; `lottery sync` registers the ticket that is here")
    data = run.data.params.get("dataset")
    if data not in (*KNOWN, OWN):
        raise LotteryError(f"{name}: it is no ticket that this project exported; choose another version")
    test = load_test(root() / "data" / f"{data}.safetensors")
    place = f"{run.info.artifact_uri}/{MODEL}"
    remedy = "remove that folder, and `lottery sync` makes it anew (of an older ticket, `lottery sync --rev COMMIT`)"
    with scratch() as folder:
        try:
            model = Path(store.call("download_artifacts", found.run_id, MODEL, str(folder)))
            facts = load(model / "artifacts" / FILE).facts
            card = (model / CARD).read_text(encoding="utf-8")
            for file in (MLMODEL_FILE_NAME, SERVED.name):  # without which no server starts; nothing of them is run here
                (model / file).read_text(encoding="utf-8")
            images = test.pixels.reshape(-1, *facts.image).numpy()
            logits = run_graph((model / "artifacts" / GRAPH).read_bytes(), images)
            accuracy = float((logits.argmax(1) == test.labels.numpy()).mean())
        except MemoryError:
            raise
        except Exception as error:  # of MLflow, ONNX Runtime and the system, on whatever the files may be
            why = fault(error).replace(f"{folder}/", "").rstrip(".")
            raise LotteryError(f"{name}: {place} cannot be used ({why}); {remedy}") from error
    # another processor may put an image that lies between two classes into the other one
    if abs(accuracy - facts.accuracy) > 1.5 / len(test) or f"| {100 * facts.accuracy:.2f} % of the " not in card:
        raise LotteryError(
            f"{name}: gets {100 * accuracy:.2f} % of the test images right, and {FILE} or {CARD} in {place} says "
            f"otherwise; {remedy}"
        )
    return facts


def _versions(store: Store, condition: str = "") -> list[ModelVersion]:
    found: list[ModelVersion] = store.call("search_model_versions", f"name = '{NAME}'{condition}")
    return found


def _number(found: ModelVersion) -> int:
    return int(found.version)


def _aliases(store: Store) -> dict[str, str] | None:
    """The numbers of the versions that have aliases, by alias; None where nothing is registered."""
    try:
        model = store.call("get_registered_model", NAME)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return {alias: str(number) for alias, number in model.aliases.items()}


def _run_of(store: Store, found: ModelVersion) -> Run | None:
    """The run that has a version's files, deleted or not; None where MLflow has removed it for good."""
    try:
        run: Run = store.call("get_run", found.run_id)
        return run
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
