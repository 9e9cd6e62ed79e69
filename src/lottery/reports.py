"""What the reports say, from the table of networks and the table of levels."""

from typing import Any

import pandas as pd


def compared(levels: pd.DataFrame) -> dict[str, Any]:
    """What people compare between pipelines, in percent: the numbers of reports/metrics.json.

    Mean test accuracy at the early-stopping iteration for each level and arm, and its difference from dense in
    percentage points; for each level its density.
    """
    baseline = _dense(levels)
    result: dict[str, Any] = {"dense": round(100 * baseline, 4)}
    for level, rows in levels[levels["level"] != "dense"].groupby("level", sort=False):
        result[str(level)] = {"density": round(100 * rows["density"].iloc[0], 4)} | {
            str(row["arm"]): {
                "accuracy": round(100 * row["test_accuracy_mean"], 4),
                "difference": round(100 * (row["test_accuracy_mean"] - baseline), 4),
            }
            for _, row in rows.iterrows()
        }
    return result


def experiment_results(levels: pd.DataFrame) -> dict[str, Any]:
    """The ticket arm's means in the format of an earlier public implementation, by rising sparsity.

    Percentages and counts of weights; biases, which are never pruned, are not counted.
    """
    baseline = _dense(levels)
    total = int(levels.loc[levels["level"] == "dense", "weights_kept"].iloc[0])
    rows = levels[levels["arm"].isin(["dense", "ticket"])].sort_values("sparsity", kind="stable")
    return {
        "baseline_accuracy": 100 * baseline,
        "pruning_results": [
            {
                "pruning_percentage": round(100 * row["sparsity"], 6),
                "actual_pruning_percentage": 100 * (1 - row["density"]),
                "accuracy": 100 * row["test_accuracy_mean"],
                "accuracy_difference": 100 * (row["test_accuracy_mean"] - baseline),
                "remaining_parameters": round(row["weights_kept"]),
                "total_parameters": total,
            }
            for _, row in rows.iterrows()
        ],
    }


def _dense(levels: pd.DataFrame) -> float:
    """The dense networks' mean test accuracy at the early-stopping iteration, a fraction."""
    return float(levels.loc[levels["level"] == "dense", "test_accuracy_mean"].iloc[0])
