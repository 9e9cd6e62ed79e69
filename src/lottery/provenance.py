"""What decided a result beside its parameters: the commit, and the versions it ran with."""

import platform
import subprocess
from importlib.metadata import version

SOURCES = ("src", "dvc.yaml", "params.yaml", "constraints.txt")  # what decides the results
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "dvc", "mlflow", "matplotlib")


def git(*arguments: str) -> str:
    """What git prints; nothing where it fails."""
    done = _git(*arguments)
    return done.stdout.strip() if done and done.returncode == 0 else ""


def refusal() -> str:
    """Why git refuses a repository that belongs to another user, and what allows it; empty where it does not."""
    done = _git("rev-parse")
    if done is None or "safe.directory" not in done.stderr:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    remedy = next(line for line in lines if "safe.directory" in line)
    return f"git: {lines[0].removeprefix('fatal: ')}; `{remedy}` allows it"


def _git(*arguments: str) -> "subprocess.CompletedProcess[str] | None":
    try:  # its encoding, and not that of the locale
        return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return None


def commit() -> str:
    """The first commit with these very sources and parameters; empty where there is none.

    The first, because it stays the same however many commits follow: a result that is made again is made of the same
    bytes.
    """
    if git("ls-files", "--others", "--exclude-standard", "--", *SOURCES):
        return ""
    commits = git("rev-list", "--reverse", "HEAD", "--", *SOURCES).split()
    return next((each for each in commits if _has_these_sources(each)), "")


def _has_these_sources(commit: str) -> bool:
    differs = subprocess.run(["git", "diff", "--quiet", commit, "--", *SOURCES], capture_output=True)
    return differs.returncode == 0


def environment() -> dict[str, str]:
    """What a result's bits may depend on: the processor's kind and instructions, and versions."""
    import torch  # takes 2 s

    processor = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"processor": processor, "Python": platform.python_version()} | {name: version(name) for name in PACKAGES}
