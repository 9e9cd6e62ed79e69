"""What the networks of a pipeline show together: early stopping, means and deviations over seeds."""

import pandas as pd

ACCURACIES = (  # fractions: at the early-stopping iteration, at the last iteration, before training
    "test_accuracy",
    "test_accuracy_last",
    "test_accuracy_start",
    "train_accuracy",
    "train_accuracy_last",
)


def early_stopping(history: pd.DataFrame) -> pd.DataFrame:
    """The early-stopping iteration of each network of a level's history.

    The evaluated iteration with the lowest validation loss, the earliest on a tie; iteration 0 is no candidate.
    ``censored``: it is the last evaluation, so the true minimum may lie beyond. Columns arm, seed,
    early_stopping_iteration, censored; networks in the history's order.
    """
    candidates = history[history["iteration"] > 0]
    lowest = candidates.loc[candidates.groupby(["arm", "seed"], sort=False)["validation_loss"].idxmin()]
    return pd.DataFrame(
        {
            "arm": lowest["arm"],
            "seed": lowest["seed"],
            "early_stopping_iteration": lowest["iteration"],
            "censored": lowest["iteration"] == history["iteration"].max(),
        }
    ).reset_index(drop=True)


def summarize(networks: pd.DataFrame) -> pd.DataFrame:
    """Per level and arm: means and sample standard deviations over n seeds, in the order of appearance.

    ``networks`` has a row a network as reports/networks.csv has. One seed has no deviation: it is left empty.
    """
    groups = networks.groupby(["level", "arm"], sort=False)
    kept = [column for column in networks if str(column).startswith("weights_kept")]
    summary = groups[["parent", "sparsity", "density"]].first()
    summary["n"] = groups.size()
    summary[kept] = groups[kept].mean()
    for measure in (*ACCURACIES, "early_stopping_iteration"):
        summary[f"{measure}_mean"] = groups[measure].mean()
        summary[f"{measure}_std"] = groups[measure].std(ddof=1)
    summary["censored"] = groups["censored"].sum()
    return summary.reset_index()
