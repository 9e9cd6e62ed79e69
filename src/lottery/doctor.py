"""`lottery doctor`: whether this machine and this repository can run the pipeline, a line per check."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.request import urlopen

import psutil
import yaml

from lottery import LotteryError, params
from lottery.files.digests import digest
from lottery.files.workplace import is_inside, root
from lottery.params import Params
from lottery.provenance import git, refusal

Record = dict[str, dict[str, str]]  # the MD5 sums of the outputs in dvc.lock, by stage and path
LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")  # what DVC's processes read and write at the moment
PINNED = ("torch", "torchvision")  # whose versions decide bytes
NO_ANSWER = 1.0  # seconds that an MLflow server may take


@dataclass(frozen=True)
class Check:
    """A check and what came of it."""

    name: str
    found: str
    remedy: str = ""  # of a failed one; empty where all is well
    fatal: bool = True  # the pipeline cannot run before it is mended

    def __str__(self) -> str:
        state = "ok" if not self.remedy else "FAILS" if self.fatal else "note"
        return f"{state:5}  {self.name:12}  {self.found}{'; ' * bool(self.remedy)}{self.remedy}"


def checks(deep: bool) -> Iterator[Check]:
    """Make the checks, the quick ones or all, one after the other."""
    yield _python()
    yield from map(_package, PINNED)
    yield _device()
    try:
        settings = params.load()
    except LotteryError as error:
        yield Check("params.yaml", "has mistakes", str(error).splitlines()[0])
        return
    yield Check("params.yaml", "valid")
    yield from (_memory(settings), _disk(settings), _git(), _code())
    lock, record = _lock()
    yield lock
    if _is_rwlock_torn():
        yield Check("rwlock", f"{RWLOCK} is torn: DVC was killed as it wrote it", "`lottery doctor --mend` removes it")
    yield _data(settings)
    if record:
        yield _outputs(settings, record)
    yield _mlflow()
    if record:
        yield from _runs(settings)
    yield _checkpoints()
    if deep and record:
        yield _verified(record)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", found, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer")


def _package(name: str) -> Check:
    try:
        found, needed = version(name), requires("lottery") or ()
    except PackageNotFoundError as missing:
        return Check(name, f"{missing.name} is not installed", "`make repro` installs it")
    wanted = next(each.partition("==")[2] for each in needed if each.startswith(f"{name}=="))
    # another version rounds in another way: results are right, and their bytes are others
    remedy = "" if found.partition("+")[0] == wanted else f"the pin is {wanted}: `make repro` installs it"
    return Check(name, found, remedy, fatal=False)


def _device() -> Check:
    import torch  # takes 2 s

    cores = torch.get_num_threads()
    build = "CUDA" if torch.version.cuda else "CPU"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Check("processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}; {build} build, {gpu}")


def _memory(settings: Params) -> Check:
    from lottery.stages.faults import memory

    needed = max(memory(settings, level) for level in ("dense", *settings.levels))
    free = psutil.virtual_memory().available
    remedy = "" if free > needed else "close other programs, or give fewer seeds or arms"
    return Check("memory", f"about {_gigabytes(needed)} needed, {_gigabytes(free)} free", remedy, fatal=False)


def _disk(settings: Params) -> Check:
    from lottery.stages.faults import room

    levels = [level for level in ("dense", *settings.levels) if not (Path("models") / level).exists()]
    rooms = [room(settings, level) for level in levels]
    needed = sum(rooms) + 2 * max(rooms, default=0) + 100_000_000  # checkpoints of the level that trains, too
    free = shutil.disk_usage(root()).free
    return Check(
        "disk", f"about {_gigabytes(needed)} needed, {_gigabytes(free)} free", "" if free > needed else "make room"
    )


def _git() -> Check:
    if reason := refusal():
        return Check("git", "refuses", reason)
    if not git("rev-parse", "--git-dir"):
        return Check("git", "no repository is here", "`git init`: DVC needs one")
    return Check("git", f"commit {git('rev-parse', '--short', 'HEAD') or 'none yet'}")


def _code() -> Check:
    """The code that a stage would import is this folder's."""
    command = [sys.executable, "-c", "import lottery; print(lottery.__file__)"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "src"}, capture_output=True, text=True)
    found = Path(done.stdout.strip() or ".").resolve().parent
    right = found == Path("src/lottery").resolve()
    return Check("code", str(found), "" if right else "run this in the folder that holds dvc.yaml")


