"""The page of a measurement: one self-contained HTML file in the report's style that begins with the answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lottery.params import Params
from lottery.report import page as report
from lottery.report.drawing import as_percent
from lottery.templates import environment

GAIN = 1.1  # a form is faster where it is this many times as fast as dense in three of four rounds, and slower likewise
FORMS = {
    "dense": "PyTorch, the dense network: what all others are compared with.",
    "masked": "PyTorch, the ticket in the dense network’s shape, with zeros in the place of pruned weights.",
    "csr": "PyTorch, the ticket’s layers in compressed sparse rows, which keep and multiply the kept weights alone.",
    "compact": "PyTorch, dense products of the ticket without the units, and pixels, that no output depends on.",
    "onnx": "ONNX Runtime, the graph of ticket.onnx: the compact form’s dense products, or the dense network’s.",
}
SPARSE = ("masked", "csr", "compact")  # those that differ from dense by sparsity alone, and not by the runtime too


def answer(table: pd.DataFrame) -> list[str]:
    """Where sparsity pays and where it does not, in a few sentences, the first of which is the answer."""
    tickets = table[(table["level"] != "dense") & table["form"].isin(SPARSE)]
    if tickets.empty:
        return ["Only the dense network was measured, which says nothing of sparsity."]
    paying = tickets[tickets["ratio_low"] > GAIN].sort_values("ratio", ascending=False)
    paying = paying.drop_duplicates(["level", "batch"]).sort_values("density", ascending=False)
    parts, never, unit = [], [], " times as fast as dense"
    for batch in sorted(table["batch"].unique().tolist(), reverse=True):
        levels = []
        for row in paying[paying["batch"] == batch].to_dict("records"):
            levels.append(f"{row['level']} ({row['ratio']:.2f}{unit})")
            unit = ""  # said once
        if levels:
            parts.append(f"with {_images(batch)} at once at {_listed(levels)}")
        else:
            never.append(str(batch))
    if parts:
        nowhere = f"; with {_listed(never)} at no level" if never else ""
        said = [f"Sparsity pays, as {_listed(list(paying['form'].unique()))}, {'; '.join(parts)}{nowhere}."]
    else:
        said = [f"Sparsity pays at none of these levels, with {_listed(never)} images at once."]
    worst = tickets.loc[tickets["ratio"].idxmin()]
    if worst["ratio_high"] < 1 / GAIN:
        said.append(
            f"At worst it costs time: with {_images(worst['batch'])} at once, {worst['form']} at "
            f"{worst['level']}, which keeps {as_percent(100 * worst['density'])}, takes {1 / worst['ratio']:.1f} times "
            f"as long as dense."
        )
    if "csr" not in set(tickets["form"]):
        said.append("Only perceptrons have the forms csr and compact: of this network zeros in dense products are all.")
    runtime = table[table["form"] == "onnx"].groupby(["batch", table["level"] == "dense"])["ratio"].median().unstack()
    on_dense, on_tickets = (_listed([f"{ratio:.2f}" for ratio in runtime[of]]) for of in (True, False))
    said.append(
        f"ONNX Runtime makes dense products: with {_listed(list(map(str, runtime.index)))} images at once it is "
        f"{on_dense} times as fast as PyTorch on the dense network, and {on_tickets} times on tickets (median)."
    )
    return said


def render(table: pd.DataFrame, machine: Mapping[str, str], p: Params) -> str:
    """The page of a table, in the style of the report."""
    template = Path(report.__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    forms = [form for form in FORMS if form in set(table["form"])]
    cells = {(row["level"], row["form"], row["batch"]): row for row in table.to_dict("records")}
    return (
        environment(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            style=template.partition("<style>")[2].partition("</style>")[0],
            answer=answer(table),
            forms={form: FORMS[form] for form in forms},
            cells=cells,
            levels=table.drop_duplicates("level").to_dict("records"),
            batches=sorted(table["batch"].unique().tolist()),
            rounds=int(table["rounds"].max()),
            machine=machine,
            p=p,
            gain=GAIN,
        )
    )


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
