"""What a report comes to: the best bundle, each row and pass as text, and how it was measured.

The terminal, Markdown and HTML all show these, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from compressor.report.schema import Accuracy, Comparison, Report, Row
from compressor.report.wording import (
    NONE,
    accuracy_interval,
    bytes_text,
    capitalized,
    drop_interval,
    interval_text,
    milliseconds,
    one_line,
    percent,
    points,
    shape_words,
    significant,
    speedup_interval,
    times,
)
from targets.measurement import LEAST_ROUNDS, Measurement, Noise, Speedup
from targets.wording import plural

__all__ = [
    "Best",
    "DeviceTable",
    "Mark",
    "RowText",
    "Split",
    "absent_groups",
    "accuracy_of",
    "accuracy_split",
    "best",
    "comparison_of",
    "device_table",
    "environment_facts",
    "how_measured",
    "intervals_text",
    "measure_of",
    "measurement_of",
    "noise_reasons",
    "row_texts",
    "target_labels",
    "threads_text",
    "with_latency",
]

Split = Literal["test", "validation"]
Mark = Literal["chosen", "nearest", "met", "missed", ""]

ORDER: dict[Mark, float] = {"chosen": 0, "nearest": 1, "met": 2, "missed": 3}
"""What the rows are sorted by that have a mark."""

STATUS = {
    "built": "built, not run here",
    "unavailable": "unavailable",
    "refused": "refused",
    "failed": "failed",
}


def accuracy_split(report: Report) -> Split | None:
    """The split whose accuracy is shown: test, or validation where nothing was tested."""
    if any(row.test for row in report.rows):
        return "test"
    return "validation" if any(row.validation for row in report.rows) else None


def measure_of(report: Report) -> str:
    """What is shown as the accuracy of the rows, such as ``rank correlation``."""
    judged = (row for row in report.rows if row.test or row.validation)
    return next((row.measure for row in judged), "accuracy")


def accuracy_of(row: Row, split: Split | None) -> Accuracy | None:
    """Accuracy of a row on a split."""
    return {"test": row.test, "validation": row.validation, None: None}[split]


def comparison_of(row: Row, split: Split | None) -> Comparison | None:
    """A row against the untouched model on a split; None for that model itself."""
    if row.kind == "reference":
        return None
    found = {"test": row.test_comparison, "validation": row.validation_comparison, None: None}
    return found[split]


def measurement_of(report: Report, row: Row) -> Measurement | None:
    """Latency of a row at the report's primary shape."""
    return row.latency.get(report.primary_shape)


def target_labels(report: Report, among: Iterable[Report] = ()) -> tuple[str, ...]:
    """Name of the target of each row; with the device where one target ran on several.

    Args:
        report: Whose rows.
        among: Reports that are shown beside it.
    """
    devices: dict[str, set[str | None]] = {}
    for row in (*report.rows, *(row for other in among for row in other.rows)):
        devices.setdefault(row.target, set()).add(row.device)  # None: the default one
    return tuple(
        f"{row.target} ({row.device})"
        if row.device and len(devices[row.target]) > 1
        else row.target
        for row in report.rows
    )


@dataclass(frozen=True)
class RowText:
    """One row of the results as text; ``NONE`` where there is no value.

    Attributes:
        number: Position in the report, from 1; joins tables and charts.
        row: What it tells of.
        mark: For a measured candidate ``chosen`` (to ship), ``nearest`` (of its target, where the
            one that was picked misses the budget), ``met`` or ``missed``; else empty.
        state: Whether the budget was met, or why there is nothing to judge.
        reason: Why it was not measured, on one line; empty for a measured row.
        sort: Column -> number to sort by; a column without a value is left out.
    """

    number: int
    row: Row
    target: str
    mark: Mark
    state: str
    reason: str = ""
    latency: str = NONE
    latency_interval: str = ""
    p90: str = NONE
    speedup: str = NONE
    speedup_interval: str = ""
    speedup_eager: str = NONE
    accuracy: str = NONE
    accuracy_interval: str = ""
    drop: str = NONE
    drop_interval: str = ""
    perplexity: str = NONE
    first_token: str = NONE
    written: str = NONE
    written_interval: str = ""
    writing_speedup: str = NONE
    writing_speedup_interval: str = ""
    size: str = NONE
    size_ratio: str = NONE
    noisy: bool = False
    sort: dict[str, float] = field(default_factory=dict)


