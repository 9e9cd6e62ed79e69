"""What git says of the workspace."""

import subprocess


def git(*arguments: str) -> str:
    """What git prints; nothing where it fails."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
