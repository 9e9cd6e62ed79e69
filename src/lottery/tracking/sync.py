"""Runs for outputs that exist: those of the workspace, of commits and of DVC experiments."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from mlflow.entities import Run

from lottery import LotteryError
from lottery.digests import digest, digest_of_files
from lottery.params import Params
from lottery.provenance import git, refusal
from lottery.tracking.address import fault, shown_uri
from lottery.tracking.attempts import Mark, left
from lottery.tracking.outputs import MissingError, Output, Recorded, recorded
from lottery.tracking.runs import PARENT, Attempt, Origin, Recorder, origin_of_workspace
from lottery.tracking.serve import connect, first_line
from lottery.tracking.store import ATTEMPT, KEY, Store, is_complete, is_deleted
from lottery.workplace import root, scratch

FILES = ("history.csv", "masks.safetensors")  # what a level's runs show; its weights are large and not among it
Attempts = dict[str, list[tuple[Mark, list[Run]]]]  # unfinished ones whose outputs are whole, by the outputs' keys


def sync(params: Params, revisions: Sequence[str] = (), all_commits: bool = False, restore: bool = False) -> list[str]:
    """Complete and make the runs of outputs; a line for each thing to know.

    Without revisions, of the outputs that the workspace's dvc.lock records. With revisions, commits or DVC experiments
    by name, of those that theirs record, read through DVC: the workspace is not touched. Raises LotteryError.
    """
    refused = refusal()
    if refused and (revisions or all_commits):
        raise LotteryError(refused)
    store = connect(params.tracking.mlflow_experiment)
    try:
        attempts, lines = _end_attempts(store)
        if refused:
            lines.append(f"the runs that are made now name no commit: {refused}")
        commits = git("log", "--all", "--full-history", "--format=%H", "--", "dvc.lock").split() if all_commits else []
        if all_commits and not commits:
            lines.append("no commit has a dvc.lock")
        if not revisions and not all_commits:
            lines += _sync(Recorder(store, origin_of_workspace(os.environ), restore), params, Workspace(), attempts)
        for revision in dict.fromkeys([*revisions, *commits]):
            source, origin = _revision(revision)
            shown = origin.commit[:7] if revision == origin.commit else revision
            try:
                told = _sync(Recorder(store, origin, restore), params, source, attempts)
            except (LotteryError, LookupError, ValueError) as error:
                # among all commits a bad one costs its own runs alone
                if revision in revisions:
                    raise LotteryError(f"--rev {revision}: {error}") from error
                told = [str(error) if isinstance(error, LotteryError) else f"not of this version: {first_line(error)}"]
            lines += [f"{shown}: {line}" for line in told]
        for _, runs in chain.from_iterable(attempts.values()):  # of outputs that are not among these; they stay marked
            _end(store, runs)
        return lines + _strangers(store)
    except LotteryError:
        raise
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error


def _sync(recorder: Recorder, params: Params, source: "Workspace | Revision", attempts: Attempts) -> list[str]:
    """The runs of every output that a source has."""
    store, tally = recorder.store, recorder.tally
    store.made = store.completed = 0
    missing: list[str] = []
    levels: list[Output] = []
    for entry in recorded(source.lock(), params):
        output = entry.output(source.files)
        attempt = _adopted(attempts, output)
        try:
            if entry.name == "evaluate":
                same = source.models([level.name for level in levels]) == entry.deps.get("models")
                if not same:
                    missing.append(
                        "evaluate: read other levels than those here, whose runs get no test results from it"
                    )
                recorder.evaluation(output, levels if same else [], attempt)
            elif entry.name in ("download", "plot"):
                recorder.simple(output, attempt)
            else:
                levels.append(output)
                recorder.level(output, attempt)
        except MissingError as error:
            missing.append(str(error))
        else:
            for mark, runs in attempts.pop(output.key, ()):
                _end(store, runs)
                mark.remove()
    counts = {"made": store.made, "completed": store.completed - store.made, "restored": tally.restored}
    counts |= {"already complete": tally.there, "being written by another machine": tally.elsewhere}
    lines = ["runs: " + (", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none")]
    if tally.deleted:
        names = ", ".join(tally.deleted[:5]) + (", ..." if len(tally.deleted) > 5 else "")
        lines.append(f"runs that were deleted in MLflow stay so: {names}; `lottery sync --restore` brings them back")
    return lines + missing


def _end_attempts(store: Store) -> tuple[Attempts, list[str]]:
    """Mark the attempts of dead processes KILLED, but for those whose outputs are whole: these can be completed."""
    whole: Attempts = {}
    lines = []
    for mark, key in left(shown_uri()):
        runs = store.search(f"tags.`{ATTEMPT}` = '{mark.name}'")
        if key:
            whole.setdefault(key, []).append((mark, runs))
            continue
        lines += [f"the process of run {name} is dead: marked KILLED" for name in _end(store, runs)]
        mark.remove()
    return whole, lines


def _end(store: Store, runs: Sequence[Run]) -> list[str]:
    """Mark those of a dead process's runs KILLED that are still open; the names of its stages' among them."""
    names = []
    for run in (store.call("get_run", run.info.run_id) for run in runs):  # as it is now: completed, or deleted perhaps
        if run.info.status == "RUNNING" and not is_deleted(run) and not store.is_being_written(run):
            store.call("set_terminated", run.info.run_id, "KILLED")
            names += [] if PARENT in run.data.tags else [run.info.run_name]
    return names


def _strangers(store: Store) -> list[str]:
    """A line on the runs of an older version, which finished without the tag that says that they are complete."""
    with store.lock():  # or a run would count that another process completes just now
        found = store.search(f"tags.`{KEY}` LIKE '%/%' AND attributes.status = 'FINISHED'")
    count = sum(not is_complete(run) for run in found)
    return [f"runs of an older version: {count}; they stay as they are, delete them in MLflow"] if count else []


def _adopted(attempts: Attempts, output: Output) -> Attempt | None:
    """The attempt whose runs an output's may be completed from."""
    _, runs = next(iter(attempts.get(output.key, ())), (None, []))
    stage = next((run.info.run_id for run in runs if PARENT not in run.data.tags), None)
    if stage is None:
        return None
    networks = {
        (run.data.params["arm"], int(run.data.params["seed"])): run.info.run_id
        for run in runs
        if PARENT in run.data.tags and "seed" in run.data.params
    }
    return Attempt(stage, networks)


