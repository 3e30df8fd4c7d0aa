"""Several runs side by side: their rows in one list, and what of it is not comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from compressor.report.charts import NUM_COLOURS, Series, markers_of
from compressor.report.drawing import Chart
from compressor.report.files import JSON_NAME
from compressor.report.scatter import NUM_DASHES, Front, Point, draw_scatter
from compressor.report.schema import Accuracy, OnDevice, Report
from compressor.report.summary import (
    RowText,
    accuracy_of,
    accuracy_split,
    measure_of,
    measurement_of,
    row_texts,
    with_latency,
)
from targets.measurement import Measurement
from targets.wording import plural

__all__ = ["Comparison", "Entry", "Filter", "Ground", "Run", "Shipped", "compare_reports"]

T = TypeVar("T")
_Pace = tuple[str, str, str | None, str]
"""Architecture, target, device and precision of an untouched model."""

SAME_SPEED = 1.25
"""Where an untouched model of one architecture differs by more, the machines differ."""


@dataclass(frozen=True)
class Ground:
    """What has to be equal for two latencies to be comparable.

    Attributes:
        machine: Of the measurement; see `targets.environment.Environment.machine`.
        shape: Batch x length.
        threads: Of the runtime.
        speed: Tells machines apart that look the same; see `_tell_speeds`.
    """

    machine: str
    shape: str
    threads: int
    speed: int = 0


@dataclass(frozen=True)
class Shipped:
    """What a run ships on one target.

    Attributes:
        target: Label of the target.
        text: The row that was chosen; None where there is none.
        met: Whether it is one to ship, that is, within the budget.
        state: Of its candidates, where none was chosen.
    """

    target: str
    text: RowText | None
    met: bool
    state: str = ""


@dataclass(frozen=True)
class Run:
    """One of the reports.

    Attributes:
        number: Position on the page, from 1.
        label: Its name; where several have the same, with its folder or a number.
        report: What it found.
        css: Colour class of the page.
        ships: What it ships, target by target.
        num_absent: Rows that could not be measured.
    """

    number: int
    label: str
    report: Report
    css: str
    ships: tuple[Shipped, ...]
    num_absent: int

    @property
    def moment(self) -> datetime | None:
        """When it was made; None where the report does not tell it as a date."""
        try:
            found = datetime.fromisoformat(self.report.created)
        except ValueError:
            return None
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)

    @property
    def created(self) -> str:
        """The same, to be read."""
        return f"{self.moment:%Y-%m-%d %H:%M} UTC" if self.moment else self.report.created

    @property
    def key(self) -> Series:
        """The colour, for a legend."""
        return Series(self.label, self.css, "circle")


@dataclass(frozen=True)
class Entry:
    """A measured row of a run, where it was measured.

    Attributes:
        run: Whose row.
        text: The row; its number is that on the page, its target names the device.
        device: Name of the remote device; None for the machine of the run.
        accuracy: Of the bundle, on the machine of the run.
        measured: Its latency at the run's primary shape.
        ground: Of its latency; None without one.
    """

    run: Run
    text: RowText
    device: str | None
    accuracy: Accuracy | None
    measured: Measurement | None
    ground: Ground | None

    @property
    def name(self) -> str:
        """In full, for titles and summaries."""
        text = self.text
        return f"{text.number} {text.row.variant} · {text.target} {text.row.precision} · " + (
            self.run.label
        )

    @property
    def place(self) -> str:
        """Where it was measured: the run, and its remote device."""
        return f"{self.device} of {self.run.label}" if self.device else self.run.label

    @property
    def data_key(self) -> DataKey:
        """What has to be equal for two accuracies to be comparable: the examples, the measure."""
        report = self.run.report
        return str(report.data.get("sha256")), str(accuracy_split(report)), measure_of(report)


DataKey = tuple[str, str, str]
"""The sha256 of the data, the split, and what is measured on it."""


@dataclass(frozen=True)
class Filter:
    """A group of check boxes.

    Attributes:
        title: What it is about.
        name: Of the check boxes, and of what rows say about themselves.
        values: Value, text and look of each.
    """

    title: str
    name: str
    values: tuple[tuple[str, str, Series | None], ...]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        runs: In the order given.
        entries: Every measured row of every run.
        markers: Target label -> its marker.
        fronts: What the points of the chart are comparable within -> the front.
        notes: What is not comparable, one line each; empty where all is.
    """

    runs: tuple[Run, ...]
    entries: tuple[Entry, ...]
    markers: dict[str, str]
    fronts: dict[tuple[Ground, DataKey], Front]
    notes: tuple[str, ...]

    @property
    def measure(self) -> str:
        """What is shown as the accuracy: that of all runs, or accuracy where they differ."""
        found = {measure_of(entry.run.report) for entry in self.entries if entry.accuracy}
        return found.pop() if len(found) == 1 else "accuracy"

    @property
    def looks(self) -> tuple[Series, ...]:
        """The marker of each target, without a colour."""
        return tuple(Series(target, "plain", each) for target, each in self.markers.items())

    @property
    def filters(self) -> tuple[Filter, ...]:
        """By what the rows can be filtered."""
        precisions = dict.fromkeys(entry.text.row.precision for entry in self.entries)
        return (
            Filter("run", "run", tuple((str(r.number), r.label, r.key) for r in self.runs)),
            Filter(
                "target",
                "place",
                tuple((str(i), each.target, each) for i, each in enumerate(self.looks)),
            ),
            Filter("precision", "precision", tuple((each, each, None) for each in precisions)),
        )

    def scatter(self, width: float, height: float) -> Chart | None:
        """Accuracy against latency of all rows that have both; a front for each ground."""
        grounds = list(self.fronts)
        points = [
            Point(
                text=entry.text,
                measured=entry.measured,
                accuracy=entry.accuracy,
                look=Series(entry.name, entry.run.css, self.markers[entry.text.target]),
                name=entry.name,
                front=grounds.index((entry.ground, entry.data_key)),
                key=str(entry.text.number),
            )
            for entry in self.entries
            if entry.measured and entry.accuracy and entry.ground
        ]
        shapes = {run.report.primary_shape for run in self.runs}
        at = f" at {shapes.pop()}" if len(shapes) == 1 else ""
        return draw_scatter(
            points,
            width,
            height,
            across=f"latency{at}, ms (log scale)",
            up=self.measure,
            fronts=tuple(self.fronts.values()),
        )


