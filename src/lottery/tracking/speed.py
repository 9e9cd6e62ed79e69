"""The run of a measurement: timings cannot be redrawn from outputs, so `lottery sync` leaves it alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lottery import LotteryError
from lottery.files.digests import digest
from lottery.params import Params
from lottery.tracking.address import fault, shown_uri
from lottery.tracking.outputs import PIPELINE, TABLES, pipeline_of
from lottery.tracking.runs import APART, origin_of_workspace, settings
from lottery.tracking.serve import connect

NAME = "speed"


def log(
    p: Params, table: pd.DataFrame, machine: Mapping[str, str], answer: Sequence[str], files: Sequence[Path], began: int
) -> None:
    """Leave a run with a measurement's table, its answer and its files. Raises LotteryError where the store fails."""
    points = [
        (f"{measure}/{row['form']}_{row['batch']}.{row['level']}", row[column], 0)
        for row in table.to_dict("records")
        for measure, column in (("speed", "ratio"), ("images_per_second", "images_per_second"))
    ]
    first, *rest = answer
    note = "\n\n".join([f"**{first}**", *rest, "`speed.html`, here among the artifacts, has all numbers."])
    store = connect(p.tracking.mlflow_experiment)
    try:
        origin, name = origin_of_workspace(os.environ), NAME
        own = origin.tags("lottery measure") | {f"machine.{key}": value for key, value in machine.items()}
        if Path(TABLES).exists():  # then it is among the pipeline's runs in the UI
            pipeline = pipeline_of(digest(Path(TABLES)))
            own[f"{PIPELINE}{pipeline}"], name = "true", f"{NAME}{APART}{pipeline}"
        run = store.create(name, own, began)
        store.log(run, points, settings(p), note)
        for file in files:
            store.call("log_artifact", run, str(file), NAME)
        store.end(run, "FINISHED")
    except Exception as error:
        raise LotteryError(f"MLflow at {shown_uri()} failed: {fault(error)}") from error
