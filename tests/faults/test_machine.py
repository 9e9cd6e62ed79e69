"""What a machine does to a pipeline: little memory, other disks, refused files, odd places and clocks."""

import ctypes
import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from clones import SMALL, Clone
from stores import PATIENCE, lines_of, run_stage, stage

from lottery.doctor import outputs
from lottery.files.workplace import replacing, scratch

OVERRIDES = (1, 2, 3)  # root's capabilities to read, write and own every file
BOUND = 24  # PR_CAPBSET_DROP
ODD = {
    "LC_ALL": "C",
    "HOME": "/proc/nowhere",  # where nothing can be written
}
# a file system without links, a clock that jumps back a day every tenth time, and no pickle that a file could hold
SITE = """
import os, pickle, sys, time
from importlib.abc import MetaPathFinder
def refused(*arguments, **named):
    raise OSError(95, "Operation not supported")
os.symlink = os.link = refused
true, asked = time.time, [0]
def jumping():
    asked[0] += 1
    return true() - 86400 * (asked[0] % 10 == 0)
time.time = jumping
class Guard(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "lottery.core.images":
            import torch
            pickle.load = torch.load = torch.serialization.load = refused
            print("no pickle in", os.environ["DVC_STAGE"], file=sys.stderr)
if os.environ.get("DVC_STAGE"):
    sys.meta_path.insert(0, Guard())
"""


def _as_a_person() -> None:
    """Obey the permissions of files, which root need not on Linux."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for capability in OVERRIDES:
        libc.prctl(BOUND, capability, 0, 0, 0)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems of 200 MB, at folders that are made where they are missing."""
    folders: list[Path] = []

    def mount(folder: Path, options: str = "size=200m") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here: root may")
        folders.append(folder)
        return folder

    yield mount
    for folder in reversed(folders):
        subprocess.run(["umount", "--lazy", folder], check=True)


