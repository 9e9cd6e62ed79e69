"""What tracking survives, and what it costs: `python -m benchmarks.tracking`.

First the runs of a pipeline on digits, in temporary clones with real DVC and real servers: before a loss, after
`lottery sync` and after a second one. Then a level of the default pipeline on MNIST, with tracking and without it. Both
take turns, because a machine that others use drifts.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from clones import ROOT, Clone, make_origin
from stores import address, connect, keys, kill, lose_the_store, picture, serving, store, sync

KILLS = 5
LEVEL = "p80"
# a stage as DVC runs it, which prints the seconds of its training, and of the processors' seconds that the tracking
# thread and the server took those for logging while networks train and those in all
STAGE = """
import sys, time
from contextlib import nullcontext
from types import SimpleNamespace
import psutil
from lottery import tracking
from lottery.core import experiment
from lottery.stages import prune, run
from lottery.tracking import live

server = psutil.Process(int(sys.argv[2]))
live_seconds = 0.0

def seconds():
    served = [each.cpu_times() for each in (server, *server.children(recursive=True))]
    return time.thread_time() + sum(times.user + times.system for times in served)

def work(self, work=live.StageRun._work):
    began = seconds()
    work(self)
    print(live_seconds, seconds() - began)

def log_live(self, networks, log_live=live.StageRun._log_live):
    global live_seconds
    began = seconds()
    log_live(self, networks)
    live_seconds += seconds() - began

live.StageRun._work, live.StageRun._log_live = work, log_live

def timed(*arguments, level=experiment.level):
    began = time.perf_counter()
    trained = level(*arguments)
    print(time.perf_counter() - began)
    return trained

experiment.level = timed
if sys.argv[1] == "untracked":
    nothing = SimpleNamespace(watch=lambda group: None, log_level=lambda folder: None)
    tracking.stage = lambda params, name: nullcontext(nothing)
    print(0, 0)
run(prune.main)
"""


# --- what it survives ------------------------------------------------------------------------------------------------


class Losses:
    """The table: each method disturbs a store in a folder of its own and prints a row, or several."""

    def __init__(self, folder: Path, origin: Path) -> None:
        self._folder = folder
        self._finished = Clone(folder / "finished", origin)
        started = time.monotonic()
        self._finished.repro()
        self._seconds = time.monotonic() - started  # that an undisturbed pipeline takes
        self._expected = picture(store(self._finished))
        print("| | runs before | left | after sync | after a second sync | keys with two runs | as before |")
        print("|---|---|---|---|---|---|---|")

    def deleted_store(self) -> None:
        clone = self._copy("deleted")
        lose_the_store(clone)
        self._row("store deleted", address(clone), clone)

    def fresh_clone(self) -> None:
        clone = self._copy("pushed")
        clone.run("dvc", "remote", "add", "-d", "folder", str(self._folder / "remote"))
        clone.run("dvc", "push")
        clone.commit("With results")
        other = Clone(self._folder / "pulled", clone.folder)
        other.run("dvc", "pull")
        self._row("fresh clone and `dvc pull`", address(other), other)

    def killed_server(self) -> None:
        draws = random.Random(0)
        for seconds in sorted(draws.uniform(0, self._seconds) for _ in range(KILLS)):
            clone = self._copy(f"killed-{seconds}")
            with serving(clone.folder.parent) as (uri, server):
                pipeline = _start(clone, uri, "dvc", "repro", "--force")
                with suppress(subprocess.TimeoutExpired):
                    pipeline.wait(seconds)
                kill(server)
                _wait(pipeline)
            with serving(clone.folder.parent, int(uri.rpartition(":")[2])) as (uri, _):
                self._row(f"server killed {seconds:.0f} s into the pipeline's {self._seconds:.0f}", uri, clone)

    def together(self, what: str, *command: str) -> None:
        """Two clones at once: on a server as two machines are, without a lock in common, and on one SQLite store."""
        for where in ("server", "sqlite"):
            clones = [self._copy(f"{what}-{where}-{number}") for number in range(2)]
            folder = clones[0].folder.parent
            if where == "server":
                with serving(folder) as (uri, _):
                    _wait(*(_start(clone, uri, *command) for clone in clones))
                    self._row(f"two concurrent {what}, two clones on a server", uri, *clones)
            else:
                uri = f"sqlite:///{folder}/mlflow.db"
                _wait(*(_start(clone, uri, *command) for clone in clones))
                self._row(f"two concurrent {what} on a SQLite store", uri, *clones)

    def _copy(self, name: str) -> Clone:
        """The finished clone in a folder of its own."""
        folder = self._folder / name / "clone"
        shutil.copytree(self._finished.folder, folder, symlinks=True)
        return Clone(folder)

    def _row(self, what: str, uri: str, *clones: Clone) -> None:
        counts = [len(self._expected), _count(uri)]
        for _ in range(2):
            for clone in clones:  # what a clone's own processes left, it completes
                sync(clone, **_variables(clone, uri))
            counts.append(_count(uri))
        found = Counter(key for key in keys(connect(uri)) if not key.startswith("no key"))
        counts.append(sum(runs > 1 for runs in found.values()))
        same = not counts[-1] and picture(connect(uri)) == self._expected
        print(f"| {what} | {' | '.join(map(str, counts))} | {'yes' if same else 'no'} |", flush=True)


def _count(uri: str) -> int:
    """The active runs of a store, also of one that is not there."""
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
        return 0
    client = connect(uri)
    return len(keys(client)) if client.get_experiment_by_name("lottery-tickets") else 0


def _variables(clone: Clone, uri: str) -> dict[str, str]:
    """What makes a clone's processes track there; those of a server as on a machine of their own."""
    machine = {"TMPDIR": str(clone.folder.parent)} if uri.startswith("http") else {}
    return {"MLFLOW_TRACKING_URI": uri} | machine


