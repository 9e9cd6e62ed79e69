"""The commands beside `dvc`: ``lottery check``, ``preset``, ``levels``, ``sync``, ``ui`` and others.

Each command imports what it needs when it runs: ``lottery check`` answers before torch could even be imported.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lottery import LotteryError, __version__, params

if TYPE_CHECKING:
    from lottery.outlook import Outlook


def check(arguments: argparse.Namespace) -> int:
    """Validate params.yaml and say how much it asks for. Raises LotteryError where it holds mistakes."""
    settings = params.load()
    _check_machine(settings)
    if settings.network.name == "own" and arguments.run is check:  # `lottery repro` leaves it to DVC's stage
        from lottery.ticket.graph import try_graph  # takes seconds

        try_graph(settings.layout)
    levels, seeds = len(settings.levels), len(settings.train.seeds)
    arms = sum(len(settings.arms(level)) for level in settings.levels)
    print(
        f"params.yaml: {_count(levels, 'level')}, {_count(arms, 'arm')} in all, {_count(seeds, 'seed')}: "
        f"{(arms + 1) * seeds} networks of {settings.layout.shown}, {_count(settings.iterations, 'iteration')} each"
    )
    if (every := settings.train.evaluate_every) >= settings.iterations:
        print(
            f"params.yaml: train.evaluate_every: {every} is not below the {settings.iterations} iterations, so early "
            "stopping has one evaluation to choose from, and every network counts as censored; give less",
            file=sys.stderr,
        )
    return 0


def _check_machine(settings: params.Params) -> None:
    """Raise LotteryError where a file or a GPU is not here that params.yaml names."""
    from lottery.plan import DATA_FILE, NETWORK_FILE

    for key, file, instead in (
        ("data.file", settings.data.file, DATA_FILE),
        ("network.file", settings.network.file, NETWORK_FILE),
    ):
        if Path("dvc.yaml").exists() and not Path(file).is_file():  # which DVC asks for, used or not
            raise LotteryError(f"params.yaml: {key}: {file}: no such file; write it, or name {instead}")
    if settings.run.device == "cuda":
        from lottery.stages import device  # which needs torch

        device(settings)


def plan(arguments: argparse.Namespace) -> int:
    """Say what `dvc repro` would do with each stage, and what that takes. Raises LotteryError as `check` does."""
    print(_expected(arguments.calibrate).table())
    return 0


def repro(arguments: argparse.Namespace) -> int:
    """Run the pipeline from params.yaml to the answer. Raises LotteryError where params.yaml holds mistakes."""
    from lottery.outlook import FILE
    from lottery.stages import warm
    from lottery.tracking.sync import sync

    check(arguments)
    expected = _expected()
    expected.save()
    print(expected, flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # where stages find `python`
    with warm.kept() as found:
        environment = os.environ | {"PATH": path, "LOTTERY_OUTLOOK": str(FILE.resolve())} | found
        dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], env=environment)
        signal.signal(signal.SIGTERM, lambda *_: dvc.terminate())  # a stage ends with its DVC
        while True:
            with suppress(KeyboardInterrupt):  # DVC and its stage get it too, and end by themselves
                code = dvc.wait()
                break
    if code:
        return code if code > 0 else 128 - code  # as a shell says that a signal ended it
    try:
        lines = sync(params.load())
    except LotteryError as error:  # tracking never costs a result
        lines = [str(error)]
    print("MLflow: " + "; ".join(lines))
    print()
    return answer(arguments)


def answer(arguments: argparse.Namespace) -> int:
    """Say what the pipeline found. Raises LotteryError where it has not run."""
    from lottery.answer import told

    print(told(params.load()))
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write the files of one network. Raises LotteryError where that cannot be."""
    from lottery.trained import export

    print(
        export(arguments.level, arguments.arm, arguments.seed, arguments.to, arguments.half, arguments.initialization)
    )
    return 0


