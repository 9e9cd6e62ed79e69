"""The notes of runs, in Markdown: MLflow shows them as a run's description."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lottery.core.arms import ARMS
from lottery.report.page import Findings, answer
from lottery.ticket.ticket import Ticket
from lottery.tracking.outputs import Output

REPORT = "reports/report.html"


def of_data(output: Output) -> str:
    """The note of `download`."""
    params = output.params
    return f"The data set `{params.data.name}`, one file for all pipelines that use it: `{params.data_file}`."


def of_level(output: Output, networks: int) -> str:
    """The note of a level's stage, to which each evaluation adds a line."""
    params, name = output.params, output.name
    seeds = f"{len(params.train.seeds)} seed{'s' * (len(params.train.seeds) != 1)}"
    trained = f"{networks} networks of {params.layout.shown}, {params.iterations} iterations each"
    if name == "dense":
        return f"The dense networks, from which levels are pruned: {trained}, {seeds}."
    level, arms = params.levels[name], ", ".join(params.arms(name))
    return f"Level `{name}`: sparsity {level.sparsity}, pruned from `{level.parent}`; {trained}: {arms}; {seeds}."


def of_network(level: str, arm: str, seed: int, kept: int, density: float, stop: Mapping[str, Any], loss: float) -> str:
    """The note of a network; ``stop`` is its row of `statistics.early_stopping`."""
    told = (
        f"Level `{level}`, arm `{arm}`, seed {seed}. It keeps {kept:,} weights ({100 * density:.3g} %) and stops early "
        f"at iteration {stop['early_stopping_iteration']}, with a validation loss of {loss:.4f}."
    )
    if stop["censored"]:
        told += " It is censored: this is its last evaluation, and it may have improved further."
    what = (ARMS[arm].start.__doc__ or "").partition("\n")[0] if arm in ARMS else ""
    return f"{told}\n\n{what}".strip()


def of_evaluation(findings: Findings) -> str:
    """The note of `evaluate`: the answer, a line per level, and where the report is."""
    first, *rest = answer(findings)
    where = f"The report is `{REPORT}`; this pipeline's run `plot` has it as an artifact."
    lines = [f"- `{each['level']}`: {_verdict(each)}" for each in findings.judged]
    return "\n\n".join([f"**{first}**", where, " ".join(rest), "\n".join(lines)]).strip()


def of_ticket(output: Output, ticket: Ticket) -> str:
    """The note of `export`."""
    facts = ticket.facts
    return (
        f"Level {facts.level}, arm {facts.arm}, seed {facts.seed}: {100 * ticket.density:.3g} % of the weights of "
        f"{facts.layout.shown} ({ticket.kept:,}), {100 * facts.accuracy:.2f} % of the test images of {facts.data} "
        f"right. Exported by pipeline {output.pipeline}.\n\n"
        "`ticket/model_card.md`, among the run's artifacts, says how it was made, what it can do and how to use it. "
        "The folder `ticket` is an MLflow model, with `ticket.safetensors` and `ticket.onnx` in it."
    )


def of_plot(output: Output) -> str:
    """The note of `plot`."""
    return f"The figures and the report of pipeline {output.pipeline}: `{REPORT}`, here among the artifacts."


def of_verdicts(output: Output, findings: Findings) -> Iterator[tuple[str, str]]:
    """The line that an evaluation adds to the note of each level that it judged."""
    for each in findings.judged:
        yield each["level"], f"Pipeline {output.pipeline}: {_verdict(each)}"


def _verdict(judged: Mapping[str, Any]) -> str:
    """A level's verdict, with the two intervals that it rests on first."""
    why = f" ({judged['why']})" * bool(judged["why"])
    compared: Sequence[object] = judged["comparisons"]
    return (
        f"**{judged['verdict']}**{why}. Test accuracy differs from dense's by {compared[0]} points; the tickets stop "
        f"at {compared[1]} times dense's iteration."
    )
