"""How far off `lottery plan` is: `python -m benchmarks.plan [PRESET ...]`.

Each preset runs in a temporary clone of the last commit, after its `download`. What the plan expects of each stage
stands beside what `lottery repro` then takes.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

PRESETS = ("quick", "one-shot", "default")
REPRO = [sys.executable, "-m", "lottery.cli", "repro"]


def taken(folder: Path) -> dict[str, float]:
    """Run the pipeline: the seconds from the beginning of each stage to the next one's."""
    process = subprocess.Popen(REPRO, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    began: list[tuple[str, float]] = []
    assert process.stdout
    for line in process.stdout:
        if found := re.match("Running stage '(.+)':", line) or re.match("(To track) the changes", line):
            began.append((found[1], time.perf_counter()))
    assert process.wait() == 0
    return {stage: after - at for (stage, at), (_, after) in pairwise(began) if stage != "check"}


def main() -> None:
    """Run the presets and print both, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=PRESETS)
    print("| preset | stage | expected s | taken s | off by |\n|---|---|---|---|---|", flush=True)
    for preset in parser.parse_args().presets:
        with TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run(["git", "clone", "-q", ".", folder], check=True)

            def run(*command: str, where: Path = folder) -> None:
                subprocess.run(command, cwd=where, check=True, stdout=subprocess.DEVNULL)

            run("lottery", "preset", preset, "--force")
            run("rm", "-rf", "dvc.lock")
            run("dvc", "repro", "download")
            run("lottery", "plan")
            took = taken(folder)
            expected = json.loads((folder / ".lottery/outlook.json").read_text())
            rows = {stage: (expected[stage], took[stage]) for stage in took}
            rows["in all"] = (sum(expected[stage] for stage in took), sum(took.values()))
            for stage, (before, after) in rows.items():
                print(f"| {preset} | {stage} | {before:.1f} | {after:.1f} | {before / after - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