def promote(arguments: argparse.Namespace) -> int:
    """Make a version of the registered ticket the champion. Raises LotteryError where that cannot be."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from lottery.tracking.registry import promote
    from lottery.tracking.serve import connect

    print(promote(connect(params.load().tracking.mlflow_experiment), arguments.version))
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Measure how fast the tickets are on this machine. Raises LotteryError where an output is missing."""
    from lottery.speed.measure import measure

    for line in measure(params.load(), arguments.level, arguments.seconds):
        print(line, flush=True)
    return 0


def preset(arguments: argparse.Namespace) -> int:
    """Write a preset to params.yaml, or list them. Raises LotteryError where that cannot be."""
    from lottery import presets

    if arguments.name is None:
        lines = presets.listed()
        width = max(map(len, lines))
        for name, line in lines.items():
            print(f"{name:{width}}  {line}")
        return 0
    presets.write(arguments.name, arguments.force)
    return check(arguments)


def levels(arguments: argparse.Namespace) -> int:
    """Write params.yaml's levels block. Raises LotteryError where that cannot be."""
    from lottery import presets

    presets.write_levels(arguments.rate, arguments.rounds, arguments.one_shot, arguments.force)
    return check(arguments)


def ui(arguments: argparse.Namespace) -> int:
    """Serve the MLflow UI until it is stopped. Raises LotteryError where that cannot be."""
    from lottery.tracking.serve import serve_ui

    serve_ui(arguments.port)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Serve a page to draw on until it is stopped. Raises LotteryError where that cannot be."""
    from lottery.demo.serve import serve_demo

    serve_demo(arguments.port)
    return 0


def sync(arguments: argparse.Namespace) -> int:
    """Complete and make MLflow runs from DVC's outputs. Raises LotteryError where that cannot be."""
    # a person waits here, and no training does: not the 2 s of a stage
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from lottery.tracking.sync import sync

    for line in sync(params.load(), arguments.rev, arguments.all_commits, arguments.restore):
        print(line)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Say whether this machine and this repository can run the pipeline; 0 only if they can."""
    from lottery.doctor import mend, report

    if arguments.mend:
        for line in mend():
            print(line)
    return 0 if report(arguments.deep or arguments.mend) else 1


def tidy(arguments: argparse.Namespace) -> int:
    """Remove what killed and finished runs left behind."""
    from lottery.tidy import tidy

    for line in tidy():
        print(line)
    return 0


def server(arguments: argparse.Namespace) -> int:
    """Become the team's MLflow server. Raises LotteryError where that cannot be."""
    from lottery.server import Server, serve

    serve(
        Server(
            host=arguments.host,
            port=arguments.port,
            names=tuple(name.strip() for name in arguments.allowed_hosts.split(",")) if arguments.allowed_hosts else (),
            accounts=arguments.auth,
            default_permission=arguments.default_permission,
            artifacts=arguments.artifacts,
            workers=arguments.workers,
        )
    )
    return 0


