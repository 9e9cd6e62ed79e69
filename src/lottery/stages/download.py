"""Download the data set and keep it as one file of tensors."""

from pathlib import Path

from lottery import params
from lottery.data import fetch
from lottery.stages import run


def main() -> None:
    """Leave data/<name>.safetensors."""
    name = params.load().data.name
    fetch(name, Path("data") / f"{name}.safetensors")


if __name__ == "__main__":
    run(main)