def compare_reports(reports: Sequence[Report], files: Sequence[Path] = ()) -> Comparison:
    """Put reports side by side, in the order given.

    Args:
        reports: What to compare.
        files: Where each was read from, if that is known: tells apart those of one recipe.
    """
    runs: list[Run] = []
    entries: list[Entry] = []
    labels = _unique(_labels([report.name for report in reports], files))
    for number, (report, label) in enumerate(zip(reports, labels, strict=True), 1):
        texts = row_texts(report, among=reports)
        run = Run(
            number=number,
            label=label,
            report=report,
            css=f"series-{(number - 1) % NUM_COLOURS}",
            ships=_ships(texts),
            num_absent=sum(text.row.status != "measured" for text in texts),
        )
        runs.append(run)
        entries += _entries(run, texts)
    entries = [
        replace(entry, text=replace(entry.text, number=number))
        for number, entry in enumerate(_tell_speeds(entries), 1)
    ]
    return Comparison(
        runs=tuple(runs),
        entries=tuple(entries),
        markers=markers_of(entry.text for entry in entries),
        fronts=_fronts(entries),
        notes=tuple(_notes(runs, entries)),
    )


def _labels(names: Sequence[str], files: Sequence[Path]) -> Sequence[str]:
    """The names, with the places of the files where a name comes more than once."""
    if not files:
        return names
    paths = [path.parent if path.name == JSON_NAME else path.with_suffix("") for path in files]
    shared = [name for name in names if names.count(name) > 1]
    return [
        f"{name} ({place})" if name in shared else name
        for name, place in zip(
            names, _places([path.resolve().parts for path in paths]), strict=True
        )
    ]


