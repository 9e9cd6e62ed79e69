"""MLflow: a picture of DVC's outputs that can be lost, moved and redrawn. Nothing outside this package imports mlflow.

A run per stage execution, its networks as children. What a run shows, circumstances such as times and commits apart,
is read from the outputs, and its tag `lottery.key` holds their DVC hash: the same on every machine. A stage opens
*attempt* runs, which get their keys last, when its outputs are whole and all is logged. `lottery sync` makes what is
missing, and ends and replaces what dead processes left.

- `address`: where the store is
- `outputs`: what dvc.lock records, and the keys that follow from it
- `store`: the MLflow store, its lock, and runs found and completed by key
- `runs`: what runs say
- `notes`: their descriptions
- `registry`: the exported ticket in the registry, and `served`, the code that answers for it
- `live`: the runs of a stage while it works, from a thread of their own
- `sync`: runs for outputs that exist
- `serve`: the UI
- `speed`: the run of `lottery measure`
"""

import os

# Here, before any module imports mlflow, which reads the first of them as it is imported: nothing calls home, and a
# server that is down costs seconds, where MLflow's own 7 retries of 120 s cost a quarter of an hour.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("PGCONNECT_TIMEOUT", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# for each run of a server's it would print the address, with the password that it may have
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# isort: split
from lottery.tracking.live import StageRun, stage

__all__ = ["StageRun", "stage"]
