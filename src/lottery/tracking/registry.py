"""The exported ticket in MLflow's registry: `lottery-ticket`, whose versions are tickets.

`candidate` is the version that the workspace exported last, `champion` the one that `lottery promote` chose. A tag of a
version, `lottery.key`, is that of the run which has its files, so that the same ticket has one version.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NOTE

from lottery import LotteryError
from lottery.files.data import load_test
from lottery.files.workplace import root, scratch
from lottery.ticket.export import CARD, FILE, GRAPH
from lottery.ticket.format import load
from lottery.ticket.graph import run as run_graph
from lottery.ticket.ticket import Facts
from lottery.tracking.address import fault, shown_uri
from lottery.tracking.outputs import KEY
from lottery.tracking.store import Store

NAME, CANDIDATE, CHAMPION = "lottery-ticket", "candidate", "champion"
MODEL = "ticket"  # the folder of the run's artifacts that is the MLflow model
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
    for file in model.iterdir():
        file.rename(target / file.name)
    model.rmdir()
    (target / CARD).write_text((folder / CARD).read_text(encoding="utf-8"), encoding="utf-8")


def register(store: Store, run: Run, verdict: str, is_current: bool) -> None:
    """Make the version of an exported ticket's run, unless it has one; `candidate` is it where the run is current."""
    try:
        store.call("create_registered_model", NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    key = run.data.tags[KEY]
    found = _versions(store, key)
    made = min(found, key=lambda each: int(each.version)) if found else None
    if made is None:
        shown = {name: run.data.params[name] for name in ("level", "arm", "seed")}
        shown |= {
            "density": f"{run.data.metrics['density']:.6g}",
            "accuracy": f"{run.data.metrics['test_accuracy']:.6g}",
        }
        shown |= {"verdict": verdict, "commit": run.data.tags.get(MLFLOW_GIT_COMMIT, ""), KEY: key}
        shown["dvc"] = f"{key.rpartition('/')[2]}.dir"
        source = f"runs:/{run.info.run_id}/{MODEL}"  # which stays right when the store moves
        note = run.data.tags.get(MLFLOW_RUN_NOTE, "")
        tags = {name: value for name, value in shown.items() if value}
        made = store.call("create_model_version", NAME, source, run.info.run_id, tags, description=note)
    if is_current and _alias(store, CANDIDATE) != made.version:
        store.call("set_registered_model_alias", NAME, CANDIDATE, made.version)


def promote(store: Store, wanted: str) -> str:
    """Make a version, by its number or alias, the champion; say what was it before.

    Raises LotteryError where there is no such version, or where it is not as accurate as its card says.
    """
    try:
        version = wanted if wanted.isdigit() else _alias(store, wanted)
        if version is None:
            raise LotteryError(f"{NAME}: no version has the alias {wanted!r}; {_known(store)}")
        found = _get(store, version)
        if found is None:
            raise LotteryError(f"{NAME}: has no version {version}; {_known(store)}")
        with scratch() as folder:
            model = Path(store.call("download_artifacts", found.run_id, MODEL, str(folder)))
            facts = _checked(f"{NAME} version {version}", model)
        before = _alias(store, CHAMPION)
        store.call("set_registered_model_alias", NAME, CHAMPION, version)
    except (LotteryError, MemoryError):
        raise
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error
    told = f"{NAME}: version {version} is the {CHAMPION}: {facts.level} {facts.arm} {facts.seed}, "
    told += f"{100 * facts.accuracy:.2f} % of the test images, checked; "
    return told + ("no version was before it" if before is None else f"before it was version {before}")


def _checked(name: str, model: Path) -> Facts:
    """What is known of a ticket, once its graph is as accurate on the test images as that and its card say."""
    ticket = load(model / "artifacts" / FILE)
    facts, test = ticket.facts, load_test(root() / "data" / f"{ticket.facts.data}.safetensors")
    images = test.pixels.reshape(-1, *facts.image).numpy()
    logits = run_graph((model / "artifacts" / GRAPH).read_bytes(), images)
    accuracy = float((logits.argmax(1) == test.labels.numpy()).mean())
    card = (model / CARD).read_text(encoding="utf-8")
    if accuracy != facts.accuracy or f"| {100 * accuracy:.2f} % of the " not in card:
        raise LotteryError(
            f"{name}: gets {100 * accuracy:.2f} % of the test images right, and {FILE} and {CARD} say "
            f"{100 * facts.accuracy:.2f} %; it is not promoted: `dvc repro export` makes it anew"
        )
    return facts


def _versions(store: Store, key: str) -> list[ModelVersion]:
    found: list[ModelVersion] = store.call("search_model_versions", f"name = '{NAME}' and tags.`{KEY}` = '{key}'")
    return found


def _get(store: Store, version: str) -> ModelVersion | None:
    try:
        found: ModelVersion = store.call("get_model_version", NAME, version)
        return found
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _alias(store: Store, alias: str) -> str | None:
    """The number of the version with an alias."""
    try:
        return str(store.call("get_model_version_by_alias", NAME, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _known(store: Store) -> str:
    versions = sorted(int(each.version) for each in store.call("search_model_versions", f"name = '{NAME}'"))
    if not versions:
        return "nothing is registered yet: `lottery sync` registers the ticket that is here"
    return f"choose from {', '.join(map(str, versions))}"
