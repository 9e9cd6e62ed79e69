"""Draw the figures, and write the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lottery import LotteryError, params, tracking
from lottery.core.arms import ARMS
from lottery.core.families import family
from lottery.evaluation import tables as reports
from lottery.evaluation.tables import load_table, measured_on
from lottery.files.artifacts import load_contents, load_history, load_masks
from lottery.files.digests import digest
from lottery.files.sealed import REMAKE, DamagedError, verify_folder
from lottery.files.workplace import replacing
from lottery.params import Params
from lottery.report import figures
from lottery.report import page as report
from lottery.report.drawing import Results
from lottery.report.page import Findings
from lottery.stages import run, threads

MODELS, TABLES, COMPRESSION = Path("models"), Path("reports/tables"), Path("reports/compression.json")
FIGURES, PAGE = Path("reports/figures"), Path("reports/report.html")


def main() -> None:
    """Leave reports/figures/ and reports/report.html."""
    p = params.load()
    with tracking.stage(p, "plot") as tracked:
        verify_folder(TABLES)
        results = load_results(p)
        with replacing(FIGURES) as folder:
            folder.mkdir()
            figures.save_figures(results, folder, threads(p), tracked.connect)
        with replacing(PAGE) as page:
            page.write_text(report.render(load_findings(p), FIGURES, threads(p)), encoding="utf-8")
        tracked.log_plots([FIGURES, PAGE])


def load_results(p: Params) -> Results:
    """Load the reports, and of the levels that these name the histories and the tickets' masks."""
    levels = load_table(TABLES / "levels.csv")
    names = levels["level"].unique()
    history = pd.concat([load_history(MODELS / name).assign(level=name) for name in names], ignore_index=True)
    pictures = {name: load_picture(MODELS / name) for name in names if name != "dense"}
    others = ("networks", "structure", "kept_weights", "connectivity")
    tables = {name: load_table(TABLES / f"{name}.csv") for name in others}
    sizes = pd.DataFrame(load_sizes())
    return Results(levels=levels, history=history, pictures=pictures, layout=p.layout, compression=sizes, **tables)


def load_sizes() -> list[dict[str, Any]]:
    """Load reports/compression.json."""
    try:
        entries: list[dict[str, Any]] = json.loads(COMPRESSION.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError("missing or altered", REMAKE).of(COMPRESSION) from error
    return entries


def load_findings(p: Params) -> Findings:
    """Load the reports, and what they come from."""
    tables = {name: load_table(TABLES / f"{name}.csv") for name in report.TABLES}
    contents = {name: load_contents(MODELS / name) for name in ("dense", *p.order)}
    return Findings(
        **tables,
        compression=load_sizes(),
        claims=json.loads((TABLES / "claims.json").read_text(encoding="utf-8")),
        warning=reports.warning(tables["levels"], p.iterations, p.train.evaluate_every),
        settings=p.model_dump(
            mode="json", exclude_none=True, exclude={"export": True, "tracking": True, "run": True, **p.unread}
        ),
        mixed=[name for name, level in contents.items() if level.mixed],
        devices={name: level.device for name, level in contents.items() if level.device},
        measured_on=measured_on(TABLES),
        iterations=p.iterations,
        layout=p.layout,
        data=digest_of_data(p.data_file),
        tables=f"{digest(TABLES)}.dir",
    )


def digest_of_data(file: Path) -> str:
    """The MD5 sum of the data set that the networks were trained on."""
    try:
        return digest(file)
    except OSError as error:
        raise LotteryError(f"{file}: missing; `dvc repro download` makes it, and `dvc checkout` restores it") from error


def load_picture(folder: Path) -> NDArray[np.float64]:
    """The picture of the first layer of a level's tickets; see `families.Family.picture`."""
    rows = load_contents(folder).rows
    ticket = min(rows.arms, key=lambda arm: (arm != "ticket", ARMS[arm].own_mask))
    masks = load_masks(folder).rows(rows.of(ticket))
    picture: NDArray[np.float64] = family(masks.layout).picture(masks).double().numpy()
    return picture


if __name__ == "__main__":
    run(main)
