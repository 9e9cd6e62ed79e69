"""MLflow: a picture of DVC's outputs that can be lost, moved and redrawn. Nothing outside this package imports mlflow.

A run per stage execution, its networks as children. What a run shows, circumstances such as times and commits apart,
is read from the outputs, and its tag `lottery.key` holds their DVC hash: the same on every machine. A stage opens
*attempt* runs, which get their keys last, when its outputs are whole and all is logged. `lottery sync` makes what is
missing, and ends and replaces what dead processes left.

- `address`: where the store is
- `outputs`: what dvc.lock records, and the keys that follow from it
- `store`: the MLflow store, its lock, and runs found and completed by key
- `runs`: what runs say
- `live`: the runs of a stage while it works, from a thread of their own
- `sync`: runs for outputs that exist
- `serve`: the UI
"""

from lottery.tracking.live import StageRun, stage

__all__ = ["StageRun", "stage"]