def _places(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The last parts of paths, as many as tell them apart, if anything does."""
    for length in range(1, max(map(len, paths))):
        places = ["/".join(parts[-length:]) for parts in paths]
        if len(set(places)) == len(set(paths)):
            return places
    return ["/".join(parts) for parts in paths]


def _unique(names: Iterable[str]) -> list[str]:
    """Number the names that come more than once."""
    wanted = list(names)
    used = set(wanted)
    found = []
    for name in wanted:
        label, number = name, 0
        while wanted.count(name) > 1 and label in used:
            number += 1
            label = f"{name} ({number})"
        used.add(label)
        found.append(label)
    return found


def _ships(texts: Sequence[RowText]) -> tuple[Shipped, ...]:
    candidates: dict[str, list[RowText]] = {}
    for text in texts:
        if text.row.kind == "candidate":
            candidates.setdefault(text.target, []).append(text)
    return tuple(_shipped(target, own) for target, own in candidates.items())


def _shipped(target: str, candidates: Sequence[RowText]) -> Shipped:
    for text in candidates:
        if text.row.chosen:
            return Shipped(target, text, met=text.mark == "chosen")
    states = dict.fromkeys(text.state for text in candidates)
    return Shipped(target, None, met=False, state="; ".join(states))


def _entries(run: Run, texts: Sequence[RowText]) -> Iterator[Entry]:
    report = run.report
    split = accuracy_split(report)

    def ground(machine: str, measured: Measurement | None) -> Ground | None:
        return Ground(machine, report.primary_shape, measured.threads) if measured else None

    for text in texts:
        accuracy = accuracy_of(text.row, split)
        if text.row.status == "measured":
            measured = measurement_of(report, text.row)
            own = ground(report.environment.machine, measured)
            yield Entry(run, text, None, accuracy, measured, own)
        for name, found in text.row.devices.items():
            there = found.latency.get(report.primary_shape)
            if there is not None:
                on_device = _on_device(text, name, found, there)
                own = ground(_machine_of_device(report, name), there)
                yield Entry(run, on_device, name, accuracy, there, own)


def _on_device(text: RowText, name: str, found: OnDevice, measured: Measurement) -> RowText:
    label = f"{text.target} on {name}"
    return replace(with_latency(text, measured, found.speedup), target=label, reason="")


def _machine_of_device(report: Report, name: str) -> str:
    facts = report.devices.get(name)
    return facts.environment.machine if facts and facts.environment else f"the device {name}"


def _tell_speeds(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Tell machines apart that look the same, but are not equally fast.

    Machines of a cloud often have one name. The untouched models tell: those of one architecture,
    target and precision take the same time on the same machine.
    """
    paces: dict[tuple[Ground, str], dict[_Pace, float]] = {}
    for entry in entries:
        if entry.ground:
            own = paces.setdefault((entry.ground, entry.place), {})
            if entry.text.row.kind != "candidate" and entry.measured:
                own[_pace(entry)] = entry.measured.median_ms
    known: dict[Ground, list[dict[_Pace, float]]] = {}
    speeds: dict[tuple[Ground, str], int] = {}
    for (ground, place), own in paces.items():
        alike = known.setdefault(ground, [])
        speed = next((i for i, each in enumerate(alike) if _is_as_fast(own, each)), len(alike))
        if speed == len(alike):
            alike.append({})
        alike[speed] = own | alike[speed]
        speeds[ground, place] = speed
    for entry in entries:
        if entry.ground:
            speed = speeds[entry.ground, entry.place]
            entry = replace(entry, ground=replace(entry.ground, speed=speed))
        yield entry


def _is_as_fast(one: Mapping[_Pace, float], other: Mapping[_Pace, float]) -> bool:
    return all(
        1 / SAME_SPEED < one[key] / other[key] < SAME_SPEED for key in one.keys() & other.keys()
    )


def _pace(entry: Entry) -> _Pace:
    row = entry.text.row
    return entry.run.report.model.architecture, row.target, row.device, row.precision


def _fronts(entries: Sequence[Entry]) -> dict[tuple[Ground, DataKey], Front]:
    found: dict[tuple[Ground, DataKey], dict[str, None]] = {}
    for entry in entries:
        if entry.ground and entry.accuracy:
            found.setdefault((entry.ground, entry.data_key), {})[entry.place] = None
    if len(found) == 1:
        return {key: Front() for key in found}
    return {
        key: Front(
            f"On the Pareto front of {', '.join(places)}", f"front dash-{number % NUM_DASHES}"
        )
        for number, (key, places) in enumerate(found.items())
    }


def _notes(runs: Sequence[Run], entries: Sequence[Entry]) -> Iterator[str]:
    timed = [(entry, entry.ground) for entry in entries if entry.ground]
    titles = _machine_titles(entries)
    machines = _groups(timed, lambda pair: titles[pair[1].machine], lambda pair: pair[0].place)
    if len(machines) > 1:
        yield (
            f"Latencies come from {len(machines)} machines and cannot be compared between them: "
            f"{_list(machines)}. Each machine has a Pareto front of its own, and lines of the "
            "history join no two machines. Speed-ups can be compared: each is within its machine."
        )
    shapes = _groups(runs, lambda run: run.report.primary_shape, lambda run: run.label)
    if len(shapes) > 1:
        yield (
            "Latencies were measured at different shapes (batch x length) and cannot be compared "
            f"between them: {_list(shapes)}."
        )
    threads = _groups(
        timed, lambda pair: plural(pair[1].threads, "thread"), lambda pair: pair[0].place
    )
    if len(threads) > 1:
        yield f"Latencies were measured with different numbers of threads: {_list(threads)}."
    data = _groups(runs, lambda run: str(run.report.data.get("sha256"))[:12], lambda run: run.label)
    if len(data) > 1:
        yield (
            "Accuracies were measured on different data and cannot be compared between them: "
            f"{_list({f'data {sha}': names for sha, names in data.items()})}."
        )
    splits = _groups(
        runs,
        lambda run: f"the {accuracy_split(run.report)} split",
        lambda run: run.label,
        only=lambda run: accuracy_split(run.report) is not None,
    )
    if len(splits) > 1:
        yield f"Accuracies are on different splits: {_list(splits)}."
    measures = _groups(
        runs,
        lambda run: measure_of(run.report),
        lambda run: run.label,
        only=lambda run: accuracy_split(run.report) is not None,
    )
    if len(measures) > 1:
        yield f"The figures under accuracy are not the same measure in all runs: {_list(measures)}."
    models = _groups(runs, lambda run: run.report.model.sha256[:12], lambda run: run.label)
    if len(models) > 1:
        named = {f"model {sha}": names for sha, names in models.items()}
        yield (
            "The runs started from different models, and drops and speed-ups are against the model "
            f"of each run: {_list(named)}."
        )
    yield from _speeds(timed)
    noisy = [run.label for run in runs if run.report.verdict.noisy]
    if noisy:
        yield f"Other work disturbed the latencies of {', '.join(noisy)}: do not trust them."


def _machine_titles(entries: Sequence[Entry]) -> dict[str, str]:
    """Machine -> its processor, or in full where machines that differ have one of the same name."""
    found = {entry.ground.machine for entry in entries if entry.ground}
    processors = [machine.partition(";")[0] for machine in found]
    return {
        machine: machine if processors.count(processor) > 1 else processor
        for machine, processor in zip(found, processors, strict=True)
    }


def _speeds(timed: Sequence[tuple[Entry, Ground]]) -> Iterator[str]:
    """Machines that look the same, and yet run the same untouched model at another speed."""
    found: dict[tuple[Ground, _Pace], dict[int, Entry]] = {}
    for entry, ground in timed:
        if entry.text.row.kind != "candidate":
            alike = found.setdefault((replace(ground, speed=0), _pace(entry)), {})
            alike.setdefault(ground.speed, entry)
    told: set[Ground] = set()
    for (ground, _), entries in found.items():
        if len(entries) > 1 and ground not in told:
            told.add(ground)
            times = ", ".join(f"{e.text.latency} ms in {e.place}" for e in entries.values())
            yield (
                "Machines of different speed have the same name, and count as different machines "
                f"here: an untouched model of one architecture took {times} "
                f"({next(iter(entries.values())).text.target}; {ground.machine})."
            )


def _groups(
    items: Iterable[T],
    key: Callable[[T], str],
    name: Callable[[T], str],
    *,
    only: Callable[[T], bool] = lambda _: True,
) -> dict[str, list[str]]:
    """Names, each once, by what they have in common."""
    found: dict[str, dict[str, None]] = {}
    for item in items:
        if only(item):
            found.setdefault(key(item), {})[name(item)] = None
    return {value: list(names) for value, names in found.items()}


def _list(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
