"""Whether two runs of a pipeline left the same bytes: `python -m benchmarks.same MODELS OTHER_MODELS`.

It compares every tensor and every other file of two folders `models/`, says what differs, and ends with 1 if anything
does.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def differences(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many tensors were compared, and the names of tensors and files that differ or that one side lacks."""
    compared, different = 0, []
    names = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        files = [root / name for root in (one, other)]
        if not all(file.exists() for file in files):
            different.append(str(name))
        elif name.suffix == ".safetensors":
            mine, theirs = map(load_file, files)
            compared += len(mine)
            for tensor in sorted(mine.keys() | theirs.keys()):
                pair = [tensors.get(tensor) for tensors in (mine, theirs)]
                if any(each is None for each in pair) or not _same(*pair):
                    different.append(f"{name}: {tensor}")
        if all(file.exists() for file in files) and files[0].read_bytes() != files[1].read_bytes():
            different.append(str(name))
    return compared, different


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes: a NaN equals itself, and 0.0 is not -0.0."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def main() -> int:
    """Compare the two folders named on the command line."""
    compared, different = differences(*map(Path, sys.argv[1:3]))
    print(f"{compared} tensors compared", *(f"differs: {name}" for name in different), sep="\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
