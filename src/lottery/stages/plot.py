"""Draw the figures, and write the report."""

import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lottery import LotteryError, figures, params, report, reports, tracking
from lottery.artifacts import load_contents, load_history, load_masks
from lottery.digests import digest
from lottery.drawing import Results
from lottery.params import Params
from lottery.report import Findings
from lottery.reports import load_table
from lottery.stages import run, threads
from lottery.workplace import replacing

MODELS, TABLES = Path("models"), Path("reports/tables")
FIGURES, PAGE = Path("reports/figures"), Path("reports/report.html")


def main() -> None:
    """Leave reports/figures/ and reports/report.html."""
    p = params.load()
    with tracking.stage(p, "plot") as tracked:
        results = load_results()
        with replacing(FIGURES) as folder:
            folder.mkdir()
            try:
                figures.save_figures(results, folder, threads(p), tracked.connect)
            except BrokenProcessPool as error:
                raise LotteryError(
                    "run.threads: a worker that drew a figure was ended from outside, as happens where memory runs "
                    "out: `dvc repro` starts this stage anew; with fewer run.threads it takes less memory"
                ) from error
        with replacing(PAGE) as page:
            page.write_text(report.render(load_findings(p), FIGURES, threads(p)), encoding="utf-8")
        tracked.log_plots([FIGURES, PAGE])


def load_results() -> Results:
    """What the figures show: the reports, and of the levels that these name, the histories and the tickets' masks."""
    levels = load_report("levels.csv")
    names = levels["level"].unique()
    history = pd.concat([load_history(MODELS / name).assign(level=name) for name in names], ignore_index=True)
    connections = {name: load_connections(MODELS / name) for name in names if name != "dense"}
    tables = (load_report(f"{name}.csv") for name in ("structure", "kept_weights", "connectivity"))
    return Results(levels, load_report("networks.csv"), history, connections, *tables)


def load_findings(p: Params) -> Findings:
    """What the report says: the reports, and what they come from."""
    levels = load_report("levels.csv")
    return Findings(
        levels=levels,
        networks=load_report("networks.csv"),
        verdicts=load_report("verdicts.csv"),
        conditions=load_report("conditions.csv"),
        claims=load_claims(),
        structure=load_report("structure.csv"),
        warning=reports.warning(levels, p.iterations, p.train.evaluate_every),
        settings=p.model_dump(mode="json", exclude_none=True, exclude={"tracking", "run"}),
        iterations=p.iterations,
        sizes=p.sizes,
        data=digest_of_data(p.data_file),
        tables=f"{digest(TABLES)}.dir",
    )


def digest_of_data(file: Path) -> str:
    """The MD5 sum of the data set that the networks were trained on."""
    try:
        return digest(file)
    except OSError as error:
        raise LotteryError(f"{file}: missing; `dvc repro download` makes it, and `dvc checkout` restores it") from error


def load_report(name: str) -> pd.DataFrame:
    """One of `evaluate`'s tables."""
    try:
        return load_table(TABLES / name)
    except (OSError, ValueError) as error:
        raise _damaged(name) from error


def load_claims() -> list[dict[str, Any]]:
    """The paper's claims and what became of them."""
    try:
        claims: list[dict[str, Any]] = json.loads((TABLES / "claims.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged("claims.json") from error
    return claims


def _damaged(name: str) -> LotteryError:
    return LotteryError(f"{TABLES / name}: missing, truncated or altered; `dvc repro evaluate` makes it")


def load_connections(folder: Path) -> NDArray[np.float64]:
    """How many first-layer connections each input keeps in a level's tickets, mean over seeds, [in]."""
    arms = load_contents(folder).arms
    others = ("random", "random-inputs", "small-dense")  # all arms but these have the ticket's mask
    ticket = min(arms, key=lambda arm: (arm != "ticket", arm in others))
    rows = load_contents(folder).rows(ticket)
    connections: NDArray[np.float64] = load_masks(folder)[0][rows].sum(dim=2).double().mean(dim=0).numpy()
    return connections


if __name__ == "__main__":
    run(main)