def completion(arguments: argparse.Namespace) -> int:
    """Print the script by which a shell completes this command."""
    import shtab

    print(shtab.complete(arguments.parser, arguments.shell))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for a person's mistake, which is printed without a traceback."""
    parser = argparse.ArgumentParser(prog="lottery", description="The lottery ticket experiment, beside `dvc repro`.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(run: Callable[[argparse.Namespace], int], what: str, about: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(run.__name__, help=what, description=about)
        command.set_defaults(run=run)
        return command

    add(check, "validate params.yaml")
    command = add(plan, "say what `dvc repro` would do with each stage, and the time, memory and disk that it takes")
    command.add_argument("--calibrate", action="store_true", help="measure this machine again")
    add(repro, "`dvc repro` from the check of params.yaml to the answer")
    add(answer, "say what the pipeline found: a verdict per level")
    command = add(export, "write a network as files that other programs read: safetensors, ONNX, a card")
    command.add_argument("level", metavar="LEVEL")
    command.add_argument("--arm", help="default: ticket, of dense the dense networks")
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument("--seed", type=int)
    chosen.add_argument("--best", action="store_true", help="the seed with the lowest validation loss: the default")
    command.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--half", action="store_true", help="weights of 16 bits")
    command.add_argument("--with-initialization", action="store_true", dest="initialization")

    command = add(promote, "make a version of the registered ticket the champion, once its accuracy is checked")
    command.add_argument("version", metavar="VERSION", help="its number, or its alias: candidate")

    command = add(measure, "time the tickets on this machine, in several forms: .lottery/speed.html")
    command.add_argument("--level", action="append", default=[], help="of the levels, this one; may be repeated")
    command.add_argument("--seconds", type=float, default=40, help="of the measurement: default: %(default)s")
    command = add(preset, "write params.yaml for a published experiment; alone: list them")
    command.add_argument("name", nargs="?", metavar="NAME")
    command.add_argument("--force", action="store_true", help="overwrite changes that are not committed")

    command = add(levels, "write the levels of iterative or one-shot pruning to params.yaml")
    command.add_argument("--rate", type=float, required=True, help="fraction of the weights that a round prunes")
    command.add_argument("--rounds", type=int, required=True)
    command.add_argument("--one-shot", action="store_true", help="prune every level from dense at once")
    command.add_argument("--force", action="store_true", help="overwrite changes that are not committed")

    command = add(ui, "serve the MLflow UI on 127.0.0.1")
    command.add_argument("--port", type=int, default=5000, help="default: %(default)s")

    command = add(demo, "serve a page on 127.0.0.1 where one draws, and dense and the tickets answer")
    command.add_argument("--port", type=int, default=7860, help="default: %(default)s")

    command = add(sync, "complete and make the MLflow runs of DVC's outputs")
    command.add_argument(
        "--rev", action="append", default=[], help="of a commit or a DVC experiment, not the workspace"
    )
    command.add_argument("--all-commits", action="store_true", help="of all commits")
    command.add_argument("--restore", action="store_true", help="bring runs back that were deleted in MLflow")

    command = add(doctor, "check the machine and the repository, a line per check")
    command.add_argument("--deep", action="store_true", help="verify every output and DVC's cache against their sums")
    command.add_argument("--mend", action="store_true", help="remove what is damaged: `dvc repro` makes it anew")
    add(tidy, "remove stale checkpoints, and what killed runs left behind")

    command = add(
        server,
        "serve MLflow to a team, on PostgreSQL",
        "MLflow for a team: docs/team.md. The database is MLFLOW_BACKEND_STORE_URI's; accounts need "
        "MLFLOW_AUTH_ADMIN_PASSWORD and MLFLOW_FLASK_SERVER_SECRET_KEY.",
    )
    command.add_argument("--host", default="127.0.0.1", help="with any but this machine's own: accounts alone")
    command.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    command.add_argument(
        "--allowed-hosts",
        metavar="NAMES",
        default=os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS", ""),
        help="the names that clients use, separated by commas; with any: accounts alone",
    )
    command.add_argument("--auth", action="store_true", help="accounts alone on this machine too")
    command.add_argument(
        "--default-permission",
        choices=["NO_PERMISSIONS", "READ", "EDIT", "MANAGE"],
        default="EDIT",
        help="of every account, on what others made: default: %(default)s",
    )
    command.add_argument(
        "--artifacts",
        metavar="PLACE",
        default=os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", ""),
        help="a folder or an object store's URI; default: mlartifacts",
    )
    command.add_argument("--workers", type=int, default=2, help="processes; default: %(default)s")

    command = add(
        completion,
        "print a script that completes this command in a shell",
        "For bash: lottery completion bash > ~/.local/share/bash-completion/completions/lottery",
    )
    command.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    command.set_defaults(parser=parser)

    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except LotteryError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def _expected(anew: bool = False) -> "Outlook":
    """What `dvc repro` would do here."""
    from lottery.outlook import outlook
    from lottery.stages import device_name, threads

    settings = params.load()
    return outlook(settings, threads(settings), device_name(settings), anew)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


if __name__ == "__main__":
    sys.exit(main())