# --- where outputs lie -----------------------------------------------------------------------------------------------


class Workspace:
    """The outputs as they are checked out."""

    def lock(self) -> str:
        """dvc.lock. Raises LotteryError."""
        try:
            return (root() / "dvc.lock").read_text(encoding="utf-8")
        except OSError as error:
            raise LotteryError("dvc.lock: no such file; `dvc repro` makes it") from error

    def models(self, levels: Sequence[str]) -> str:
        """The MD5 sum of models/ with these levels."""
        folder = root() / "models"
        files = (file for level in levels for file in (folder / level).rglob("*") if file.is_file())
        return digest_of_files({file.relative_to(folder).as_posix(): digest(file) for file in files})

    @contextmanager
    def files(self, entry: Recorded) -> Iterator[Path]:
        """The folder with an output's files, which are those that dvc.lock records. Raises MissingError."""
        for path, total in entry.outs.items():
            try:
                same = digest(root() / path) == total
            except OSError:
                raise MissingError(f"{path} is not here; `dvc pull` or `dvc repro` brings it") from None
            if not same:
                raise MissingError(f"{path} is not what dvc.lock records; `dvc repro` or `dvc checkout` mends that")
        yield root() / entry.folder


class Revision:
    """The outputs of a commit, from DVC's cache or its remote."""

    def __init__(self, commit: str) -> None:
        # DVC takes a project in a subfolder of a git repository for a repository within one, and names paths from git's
        self._prefix = git("-C", str(root()), "rev-parse", "--show-prefix")
        self._files = DVCFileSystem(str(root()), rev=commit, subrepos=True)

    def lock(self) -> str:
        """dvc.lock. Raises LotteryError."""
        try:
            if self._files.exists(f"{self._prefix}dvc.lock"):
                return str(self._files.read_text(f"{self._prefix}dvc.lock", encoding="utf-8"))
        except Exception as error:  # DVC reads the whole pipeline for this
            raise LotteryError(f"DVC cannot read its pipeline: {first_line(error)}") from error
        raise LotteryError("no dvc.lock is in this commit, and so no outputs")

    def models(self, levels: Sequence[str]) -> str:
        """The MD5 sum of models/ with these levels; empty where they are not within reach."""
        folder = f"{self._prefix}models/"
        try:
            found = {
                path: info["dvc_info"]["md5"]
                for level in levels
                for path, info in self._files.find(f"{folder}{level}", detail=True).items()
            }
        except Exception:  # of DVC's, its data packages' or a remote's
            return ""
        return digest_of_files({path.removeprefix(folder): total for path, total in found.items()})

    @contextmanager
    def files(self, entry: Recorded) -> Iterator[Path]:
        """A folder with what an output's runs show of its files. Raises MissingError."""
        with scratch() as folder:
            try:
                for path in self._paths(entry):
                    place = folder / path.removeprefix(f"{entry.folder}/")
                    place.parent.mkdir(exist_ok=True)
                    self._files.get_file(f"{self._prefix}{path}", str(place))
                for path, total in entry.outs.items() if len(entry.outs) > 1 else ():  # which git has
                    if digest(folder / path.removeprefix(f"{entry.folder}/")) != total:
                        raise MissingError(f"{path} of this commit is not what its dvc.lock records")
            except MissingError:
                raise
            except Exception as error:  # of DVC's, its data packages' or a remote's
                raise MissingError(
                    f"{entry.stage}: its files are in no DVC cache or remote within reach: {first_line(error)}"
                ) from error
            yield folder

    def _paths(self, entry: Recorded) -> list[str]:
        if entry.name == "download":
            return []
        if len(entry.outs) == 1:
            return [f"{entry.folder}/{name}" for name in FILES]
        found = (path for out in entry.outs for path in self._files.find(f"{self._prefix}{out}"))
        return [path.removeprefix(self._prefix) for path in found]


def _revision(revision: str) -> tuple[Revision, Origin]:
    """A commit, or a DVC experiment by name. Raises LotteryError."""
    try:
        with Repo(str(root())) as repo:
            commit = str(resolve_rev(repo.scm, revision))
            names = repo.experiments.get_exact_name([commit])
    except (DvcException, RevError) as error:
        raise LotteryError(
            f"--rev {revision}: neither a commit nor a DVC experiment; `dvc exp show` lists these"
        ) from error
    return Revision(commit), Origin(commit, experiment=names.get(commit) or "")
