"""Download the data set and keep it as one file of tensors."""

from pathlib import Path

from lottery import params, tracking
from lottery.files.data import fetch
from lottery.stages import run


def main() -> None:
    """Leave data/<name>.safetensors."""
    p = params.load()
    with tracking.stage(p, "download") as tracked:
        tracked.connect()
        fetch(p.data.name, p.data_file, Path(p.data.file))
        tracked.log_data()


if __name__ == "__main__":
    run(main)
