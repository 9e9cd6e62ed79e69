"""What git says of the workspace."""

import subprocess


def git(*arguments: str) -> str:
    """What git prints; nothing where it fails."""
    done = _git(*arguments)
    return done.stdout.strip() if done and done.returncode == 0 else ""


def refusal() -> str:
    """Why git says nothing, and the remedy: it is missing, or refuses another user's repository; else empty."""
    done = _git("rev-parse")
    if done is None:
        return "git: no such program; install it"
    if "safe.directory" not in done.stderr:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    remedy = next(line for line in lines if "safe.directory" in line)
    return f"git: {lines[0].removeprefix('fatal: ')}; `{remedy}` allows it"


def _git(*arguments: str) -> "subprocess.CompletedProcess[str] | None":
    try:  # its encoding, and not that of the locale
        return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return None