def _ends(clone: Clone, module: str, name: str, prepare: Callable[[], None]) -> str:
    """Run a stage in a process that is prepared: the last line that it says, with exit code 2 and no traceback."""
    lines = run_stage(clone, module, name, 2, prepare=prepare)
    assert not [line for line in lines if "Traceback" in line]
    return lines[-1]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_too_little_memory_is_one_line(clone: Clone) -> None:
    # 0.3 GB a tensor, 1 GB on the disk, and more than 3 GB of memory
    clone.change(network=SMALL["network"] | {"hidden": [12_000, 6_000]}, train=SMALL["train"] | {"seeds": [0]})
    limit = 3 << 30

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    line = "run.threads: memory ran out: `dvc repro` goes on from what was saved of this stage; with fewer run.threads"
    assert _ends(clone, "train", "train", prepare).startswith(line)


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_is_one_line_and_costs_nothing_that_was_saved(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 400}, run={"threads": 2, "checkpoint_every": 0.2})
    running, deadline = stage(clone, "train", "train"), time.monotonic() + PATIENCE
    while not any(clone.folder.glob(".lottery/checkpoints/*/*.safetensors")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    psutil.Process(running.pid).children()[0].send_signal(signal.SIGKILL)
    (line,) = lines_of(running, 2)
    assert line.startswith(
        "run.threads: a worker was ended from outside, as happens where memory runs out: `dvc repro`"
    )
    output = clone.run("dvc", "repro", "--single-item", "train")
    assert "train: goes on from iteration " in output


# --- other disks -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_levels_reports_and_scratch_may_lie_on_other_disks(
    finished: Clone, origin: Path, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    clone = Clone(tmp_path / "clone", origin)
    for folder in (".lottery", "models", "reports"):
        mounted(clone.folder / folder)
    clone.run("git", "checkout", "-q", "models", "reports")
    clone.run("dvc", "repro", "--no-run-cache")
    assert (clone.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_syncs_files_alone_takes_outputs_and_one_that_fails_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    synced, sync, target = [], os.fsync, tmp_path / "models"

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        synced.append(descriptor)
        sync(descriptor)

    def write() -> None:
        with replacing(target) as folder:
            folder.mkdir()
            (folder / "weights").write_text("new")

    monkeypatch.setattr(os, "fsync", of_files_alone)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            write()
        assert list(tmp_path.iterdir()) == []
    else:
        write()
        assert (target / "weights").read_text() == "new"
        assert len(synced) == 1


def test_a_link_behind_which_dvc_keeps_nothing_is_said_before_a_stage_trains(clone: Clone, tmp_path: Path) -> None:
    shutil.rmtree(clone.folder / "models")
    (tmp_path / "other").mkdir()
    (clone.folder / "models").symlink_to(tmp_path / "other")
    (line,) = run_stage(clone, "train", "train", code=2)
    assert line.startswith(f"models: leads to {tmp_path / 'other'}, and DVC keeps no outputs behind a link; mount ")
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize(
    ("module", "name", "folder"),
    [
        ("download", "download", "data"),
        ("train", "train", "models"),
        ("prune", "prune@p50", "models"),
        ("evaluate", "evaluate", "reports"),
        ("plot", "plot", "reports"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line_before_a_stage_works(
    clone: Clone, module: str, name: str, folder: str
) -> None:
    (clone.folder / folder).chmod(0o555)
    began = clone.files("models"), (clone.folder / ".lottery/checkpoints").exists()
    try:
        line = _ends(clone, module, name, _as_a_person)
    finally:
        (clone.folder / folder).chmod(0o755)
    assert line == (
        f"{folder}: Permission denied; see to it that it can be read and written, then `dvc repro` goes on from here"
    )
    assert (clone.files("models"), (clone.folder / ".lottery/checkpoints").exists()) == began


@pytest.mark.parametrize(
    ("module", "name", "file"),
    [
        ("train", "train", "data/digits.safetensors"),
        ("prune", "prune@p50", "models/dense/weights.safetensors"),
        ("prune", "prune@p50", "models/dense/masks.safetensors"),
        ("evaluate", "evaluate", "models/p50/masks.safetensors"),
        ("plot", "plot", "reports/tables/levels.csv"),
        ("train", "train", ".lottery"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(clone: Clone, module: str, name: str, file: str) -> None:
    (clone.folder / file).chmod(0)
    try:
        line = _ends(clone, module, name, _as_a_person)
    finally:
        (clone.folder / file).chmod(0o755)
    assert line.startswith(file)
    assert "Permission denied" in line


def test_too_little_room_is_said_before_a_stage_trains(clone: Clone, mounted: Callable[..., Path]) -> None:
    mounted(clone.folder / "models", "size=1m")
    clone.change(network=SMALL["network"] | {"hidden": [320, 160]})
    (line,) = run_stage(clone, "train", "train", code=2)
    assert line.startswith("models/dense: No space left on device: the stage needs about 1.8 MB, and 1.0 MB are free")


# --- odd places ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pipeline_runs_in_an_odd_place_to_the_same_bytes(finished: Clone, origin: Path, tmp_path: Path) -> None:
    """All at once, because each of them alone takes half a minute to show no more than this.

    A path with spaces and letters that are not ASCII, an ASCII locale, a home that cannot be written, no links, a clock
    that jumps back, and stages in which no file is unpickled.
    """
    clone = Clone(tmp_path / "Glück und Lös €", origin)
    (clone.folder / "src/sitecustomize.py").write_text(SITE)  # the PYTHONPATH of a stage is `src` alone
    odd = clone.environment | ODD | {"PYTHONPATH": str(clone.folder / "src")}
    command = ["dvc", "repro", "--no-run-cache"]
    done = subprocess.run(command, cwd=clone.folder, env=odd, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = re.findall(r"^no pickle in (\S+)$", done.stderr, re.MULTILINE)
    assert {"download", "train", "prune@p50", "prune@p75", "prune@p80-at-once", "evaluate", "export", "plot"} <= {
        *stages
    }
    assert (clone.folder / "dvc.lock").read_bytes() == (finished.folder / "dvc.lock").read_bytes()


@pytest.mark.slow
def test_two_pipelines_in_one_folder_are_one_and_a_line(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 400})
    first = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=clone.folder, env=clone.environment, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not any(clone.folder.glob(".lottery/checkpoints/*")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = clone.run("dvc", "repro", "train", check=False)
    assert f"(PID {first.pid})" in second or "process is running" in second or "is busy" in second, second
    assert "Traceback" not in second
    first.terminate()
    first.wait(PATIENCE)


def test_what_killed_processes_left_of_their_scratch_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    code = "import os, signal; from lottery.files.workplace import scratch\n"
    code += "with scratch() as folder:\n    (folder / 'half').touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code])
    (left,) = (tmp_path / ".lottery/tmp").iterdir()
    with scratch() as mine:
        assert not left.exists()
        with scratch() as another:
            assert mine.exists()
            assert not list(another.iterdir())
    assert not list((tmp_path / ".lottery/tmp").iterdir())


def test_scratch_folders_of_several_processes_leave_each_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    code = "from lottery.files.workplace import scratch\nfor number in range(150):\n    with scratch() as folder:\n"
    code += "        (folder / 'mine').touch()\n        assert [each.name for each in folder.iterdir()] == ['mine']"
    every = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [each.communicate(timeout=PATIENCE)[1] for each in every] == ["", "", ""]
    assert not list((tmp_path / ".lottery/tmp").iterdir())


# --- training that diverges ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_that_diverges_is_one_line_and_leaves_what_dvc_had(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"optimizer": "sgd", "learning_rate": 1e30})
    before = outputs(clone.folder / "dvc.lock")
    output = clone.run("dvc", "repro", check=False)
    assert "params.yaml: train.learning_rate: training diverged at 1e+30: the validation loss of dense, seed " in output
    assert "Traceback" not in output
    assert outputs(clone.folder / "dvc.lock") == before
    clone.run("git", "checkout", "-q", "params.yaml")
    clone.run("dvc", "checkout")
    assert clone.repro() == []