def _start(clone: Clone, uri: str, *command: str) -> "subprocess.Popen[bytes]":
    own = clone.environment | _variables(clone, uri)
    return subprocess.Popen(command, cwd=clone.folder, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait(*processes: "subprocess.Popen[bytes]") -> None:
    for process in processes:
        assert process.wait() == 0, f"{process.args} failed"


# --- what it costs ---------------------------------------------------------------------------------------------------


def costs(folder: Path, origin: Path, rounds: int) -> None:
    """Time a level's stage in turn without tracking, on SQLite and on a server, and print the table."""
    clone = Clone(folder / "cost", origin)
    default: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    clone.change(**default | {"levels": {LEVEL: {"sparsity": 0.8, "parent": "dense"}}})
    clone.run("dvc", "repro", "train")
    times: dict[str, list[tuple[float, ...]]] = {"untracked": [], "SQLite": [], "server": []}
    with serving(folder) as (uri, server):
        uris = {"untracked": "", "SQLite": address(clone), "server": uri}
        for turn in range(rounds):
            clone.change(tracking={"mlflow_experiment": f"round {turn}"})  # where no run is complete
            print(f"round {turn}: the machine's load before it is {os.getloadavg()[0]:.1f}", file=sys.stderr)
            for how in list(times)[turn % 3 :] + list(times)[: turn % 3]:
                times[how].append(_stage(clone, how, uris[how], psutil.Process(server.pid)))
                print(f"{how}: {', '.join(f'{part:.1f}' for part in times[how][-1])} s", file=sys.stderr)
    columns = [f"{what}, s | to untracked" for what in ("training", "whole stage", "CPU")]
    print(f"\n| tracking | {' | '.join(columns)} | CPU of live logging | of all tracking |\n|{'---|' * 9}")
    for how, taken in times.items():
        cells = [f"| {how}"]
        for part in range(3):
            ratios = [each[part] / usual[part] for each, usual in zip(taken, times["untracked"], strict=True)]
            cells.append(f"{statistics.median(each[part] for each in taken):.1f}")
            cells.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        for part in (3, 4):
            shares = statistics.median(each[part] / each[2] for each in taken)
            cells.append(f"{statistics.median(each[part] for each in taken):.1f} s, {shares:.1%}")
        print(" | ".join(cells), "|")


def _stage(clone: Clone, how: str, uri: str, server: psutil.Process) -> tuple[float, ...]:
    """The seconds of a stage's training, of its process, of all processors, and of these what tracking took.

    That is first what logging took while networks trained, then all of it, from importing MLflow to the last artifact.
    The server's part counts too. Unlike the clock, the processors' seconds are not those of others' work.
    """
    own = clone.environment | {"PYTHONPATH": "src", "DVC_STAGE": f"prune@{LEVEL}", "DVC_ROOT": str(clone.folder)}
    own["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"  # or a busy machine would end the tracking that is timed
    own |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    command = [sys.executable, "-c", STAGE, how, str(server.pid)]
    started, stages, served = time.perf_counter(), _of_stages(), _of_server(server)
    done = subprocess.run(command, cwd=clone.folder, env=own, capture_output=True, text=True)
    whole = time.perf_counter() - started
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = sorted(done.stdout.splitlines(), key=lambda line: len(line.split()))  # the clock's line, the processors'
    training, live, thread = map(float, " ".join(lines).split())
    return training, whole, _of_stages() - stages + _of_server(server) - served, live, thread


def _of_stages() -> float:
    """Seconds of processors that stages used so far."""
    stages = resource.getrusage(resource.RUSAGE_CHILDREN)
    return stages.ru_utime + stages.ru_stime


def _of_server(server: psutil.Process) -> float:
    """Seconds of processors that the server used so far."""
    each = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(times.user + times.system for times in each)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of the stage; default: %(default)s")
    parser.add_argument("--only", choices=["losses", "costs"], help="one of the two tables")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        origin = make_origin(Path(folder) / "origin")
        if arguments.only != "costs":
            losses = Losses(Path(folder), origin)
            losses.deleted_store()
            losses.fresh_clone()
            losses.killed_server()
            losses.together("syncs", "lottery", "sync")
            losses.together("pipelines", "dvc", "repro", "--force")
        if arguments.only != "losses":
            costs(Path(folder), origin, arguments.rounds)


if __name__ == "__main__":
    main()
