"""What decided a result beside its parameters: the commit, and the versions it ran with."""

import platform
import subprocess
from importlib.metadata import version

SOURCES = ("src", "dvc.yaml", "params.yaml", "constraints.txt")  # what decides the results
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "dvc", "mlflow", "matplotlib")


def git(*arguments: str) -> str:
    """What git prints; nothing where it fails."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


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