def row_texts(report: Report, among: Iterable[Report] = ()) -> tuple[RowText, ...]:
    """Every row of a report as text, in the report's order; ``among`` as of `target_labels`."""
    labels = target_labels(report, among)
    return tuple(
        _row_text(report, row, number, label)
        for number, (row, label) in enumerate(zip(report.rows, labels, strict=True), start=1)
    )


def _row_text(report: Report, row: Row, number: int, target: str) -> RowText:
    split = accuracy_split(report)
    accuracy, compared = accuracy_of(row, split), comparison_of(row, split)
    measured = measurement_of(report, row)
    values: dict[str, float | None] = {
        "speedup_eager": row.speedup_eager.ratio if row.speedup_eager else None,
        "accuracy": accuracy.value if accuracy else None,
        "drop": compared.drop_points if compared else None,
        "size": row.size_bytes,
        "size_ratio": row.size_ratio,
    }
    mark, state = _judgement(row)
    values["budget"] = ORDER.get(mark)
    perplexity, rise = _perplexity(report, row, split)
    values["perplexity"] = perplexity
    text = RowText(
        number=number,
        row=row,
        target=target,
        mark=mark,
        state=state,
        reason="" if row.status == "measured" else one_line(row.reason or "no reason was recorded"),
        speedup_eager=times(values["speedup_eager"]),
        accuracy=percent(values["accuracy"]),
        accuracy_interval=accuracy_interval(accuracy) if accuracy else "",
        drop=points(values["drop"]),
        drop_interval=drop_interval(compared) if compared else "",
        perplexity=significant(perplexity) + rise if perplexity else NONE,
        size=bytes_text(values["size"]),
        size_ratio=times(values["size_ratio"]),
        sort={name: value for name, value in values.items() if value is not None},
    )
    return with_latency(_with_writing(text, row), measured, row.speedup)


def _with_writing(text: RowText, row: Row) -> RowText:
    """The row with what a language model wrote a second."""
    found, faster = row.writing, row.writing_speedup
    if found is None:
        return text
    return replace(
        text,
        first_token=milliseconds(found.first_token_ms),
        written=significant(found.written_per_s) + ("~" if found.noise.verdict == "noisy" else ""),
        written_interval=interval_text(found.written_interval),
        writing_speedup=times(faster.ratio if faster else None),
        writing_speedup_interval=speedup_interval(faster) if faster else "",
        sort=text.sort
        | {"first_token": found.first_token_ms, "written": found.written_per_s}
        | ({"writing_speedup": faster.ratio} if faster else {}),
    )


def _perplexity(report: Report, row: Row, split: Split | None) -> tuple[float | None, str]:
    """That of a row and what was lost of it, in words; None where it is not what counts."""
    compared = comparison_of(row, split)
    if compared is not None:
        found = compared.perplexity
        return (None, "") if found is None else (found.value, f" ({found.rise:+.1f}%)")
    if row.kind == "candidate" or row.status != "measured":
        return None, ""
    beside = (comparison_of(each, split) for each in report.rows)
    own = (each.perplexity.reference for each in beside if each and each.perplexity)
    return next(own, None), ""


def with_latency(text: RowText, measured: Measurement | None, speedup: Speedup | None) -> RowText:
    """The row with the latency of one place, and its speed-up there."""
    values = {
        "latency": measured.median_ms if measured else None,
        "speedup": speedup.ratio if speedup else None,
    }
    rest = {name: value for name, value in text.sort.items() if name not in values}
    return replace(
        text,
        latency=milliseconds(values["latency"]),
        latency_interval=interval_text(measured.interval) if measured else "",
        p90=milliseconds(measured.p90_ms) if measured else NONE,
        speedup=times(values["speedup"]),
        speedup_interval=speedup_interval(speedup) if speedup else "",
        noisy=measured is not None and measured.noise.verdict == "noisy",
        sort=rest | {name: value for name, value in values.items() if value is not None},
    )


