"""Runs for outputs that exist: those of the workspace, of commits and of DVC experiments."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from mlflow.entities import Run

from lottery import LotteryError
from lottery.files.digests import digest, digest_of_files
from lottery.files.workplace import root, scratch
from lottery.params import Params
from lottery.provenance import git, refusal
from lottery.tracking.address import fault, first_line, shown_uri
from lottery.tracking.outputs import MissingError, Output, Recorded, recorded
from lottery.tracking.runs import PARENT, Origin, Recorder, origin_of_workspace
from lottery.tracking.serve import connect
from lottery.tracking.store import Store, is_deleted

FILES = ("history.csv", "masks.safetensors")  # what a level's runs show; its weights are large and not among it
WHOLE = ("evaluate", "export", "plot")  # stages of whose output all files are shown


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
        ended, lines = _end_dead(store), []
        if refused:
            lines.append(f"the runs that are made now name no commit: {refused}")
        commits = git("log", "--all", "--full-history", "--format=%H", "--", "dvc.lock").split() if all_commits else []
        if all_commits and not commits:
            lines.append("no commit has a dvc.lock")
        if not revisions and not all_commits:
            lines += _sync(Recorder(store, origin_of_workspace(os.environ), restore), params, Workspace())
        for revision in dict.fromkeys([*revisions, *commits]):
            source, origin = _revision(revision)
            shown = origin.commit[:7] if revision == origin.commit else revision
            try:
                told = _sync(Recorder(store, origin, restore, is_current=False), params, source)
            except (LotteryError, LookupError, ValueError) as error:
                # among all commits a bad one costs its own runs alone
                if revision in revisions:
                    raise LotteryError(f"--rev {revision}: {error}") from error
                told = [str(error) if isinstance(error, LotteryError) else f"not of this version: {first_line(error)}"]
            lines += [f"{shown}: {line}" for line in told]
        stay = [run for run in ended if not is_deleted(store.call("get_run", run.info.run_id))]
        return [f"the process of run {run.info.run_name} is dead: marked KILLED" for run in stay] + lines
    except LotteryError:
        raise
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error


def _sync(recorder: Recorder, params: Params, source: "Workspace | Revision") -> list[str]:
    """The runs of every output that a source has."""
    missing: list[str] = []
    levels: list[Output] = []
    for entry in recorded(source.lock(), params, source.commit):
        output = entry.output(source.files)
        try:
            if entry.name == "evaluate":
                same = source.models([level.name for level in levels]) == entry.deps.get("models")
                if not same:
                    text = "evaluate: read other levels than those here, whose runs get no test results from it"
                    missing.append(text)
                recorder.evaluation(output, levels if same else [])
            elif entry.name in ("download", "export", "plot"):
                recorder.simple(output)
            else:
                levels.append(output)
                recorder.level(output)
        except MissingError as error:
            missing.append(str(error))
    tally = recorder.tally
    counts = {"made": tally.made, "completed": tally.completed, "restored": tally.restored}
    counts |= {"already complete": tally.there}
    lines = ["runs: " + (", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none")]
    if tally.deleted:
        names = ", ".join(tally.deleted[:5]) + (", ..." if len(tally.deleted) > 5 else "")
        lines.append(f"runs that were deleted in MLflow stay so: {names}; `lottery sync --restore` brings them back")
    return lines + missing


def _end_dead(store: Store) -> list[Run]:
    """Mark the running runs of dead processes KILLED; those of stages among them."""
    with store.lock():
        running = [run for run in store.unfinished() if run.info.status == "RUNNING"]
        for run in running:
            store.call("set_terminated", run.info.run_id, "KILLED")
    return [run for run in running if PARENT not in run.data.tags]


# --- where outputs lie -----------------------------------------------------------------------------------------------


class Workspace:
    """The outputs as they are checked out."""

    commit = ""

    def lock(self) -> str:
        """dvc.lock. Raises LotteryError."""
        try:
            return (root() / "dvc.lock").read_text(encoding="utf-8")
        except OSError as error:
            raise LotteryError("dvc.lock: no such file; `dvc repro` makes it") from error
        except UnicodeDecodeError as error:
            raise LotteryError("dvc.lock: not UTF-8; `git checkout dvc.lock` mends it") from error

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
        self.commit = commit[:7]
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
                for path, total in entry.outs.items() if entry.name in WHOLE else ():
                    place = folder / Path(path).relative_to(entry.folder)
                    if not place.exists() or digest(place) != total:
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
        if entry.name not in WHOLE:
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
