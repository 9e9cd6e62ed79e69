"""Export one network as files that other programs read: the winning ticket, unless params.yaml says otherwise."""

from pathlib import Path

from lottery import params, tracking
from lottery.evaluation.tables import load_table
from lottery.files.sealed import verify_folder
from lottery.files.workplace import replacing
from lottery.stages import run
from lottery.stages.levels import check_level, check_origin
from lottery.ticket.export import export
from lottery.ticket.workspace import ARM, best_seed, chosen_level

MODELS, TABLES, TICKETS = Path("models"), Path("reports/tables"), Path("tickets")


def main() -> None:
    """Leave tickets/."""
    p = params.load()
    with tracking.stage(p, "export") as tracked:
        tracked.connect()
        verify_folder(TABLES)
        verdicts, levels = (load_table(TABLES / f"{name}.csv") for name in ("verdicts", "levels"))
        level = chosen_level(p.export.level, MODELS, verdicts, levels)
        check_level(p, level)
        check_origin(p, level)
        arm = "dense" if level == "dense" else ARM
        seed = best_seed(MODELS / level, arm) if p.export.seed == "best" else p.export.seed
        with replacing(TICKETS) as folder:
            folder.mkdir()
            print(export(folder, p, Path(), level, (arm, seed), p.export.values))
        tracked.log_ticket(TICKETS)


if __name__ == "__main__":
    run(main)