def _judgement(row: Row) -> tuple[Mark, str]:
    if row.status != "measured":
        return "", STATUS[row.status]
    if row.kind != "candidate":
        return "", row.kind
    if row.chosen:
        return ("nearest", "nearest, misses the budget") if row.unmet else ("chosen", "chosen")
    return ("missed", "misses the budget") if row.unmet else ("met", "meets the budget")


@dataclass(frozen=True)
class DeviceTable:
    """Latency on remote devices, one column a device.

    Attributes:
        names: The devices.
        rows: Those measured on any device -> one cell a device: latency in ms, and how many times
            as fast as the untouched model there; or why there is none.
        absent: Devices that measured nothing -> why.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[RowText, tuple[tuple[str, str], ...]], ...]
    absent: tuple[tuple[str, str], ...]


def device_table(report: Report) -> DeviceTable | None:
    """The table of the remote devices; None where the run had none."""
    if not report.devices:
        return None
    names = tuple(name for name, facts in report.devices.items() if facts.reason is None)
    rows = tuple(
        (text, tuple(_device_cell(report, text.row, name) for name in names))
        for text in row_texts(report)
        if any(name in text.row.devices for name in names)
    )
    absent = ((name, one_line(facts.reason or "")) for name, facts in report.devices.items())
    return DeviceTable(names, rows, tuple(each for each in absent if each[1]))


def _device_cell(report: Report, row: Row, name: str) -> tuple[str, str]:
    found = row.devices.get(name)
    if found is None:
        return NONE, ""
    measured = found.latency.get(report.primary_shape)
    if measured is None:
        return NONE, one_line((found.reason or "not measured").splitlines()[0])
    noisy = "~" if measured.noise.verdict == "noisy" else ""
    return milliseconds(measured.median_ms) + noisy, times(
        found.speedup.ratio if found.speedup else None
    )


def absent_groups(report: Report) -> tuple[tuple[RowText, ...], ...]:
    """Rows that were not measured; those with one reason together."""
    groups: dict[tuple[str, str], list[RowText]] = {}
    for text in row_texts(report):
        if text.reason:
            groups.setdefault((text.state, text.reason), []).append(text)
    return tuple(tuple(group) for group in groups.values())


@dataclass(frozen=True)
class Best:
    """The row that the headline is about.

    Attributes:
        text: The row.
        met: Whether it is one to ship, that is, chosen and within the budget.
        baseline_ms: Latency of the fastest baseline on its target, where there is one.
    """

    text: RowText
    met: bool
    baseline_ms: float | None


def best(report: Report) -> Best | None:
    """The row to ship, or else the nearest to the budget; None when no candidate was measured.

    Of several, the fastest.
    """
    candidates = [
        text
        for text in row_texts(report)
        if text.row.kind == "candidate" and text.row.status == "measured"
    ]
    candidates.sort(
        key=lambda text: (
            text.mark != "chosen",
            text.mark != "nearest",
            text.row.slowness(report.primary_shape),
        )
    )
    if not candidates:
        return None
    first = candidates[0]
    baselines = [
        measured.median_ms
        for row in report.rows
        if row.kind != "candidate"
        and (row.target, row.device) == (first.row.target, first.row.device)
        if (measured := measurement_of(report, row))
    ]
    return Best(first, met=first.mark == "chosen", baseline_ms=min(baselines, default=None))


def noise_reasons(report: Report) -> tuple[str, ...]:
    """Why each disturbed measurement counts as noisy, one line a row and shape."""
    return tuple(
        f"{text.row.variant} on {text.target} {when}: {'; '.join(noise.reasons)}"
        for text in row_texts(report)
        for when, noise in _noises(text.row)
        if noise.verdict == "noisy"
    )


def _noises(row: Row) -> Iterator[tuple[str, Noise]]:
    for shape, measured in row.latency.items():
        yield f"at {shape}", measured.noise
    if row.writing is not None:
        yield "as it wrote", row.writing.noise


def environment_facts(report: Report) -> tuple[tuple[str, str], ...]:
    """Label and value of each fact on the machine and the software."""
    machine = report.environment
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    quota = machine.cpu_quota
    return (
        ("processor", machine.cpu),
        ("CPUs", f"{machine.num_cpus}" + (f", and the time of {quota:g}" if quota else "")),
        *((("GPUs", ", ".join(machine.gpus)),) if machine.gpus else ()),
        ("instruction sets", " ".join(machine.cpu_features) or "unknown"),
        ("memory", bytes_text(machine.memory_bytes)),
        ("system", machine.system),
        ("load average", f"{machine.load_average:.2f} on {machine.num_cpus} CPUs"),
        ("threads a run", threads_text(report) or "nothing was measured"),
        ("python", machine.python),
        ("libraries", libraries or "unknown"),
    )


def intervals_text(report: Report) -> str:
    """What the figures beside others are, such as those in brackets."""
    fewest = min((len(each.rounds) for each in _measurements(report)), default=LEAST_ROUNDS)
    if fewest >= LEAST_ROUNDS:
        return "95% intervals"
    return f"95% intervals, but of times and speed-ups, with {plural(fewest, 'round')}, their range"


def threads_text(report: Report) -> str:
    """Thread counts of the measurements; empty where there are none."""
    return _range(each.threads for each in _measurements(report))


def how_measured(report: Report) -> tuple[str, ...]:
    """What a reader needs in order to trust, or repeat, the numbers; one sentence each."""
    measured = _measurements(report)
    lines: list[str] = []
    if measured:
        threads = threads_text(report)
        lines += [
            "Each bundle ran in a process of its own with "
            f"{threads} CPU {'thread' if threads == '1' else 'threads'}, warmed up first, in "
            f"{_range(len(each.rounds) for each in measured)} rounds; the rounds of all bundles "
            "alternated, so that what disturbed one disturbed the others.",
            f"Latency is the median of the round medians ({_range(len(e.run_ms) for e in measured)}"
            " runs a bundle and shape); its 95% interval comes from order statistics"
            + (
                f", and of fewer than {LEAST_ROUNDS} rounds it is their range."
                if min(len(each.rounds) for each in measured) < LEAST_ROUNDS
                else "."
            ),
            "A speed-up divides, round by round, the median of the fastest uncompressed model on "
            f"the same target by that of the bundle, at {shape_words(report.primary_shape)}.",
            "While measuring, the load average was "
            f"{_range(r.load_average for each in measured for r in each.rounds)} "
            f"on {report.environment.num_cpus} CPUs.",
        ]
    wrote = [row.writing for row in report.rows if row.writing is not None]
    if wrote:
        lines.append(
            f"Each language model read {_range(each.prompt_tokens for each in wrote)} tokens and "
            f"wrote {_range(each.num_tokens for each in wrote)}, in "
            f"{_range(len(each.rounds) for each in wrote)} rounds that alternated. Tokens/s are "
            "those after the first, without tokenization and the choice of the token."
        )
    split = accuracy_split(report)
    if split:
        found = [a for row in report.rows if (a := accuracy_of(row, split))]
        by_row = all(each.unit == "row" for each in found)
        noun = "examples" if by_row else f"{found[0].unit}s"
        measure = measure_of(report)
        interval, exact = "Wilson", "that of McNemar's exact test."
        if measure == "mAP":
            interval = "bootstrap"
            exact = f"that of 1,000 random exchanges of the answers to the {split} rows."
        elif measure != "accuracy":
            interval, exact = "bootstrap", f"that of the sign-flip test of the {split} rows."
        lines += [
            f"{capitalized(measure)} is on {_range(each.num_judged for each in found)} {split} "
            f"{noun}, through the bundle itself, with its 95% {interval} interval. The drop is "
            f"paired with the untouched model on the same {noun} (positive: lost); its p-value is "
            + (
                exact
                if by_row
                else f"that of the sign-flip test of the {split} rows, of which there are "
                f"{_range(each.num_rows for each in found)}. The {noun} of one row are not "
                "independent: intervals count them by their design effect."
            ),
        ]
        if split == "test":
            lines.append(
                "Bundles were chosen on the validation data; the test data was not used to choose."
            )
    return tuple(lines)


def _measurements(report: Report) -> list[Measurement]:
    return [each for row in report.rows for each in row.latency.values()]


def _range(values: Iterable[float]) -> str:
    found = sorted(set(values))
    if not found:
        return ""
    low, high = (str(v) if isinstance(v, int) else significant(v) for v in (found[0], found[-1]))
    return low if low == high else f"{low} to {high}"
