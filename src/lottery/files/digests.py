"""The MD5 sums by which DVC knows files and folders."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

_md5 = partial(hashlib.md5, usedforsecurity=False)  # DVC's choice; no file is trusted for its MD5 sum


def digest(path: Path) -> str:
    """The MD5 sum that dvc.lock has for a file or a folder (there with `.dir` at its end). Raises OSError."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return digest_of_files({file.relative_to(path).as_posix(): digest(file) for file in files})
    with path.open("rb") as file:
        return hashlib.file_digest(file, _md5).hexdigest()


def digest_of_files(digests: Mapping[str, str]) -> str:
    """The sum that dvc.lock has for a folder, from those of its files by their paths in it."""
    paths = sorted(digests, key=lambda path: path.split("/"))
    listing = [{"md5": digests[path], "relpath": path} for path in paths]
    return _md5(json.dumps(listing, sort_keys=True).encode()).hexdigest()
