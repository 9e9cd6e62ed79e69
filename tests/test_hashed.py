"""What DVC hashes for a stage is what the stage runs with: dvc.yaml's deps, and the code of the working folder."""

import ast
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from clones import SMALL, Clone, said
from stores import PATIENCE, stage

from lottery import LotteryError
from lottery.files.artifacts import load_history
from lottery.params import Params
from lottery.stages.hashed import check_unchanged, inputs
from lottery.stages.levels import check_level

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src"

# modules that stages import and that need not be deps, because they decide no byte of an output
NO_DEPS = {
    "lottery": "the error that is one line",
    "lottery.cluster": "runs core's training elsewhere, with states that core makes",
    "lottery.params": "says whether a stage may run; the values go through it unchanged, and `plan` has what they mean",
    "lottery.stages": "begins and ends a stage",
    "lottery.stages.hashed": "says whether a stage may run",
    "lottery.stages.warm": "starts a stage, which then imports this folder's code",
    "lottery.stages.ahead": "trains what a later stage would, by this stage's own code",
    "lottery.stages.progress": "says how far a stage is",
    "lottery.stages.levels": "says whether a stage may run",
    "lottery.files.workplace": "moves files, whatever is in them",
    "lottery.tracking": "shows outputs in MLflow",
}
# those that `download` alone does without: it would fetch what it has again
NOT_OF_DOWNLOAD = {
    "lottery.core.images": "loading, which later stages do",
    "lottery.core.randomness": "the split, which later stages draw",
    "lottery.plan": "gives the file's name alone, which is an output in dvc.yaml",
}
STAGES = ("download", "train", "prune", "evaluate", "export", "plot")


def _file(module: str) -> Path | None:
    path = SOURCES / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported(module: str) -> set[str]:
    """The modules of this project that a module imports, in functions too, but not for type hints alone."""
    file = _file(module)
    assert file, module
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {each for node in hints for each in ast.walk(node)}
    found = set()
    for node in set(ast.walk(tree)) - skipped:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    return {name for name in found if name.partition(".")[0] == "lottery" and _file(name)}


def _closure(module: str, without: Collection[str] = NO_DEPS.keys()) -> set[str]:
    """A stage's module and all that it imports, but for what is no dep and imports for MLflow alone."""
    found, waiting = set(), [module]
    while waiting:
        each = waiting.pop()
        if each not in found and each not in without and not each.startswith("lottery.tracking."):
            found.add(each)
            waiting += _imported(each)
    return found


def _decisive(stage: str) -> set[Path]:
    """The sources of the modules that decide a stage's bytes."""
    if stage == "download":
        modules = _closure("lottery.stages.download") - NOT_OF_DOWNLOAD.keys()
    else:
        modules = _closure(f"lottery.stages.{stage}") | _closure("lottery.plan")  # which `params`, left out, imports
    return {file for file in map(_file, modules) if file}


