"""MLflow: a picture of DVC's outputs that can be lost, moved and redrawn. Nothing outside this package imports mlflow.

A run per stage execution, its networks as children. What a run shows, circumstances such as times and commits apart,
is read from the outputs, and its tag `lottery.key` holds their DVC hash: the same on every machine. A stage opens
*attempt* runs, which get their keys when its outputs are whole and `lottery.complete` last; `lottery sync` completes
and makes what is missing.

- `address`: where the store is
- `outputs`: what dvc.lock records, and the keys that follow from it
- `store`: the MLflow store, its locks, and runs found, claimed and completed by key
- `runs`: what runs say
- `attempts`: the marks of stages at work
- `live`: the runs of a stage while it works, from a thread of their own
- `sync`: runs for outputs that exist
- `serve`: the UI
"""

from lottery.tracking.live import StageRun, stage

__all__ = ["StageRun", "stage"]
