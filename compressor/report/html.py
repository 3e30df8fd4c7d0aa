"""``report.html``: one self-contained page that works offline, in light and dark, and on paper.

The charts are inline SVG drawn from the page's own style sheet. plotly would add 4.8 MB of script
to every report, would not follow the reader's light or dark scheme, and prints as what was last on
the screen; these need no script and about 100 kB.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from compressor.report import wording
from compressor.report.changes import change_texts
from compressor.report.charts import latency_chart, series_of, size_chart
from compressor.report.comparison import compare_reports
from compressor.report.curves import training_curves
from compressor.report.history import histories_of
from compressor.report.scatter import scatter_chart
from compressor.report.schema import Report
from compressor.report.steps import step_texts
from compressor.report.summary import (
    accuracy_split,
    best,
    device_table,
    environment_facts,
    how_measured,
    intervals_text,
    measure_of,
    noise_reasons,
    row_texts,
    threads_text,
)

__all__ = ["render_comparison", "render_html"]

# Each chart is drawn for a desk and for a phone, in whose pixels its text stays readable; the page
# shows the one that fits.
WIDE, NARROW = 560, 340
SCATTER_WIDE, SCATTER_NARROW = (800, 440), (340, 340)


def render_html(report: Report) -> str:
    """Write a report as one HTML page without any outside resource.

    Everything from the report is escaped, and a content security policy forbids scripts and styles
    other than the page's own, and all network access.
    """
    rows = row_texts(report)
    plotted = {text.target for text in rows if text.row.latency}
    series = {target: look for target, look in series_of(report).items() if target in plotted}
    return _render(
        "report.html.j2",
        ("report",),
        report=report,
        split=accuracy_split(report),
        measure=measure_of(report),
        best=best(report),
        changes=change_texts(report),
        device_table=device_table(report),
        rows=rows,
        steps={variant: step_texts(report, variant) for variant in report.steps},
        environment=environment_facts(report),
        threads=threads_text(report),
        intervals=intervals_text(report),
        how_measured=how_measured(report),
        noise_reasons=noise_reasons(report),
        series=tuple(series.values()),
        scatter=[scatter_chart(report, *size) for size in (SCATTER_WIDE, SCATTER_NARROW)],
        latency=[latency_chart(report, width) for width in (WIDE, NARROW)],
        sizes=[size_chart(report, width) for width in (WIDE, NARROW)],
        curves=training_curves(report),
        **{name: _yaml(values) for name, values in _provenance(report).items()},
    )


def render_comparison(reports: Sequence[Report], files: Sequence[Path] = ()) -> str:
    """Write several reports side by side as one HTML page, as closed to the outside.

    Args:
        reports: What to compare.
        files: Where each was read from, if that is known.
    """
    found = compare_reports(reports, files)
    return _render(
        "comparison.html.j2",
        ("report", "comparison"),
        found=found,
        scatter=[found.scatter(*size) for size in (SCATTER_WIDE, SCATTER_NARROW)],
        histories=histories_of(found),
    )


def _render(template: str, parts: Sequence[str], **values: object) -> str:
    """Fill a template; its style sheet and its script are those of the parts, one after another."""
    environment = _environment()
    style, script = (_source(environment, parts, ending) for ending in ("css", "js"))
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    page = environment.get_template(template)
    return page.render(style=style, script=script, policy=policy, **values)


@functools.cache
def _environment() -> Environment:
    """Keeps the templates once they are compiled."""
    environment = Environment(
        loader=PackageLoader("compressor.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["wording"] = wording
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> Markup:
    """A name that may break after an underscore; browsers break after hyphens anyway."""
    return escape(name).replace("_", Markup("_<wbr/>"))


def _source(environment: Environment, parts: Sequence[str], ending: str) -> Markup:
    if environment.loader is None:
        raise LookupError("the environment has no loader")
    sources = [environment.loader.get_source(environment, f"{part}.{ending}") for part in parts]
    return Markup("".join(source[0] for source in sources))  # noqa: S704  (our own files)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _provenance(report: Report) -> dict[str, dict[str, object]]:
    """Recipe, budget and data as JSON values, which YAML can write whatever they were."""
    return report.model_dump(mode="json", include={"recipe", "budget", "data"})


def _yaml(values: dict[str, object]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