def _sources(stage: str) -> set[Path]:
    """The files and folders under src/ that dvc.yaml lists for a stage."""
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    return {ROOT / dep for dep in entry.get("do", entry)["deps"] if dep.startswith("src/")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_deps_hold_all_modules_that_it_imports(stage: str) -> None:
    deps = _sources(stage)
    assert {file for file in _decisive(stage) if not deps & {file, *file.parents}} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_each_of_its_deps_or_a_module_in_it(stage: str) -> None:
    used = {path for file in _decisive(stage) for path in (file, *file.parents)}
    assert {dep for dep in _sources(stage) if dep not in used} == set()


@pytest.mark.parametrize(("folder", "stage"), [("report", "plot"), ("ticket", "export")])
def test_a_template_is_a_dep_of_the_stage_that_fills_it_and_of_no_other(folder: str, stage: str) -> None:
    (template,) = (SOURCES / "lottery" / folder).glob("*.j2")
    assert [each for each in STAGES if _sources(each) & {template, *template.parents}] == [stage]


@pytest.mark.parametrize("module", [*NO_DEPS, *NOT_OF_DOWNLOAD])
def test_a_module_that_is_said_to_decide_nothing_is_imported_by_a_stage_without_it_as_a_dep(module: str) -> None:
    file = _file(module)
    assert file, module
    importing = [stage for stage in STAGES if module in _closure(f"lottery.stages.{stage}", without=())]
    assert [stage for stage in importing if not _sources(stage) & {file, *file.parents}]


# --- in which folder a stage runs ------------------------------------------------------------------------------------


def _keep_the_smallest(folder: Path) -> None:
    """Change a source so that `prune@p50` leaves other bytes."""
    source = folder / "src/lottery/core/pruning.py"
    text = source.read_text()
    changed = text.replace("Stack(evidence.trained.flat.abs(), ", "Stack(-evidence.trained.flat.abs(), ")
    assert changed != text
    source.write_text(changed)


def _recorded(clone: Clone, experiment: str = "") -> str:
    """What dvc.lock says of `models/p50`, here or in a DVC experiment."""
    lock = (clone.folder / "dvc.lock").read_text()
    if experiment:
        (reference,) = clone.run("git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{experiment}").split()
        lock = clone.run("git", "show", f"{reference}:dvc.lock")
    return str(yaml.safe_load(lock)["stages"]["prune@p50"]["outs"][0]["md5"])


@pytest.fixture(scope="module")
def smallest(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the changed source leaves in a clone of its own."""
    folder = tmp_path_factory.mktemp("own") / "clone"
    shutil.copytree(finished.folder, folder, symlinks=True)
    own = Clone(folder)
    _keep_the_smallest(folder)
    own.repro("--force", "--single-item", "prune@p50")
    return _recorded(own)


@pytest.fixture
def committed(clone: Clone) -> Clone:
    clone.commit("Run")
    return clone


def test_a_clone_runs_its_own_code_in_another_clones_environment(finished: Clone, smallest: str) -> None:
    assert smallest != _recorded(finished)


@pytest.mark.slow
def test_an_experiment_in_a_copy_runs_the_copys_code(committed: Clone, smallest: str) -> None:
    _keep_the_smallest(committed.folder)
    committed.run("dvc", "exp", "run", "--temp", "-n", "smallest", "prune@p50")
    assert _recorded(committed, "smallest") == smallest


@pytest.mark.slow
def test_queued_experiments_run_the_code_that_they_were_queued_with(committed: Clone, smallest: str) -> None:
    """Two at once, and after the source was put back; what the run cache then gives for each source is right too."""
    before = _recorded(committed)
    committed.run("dvc", "exp", "run", "--queue", "-n", "as-it-was", "-S", "train.learning_rate=0.02", "prune@p50")
    _keep_the_smallest(committed.folder)
    committed.run("dvc", "exp", "run", "--queue", "-n", "smallest", "prune@p50")
    committed.run("git", "checkout", "-q", "src")
    committed.run("dvc", "queue", "start", "-j", "2")
    deadline = time.monotonic() + PATIENCE
    while "Running" in (status := committed.run("dvc", "queue", "status")) or "Queued" in status:
        assert time.monotonic() < deadline, status
        time.sleep(1)
    assert _recorded(committed, "smallest") == smallest
    _keep_the_smallest(committed.folder)
    committed.repro("prune@p50")
    assert _recorded(committed) == smallest != before


@pytest.mark.slow
def test_a_worktree_runs_its_own_code(committed: Clone, smallest: str, tmp_path: Path) -> None:
    committed.run("git", "worktree", "add", "-q", str(tmp_path / "worktree"))
    worktree = Clone(tmp_path / "worktree")
    worktree.run("dvc", "cache", "dir", "--local", str(committed.folder / ".dvc/cache"))
    worktree.run("dvc", "checkout")
    _keep_the_smallest(worktree.folder)
    worktree.repro("--single-item", "prune@p50")
    assert _recorded(worktree) == smallest


@pytest.mark.slow
def test_an_experiment_from_a_subfolder_runs_the_repositorys_code(committed: Clone, smallest: str) -> None:
    _keep_the_smallest(committed.folder)
    below = Clone(committed.folder / "src")
    below.run("dvc", "exp", "run", "-n", "smallest", "../dvc.yaml:prune@p50")
    assert _recorded(committed) == smallest


def test_other_code_than_the_folders_is_refused_before_a_stage_begins(clone: Clone) -> None:
    before = clone.files("models")
    done = subprocess.run(
        [sys.executable, "-m", "lottery.stages.train"],
        cwd=clone.folder,
        env=clone.environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"DVC hashes that in {clone.folder / 'src/lottery'}" in done.stderr
    assert clone.files("models") == before


# --- while a stage runs ----------------------------------------------------------------------------------------------


def _long(clone: Clone) -> None:
    """Have `train` take many seconds, if nobody ends it."""
    clone.change(train=SMALL["train"] | {"epochs": 4000})


def _begin(clone: Clone, *command: str) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """Start DVC, and wait until the process of its stage `train` holds the stage's lock: it has read its inputs."""
    holder = clone.folder / ".lottery/locks/train.pid"
    holder.unlink(missing_ok=True)
    process = subprocess.Popen(
        command, cwd=clone.folder, env=clone.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not (holder.exists() and holder.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, psutil.Process(int(holder.read_text()))


@contextmanager
def _paused(process: psutil.Process) -> Iterator[None]:
    """Have a process stand still, so that it is not over, however fast the machine is."""
    process.suspend()
    yield
    process.resume()


def _workers(stage: psutil.Process) -> list[psutil.Process]:
    """The processes that train, once a stage has forked them."""
    deadline = time.monotonic() + PATIENCE
    while not (found := [each for each in stage.children() if "lottery.stages.train" in _line(each)]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize(
    ("what", "told"),
    [
        pytest.param("params.yaml", "params.yaml: train", marks=pytest.mark.slow),
        pytest.param("src/lottery/plan.py", "src/lottery/plan.py", marks=pytest.mark.slow),
        ("src/lottery/core/networks/perceptron.py", "src/lottery/core"),
    ],
    ids=["a parameter", "a file", "a file in a folder"],
)
def test_what_changes_while_a_stage_runs_is_not_recorded_for_it(clone: Clone, what: str, told: str) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 40})
    lock = (clone.folder / "dvc.lock").read_bytes()
    process, train = _begin(clone, "dvc", "repro", "train")
    with _paused(train):
        if what == "params.yaml":
            clone.change(train=SMALL["train"] | {"epochs": 40, "learning_rate": 0.03})
        else:
            with (clone.folder / what).open("a") as source:
                source.write("\n# changed\n")
    output = "".join(process.communicate(timeout=PATIENCE))
    assert process.returncode != 0
    assert f"{told}: changed while train ran" in output
    assert "Traceback" not in output
    assert (clone.folder / "dvc.lock").read_bytes() == lock
    assert "train" in clone.repro("train")


def test_what_a_stage_does_not_depend_on_may_change_while_it_runs(clone: Clone) -> None:
    clone.change(train=SMALL["train"] | {"epochs": 40})
    process, train = _begin(clone, "dvc", "repro", "train")
    with _paused(train):
        clone.change(run={"threads": 1}, verdict={"margin": 0.3, "speed_margin": 1.25})
        with (clone.folder / "src/lottery/report/figures.py").open("a") as source:
            source.write("\n# changed\n")
    output = "".join(process.communicate(timeout=PATIENCE))
    assert process.returncode == 0, output


@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL], ids=["TERM", "KILL"]
)
def test_a_stage_and_its_workers_end_when_dvc_is_killed_and_the_next_one_is_alone(
    clone: Clone, how: signal.Signals
) -> None:
    _long(clone)
    process, train = _begin(clone, "dvc", "repro", "train")
    orphans = [train, *_workers(train)]
    process.send_signal(how)
    process.wait(PATIENCE)
    clone.change(train=SMALL["train"] | {"epochs": 5})
    assert clone.repro("train") == ["train"]
    assert [each for each in orphans if _line(each)] == []  # one that has ended and is not waited for has none
    assert load_history(clone.folder / "models/dense")["iteration"].max() == 5 * (1295 // 60)


@pytest.mark.slow
def test_dvc_and_its_stage_end_when_lottery_repro_is_terminated(clone: Clone) -> None:
    _long(clone)
    process, train = _begin(clone, "lottery", "repro")
    process.terminate()
    process.wait(PATIENCE)
    _, left = psutil.wait_procs([train], timeout=PATIENCE)
    for each in left:
        each.kill()
    assert not left
    assert process.returncode == 128 + signal.SIGTERM


def test_a_stage_whose_dvc_ended_before_it_began_ends_at_once(clone: Clone, tmp_path: Path) -> None:
    _long(clone)
    before = clone.files("models")
    command = f"(sleep 0.5; exec python -m lottery.stages.train) 2>{tmp_path}/err & echo $!"
    environment = clone.environment | {"DVC_STAGE": "train", "PYTHONPATH": "src"}
    shell = ["sh", "-c", command]
    # a session of its own, which its first process leaves before the stage begins
    done = subprocess.run(
        shell, cwd=clone.folder, env=environment, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True
    )
    stage = psutil.Process(int(done.stdout))
    psutil.wait_procs([stage], timeout=PATIENCE)
    assert not _line(stage)
    assert "interrupted" in (tmp_path / "err").read_text()
    assert clone.files("models") == before


def test_a_value_that_no_schema_takes_is_an_input_too(workspace: Path) -> None:
    (workspace / "dvc.yaml").write_text("stages: {train: {params: [train, data.name], deps: [src/none.py]}}")
    (workspace / "params.yaml").write_text("train: {1: 2, a: 2020-01-01, c: {}}\ndata: []\n")
    before = inputs("../dvc.yaml:train")
    assert before.keys() == {"params.yaml: train", "params.yaml: data.name", "src/none.py"}
    check_unchanged("train", before)
    (workspace / "params.yaml").write_text("train: &z [*z\n")
    with pytest.raises(LotteryError, match=r"^params\.yaml: train: changed while train ran"):
        check_unchanged("../dvc.yaml:train", before)


@pytest.mark.parametrize(
    "change",
    [
        lambda core: (core / "networks/perceptron.py").write_text("one = 2\n"),
        lambda core: (core / "networks/page.html.j2").write_text("<p>\n"),
        lambda core: (core / "later.py").write_text(""),
        lambda core: (core / "arms.py").unlink(),
        lambda core: (core / "arms.py").rename(core / "networks/arms.py"),
        lambda core: shutil.rmtree(core),
    ],
    ids=["changed", "changed, no Python", "new", "removed", "moved", "all removed"],
)
def test_a_folder_of_sources_is_an_input_with_all_files_in_it(
    workspace: Path, change: Callable[[Path], object]
) -> None:
    (workspace / "dvc.yaml").write_text("stages: {train: {deps: [data/digits.safetensors, src/core]}}")
    core = workspace / "src/core"
    (core / "networks").mkdir(parents=True)
    (core / "arms.py").write_text("")
    (core / "networks/perceptron.py").write_text("one = 1\n")
    (core / "networks/page.html.j2").write_text("")
    before = inputs("train")
    assert before.keys() == {"src/core"}
    check_unchanged("train", before)
    change(core)
    with pytest.raises(LotteryError, match=r"^src/core: changed while train ran"):
        check_unchanged("train", before)


def test_what_python_compiles_in_a_folder_of_sources_while_a_stage_runs_is_no_change(workspace: Path) -> None:
    (workspace / "dvc.yaml").write_text("stages: {train: {deps: [src/core]}}")
    cache = workspace / "src/core/networks/__pycache__"
    cache.mkdir(parents=True)
    (workspace / "src/core/arms.py").write_text("")
    before = inputs("train")
    (cache / "perceptron.cpython-311.pyc").write_bytes(b"1")
    check_unchanged("train", before)


@pytest.mark.slow
def test_a_stage_that_runs_already_in_this_folder_is_not_started_again(clone: Clone) -> None:
    _long(clone)
    process, train = _begin(clone, "dvc", "repro", "train")
    second = stage(clone, "train", "train")
    output = "".join(second.communicate(timeout=PATIENCE))
    assert second.returncode == 2
    assert f"process {train.pid} runs it in this folder already" in output
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("section", "change", "fact"),
    [
        ("train", {"seeds": [0, 1, 2]}, "seeds 0, 1, but params.yaml asks for 0, 1, 2"),
        ("train", {"epochs": 5}, "last iteration 84, but params.yaml asks for 105"),
        ("network", {"hidden": [32, 15]}, "network 64-32-16-10, but params.yaml asks for 64-32-15-10"),
        ("prune", {"arms": ["ticket"]}, "arms ticket, reinit, random, but params.yaml asks for ticket"),
        ("levels", {"p50": {"sparsity": 0.4, "parent": "dense"}}, "path 0.5, but params.yaml asks for 0.4"),
    ],
)
def test_a_level_of_other_parameters_is_refused(
    finished: Clone, monkeypatch: pytest.MonkeyPatch, section: str, change: dict[str, object], fact: str
) -> None:
    monkeypatch.chdir(finished.folder)
    check_level(Params.model_validate(SMALL), "p50")
    other = Params.model_validate(SMALL | {section: SMALL[section] | change})
    with pytest.raises(LotteryError, match=f"^models/p50: has {fact}; `dvc repro` makes it anew$"):
        check_level(other, "p50")


@pytest.mark.parametrize(("name", "level"), [("evaluate", "dense"), ("prune@p75", "p50")])
def test_a_stage_refuses_to_read_a_level_of_other_parameters(clone: Clone, name: str, level: str) -> None:
    before = clone.files("reports") | clone.files("models")
    clone.change(train=SMALL["train"] | {"seeds": [0, 1, 2]})
    process = stage(clone, name.partition("@")[0], name)
    output = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2
    assert said(output)[0].startswith(f"models/{level}: has seeds 0, 1, but params.yaml asks for 0, 1, 2;")
    assert clone.files("reports") | clone.files("models") == before