def _lock() -> tuple[Check, Record]:
    if not LOCK.exists():
        return Check("dvc.lock", "none yet"), {}
    record = outputs(LOCK)
    if record is None:
        torn = "`git checkout dvc.lock` restores the committed one; without one, remove it: `dvc repro` writes it anew"
        return Check("dvc.lock", "torn: DVC was killed or had no room as it wrote it", torn), {}
    if git("status", "--porcelain", "--", LOCK.name):
        return Check("dvc.lock", f"{len(record)} stages", "not committed: `git add dvc.lock reports`", False), record
    return Check("dvc.lock", f"{len(record)} stages"), record


def _is_rwlock_torn() -> bool:
    """Whether DVC's own file of who reads and writes what ends in the midst of it; DVC refuses to run then."""
    try:
        json.loads(RWLOCK.read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return True
    return False


def outputs(lock: Path) -> Record | None:
    """The MD5 sums of each stage's outputs by path, as a dvc.lock has them; None where it ends in the midst of it.

    None too where an output lies outside the repository: what is damaged may be removed.
    """
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        record = {name: {out["path"]: out["md5"] for out in entry.get("outs", ())} for name, entry in stages.items()}
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return None
    whole = all(outs or name == "check" for name, outs in record.items())
    return record if whole and all(is_inside(path) for outs in record.values() for path in outs) else None


def _data(settings: Params) -> Check:
    from lottery.files.data import verify
    from lottery.files.sealed import OLDER

    path = settings.data_file
    if not path.exists():
        return Check("data", f"{path}: not here yet, `dvc repro` fetches it")
    try:
        verify(path)
    except LotteryError as error:
        return Check("data", "not whole", str(error), fatal=OLDER not in str(error))
    return Check("data", f"{path}, verified")


def _outputs(settings: Params, record: Record) -> Check:
    """Each output of the present levels is in the workspace or in the cache."""
    present = {f"prune@{level}" for level in settings.levels}  # DVC keeps the entries of those that were removed
    stages = [stage for stage in record if stage in present or not stage.startswith("prune@")]
    outs = {path: md5 for stage in stages for path, md5 in record[stage].items()}
    away = {path: md5 for path, md5 in outs.items() if not Path(path).exists()}
    if away:
        cache = _cache()
        away = {path: md5 for path, md5 in away.items() if not (cache / md5[:2] / md5[2:]).exists()}
    remedy = "`dvc pull` fetches them from a remote, `dvc repro` makes them anew"
    return Check("outputs", f"{len(outs) - len(away)} of {len(outs)} here", remedy if away else "", fatal=False)


def _mlflow() -> Check:
    from lottery.tracking.address import StoreError, is_sqlite, knows_schema, shown_uri, sqlite_path, tracking_uri

    remedy, shown = "", shown_uri()
    try:
        if is_sqlite():
            path = sqlite_path()
            if not path.exists():
                return Check("MLflow", f"{shown}: made by the first stage")
            with closing(sqlite3.connect(path, timeout=1)) as database:
                (schema,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
                if not knows_schema(schema):
                    remedy = f"the store is of a newer MLflow than {version('mlflow')}: install that one"
                database.execute("BEGIN IMMEDIATE")  # a lock to write: fails where the file cannot be written
        elif tracking_uri().startswith("http"):
            urlopen(f"{tracking_uri().rstrip('/')}/health", timeout=NO_ANSWER).close()  # noqa: S310  # http, as asked
    except StoreError as error:
        remedy = str(error)
    except (OSError, ValueError, TypeError, sqlite3.Error) as error:
        remedy = f"{type(error).__name__}: {error}; stages run untracked, and `lottery sync` adds their runs later"
    return Check("MLflow", shown, remedy, fatal=False)


def _runs(settings: Params) -> Iterator[Check]:
    """Each output that dvc.lock records has its run, where the store is a file; `lottery sync` looks at servers."""
    from lottery.tracking.address import is_sqlite, sqlite_path
    from lottery.tracking.outputs import KEY, digest_of_outs, recorded

    query = "SELECT value FROM tags JOIN runs USING (run_uuid) WHERE key = ? AND lifecycle_stage = 'active'"
    with suppress(LotteryError, OSError, sqlite3.Error):  # whose faults other checks name
        if not is_sqlite() or not sqlite_path().exists():
            return
        each = recorded(LOCK.read_text(encoding="utf-8"), settings)
        keys = {f"{entry.name}/{digest_of_outs(entry.outs)}" for entry in each}
        with closing(sqlite3.connect(sqlite_path(), timeout=1)) as database:
            lacking = keys - {key for (key,) in database.execute(query, (KEY,))}
        found = f"{len(keys) - len(lacking)} of {len(keys)} outputs have theirs"
        yield Check("runs", found, "`lottery sync` adds what is missing" if lacking else "", fatal=False)


def _checkpoints() -> Check:
    from lottery.tidy import stale

    old = stale()
    held = f"{len(old)} stale folders" if old else "nothing stale"
    return Check("left over", held, "`lottery tidy` removes them" if old else "", fatal=False)


def _verified(record: Record) -> Check:
    if bad := damaged(record):
        return Check("contents", f"damaged: {', '.join(map(str, bad[:4]))}", "`lottery doctor --mend` removes them")
    outs = {Path(path): md5.removesuffix(".dir") for stage in record.values() for path, md5 in stage.items()}
    other = [path.as_posix() for path, md5 in outs.items() if path.exists() and digest(path) != md5]
    if other:
        remedy = "`dvc repro` makes them anew, `dvc checkout` restores them"
        return Check("contents", f"not what dvc.lock says: {', '.join(other[:4])}", remedy, fatal=False)
    return Check("contents", "every output and every file of DVC's cache is what its sum says")


def mend() -> list[str]:
    """Remove what is damaged, of DVC's cache, of the outputs and DVC's rwlock; a line each.

    No DVC command writes meanwhile. Raises LotteryError where one does now, or where DVC has no repository.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    from lottery.tracking.address import first_line

    lines = []
    found = damaged(outputs(LOCK) or {})  # before the lock, for which the DVC of a stage that ends waits 3 s
    try:
        with Repo(".") as repo, repo.lock:  # under which alone DVC writes its rwlock
            if _is_rwlock_torn():
                RWLOCK.unlink()
                lines.append(f"removed {RWLOCK}")
            for path in filter(is_damaged, found):  # not made anew since
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                lines.append(f"removed {path}")
    except LockError as error:
        raise LotteryError(
            "DVC: another command of it writes in this folder; run this again when it has ended"
        ) from error
    except DvcException as error:
        raise LotteryError(f"DVC: {first_line(error)}; run this in the folder that holds dvc.yaml") from error
    return lines


def damaged(record: Record) -> list[Path]:
    """The files of DVC's cache, and the levels and data sets in the workspace, that are damaged."""
    outs = (Path(path) for stage in record.values() for path in stage)
    return [path for path in (*_cache().glob("??/*"), *outs) if is_damaged(path)]


def is_damaged(path: Path) -> bool:
    """Whether a level or a data set fails its own sums, or a file of DVC's cache is not what its name says."""
    from lottery.files.artifacts import verify_level
    from lottery.files.data import verify

    try:
        if path.exists() and path.parts[0] in ("models", "data"):
            verify_level(path) if path.parts[0] == "models" else verify(path)
        name = (path.parent.name + path.name).removesuffix(".dir")
        return bool(re.fullmatch("[0-9a-f]{32}", name)) and digest(path) != name
    except LotteryError:
        return True
    except FileNotFoundError:  # of a file that goes meanwhile
        return False


def _cache() -> Path:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo  # takes a second

    try:
        with Repo(".") as repo:
            return Path(repo.cache.local.path)
    except DvcException:  # no repository of its, in which nothing is cached
        return Path(".dvc/cache/files/md5")


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


def report(deep: bool) -> bool:
    """Print each check's line; whether the pipeline can run."""
    runs = True
    for check in checks(deep):
        print(check, flush=True)  # some take a second
        runs = runs and not (check.remedy and check.fatal)
    return runs
