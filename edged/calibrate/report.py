"""The report: one HTML file without outside requests, in light and dark, with every chart's numbers beside it."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from edged import __version__
from edged.binomial import share_interval
from edged.calibrate.charts import Chart, Points, Series
from edged.calibrate.outcome import Judged, Outcome, percent
from edged.calibration.artefact import LabelSource
from edged.calibration.certificate import certify, grid

TARGETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3)
_CURVE_POINTS = 40
_BINS = 10
_MOST_OPTIONS = 24
_MOST_PAIRS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What was calibrated on what, and when."""

    task: str
    definition_sha256: str
    model: str
    model_sha256: str
    data: str
    made_at: str
    version: int
    options: tuple[str, ...]


def report(outcome: Outcome, provenance: Provenance) -> str:
    """The whole page."""
    charts = (deferral(outcome), reliability(outcome), coverage(outcome))
    body = (
        f"<header><p>{escape(provenance.task)} on {escape(provenance.model)}</p><h1>{escape(outcome.sentence)}</h1>"
        f"</header>{_facts(outcome)}"
        f'<div class="charts">{"".join(chart.html() for chart in charts)}</div>'
        f"{_confusion(outcome, provenance.options)}{_levels(outcome)}{_provenance(outcome, provenance)}"
    )
    body = body.replace(" %", "\u00a0%")
    title = escape(f"{provenance.task}: calibration")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


# -- charts ----------------------------------------------------------------------------------------------------------


def deferral(outcome: Outcome) -> Chart:
    """Accuracy against the cloud's share, taking the cloud's answers as right."""
    ordered = [item.right for item in _trusted_first(outcome)]
    count, accuracy = len(ordered), sum(ordered) / len(ordered)
    kept = sorted({round(count * step / _CURVE_POINTS) for step in range(_CURVE_POINTS + 1)}, reverse=True)
    ours = tuple((1 - k / count, (sum(ordered[:k]) + count - k) / count) for k in kept)
    wrong = 1 - accuracy
    best: Points = ((0.0, accuracy), (wrong, 1.0), (1.0, 1.0))
    series = [
        Series(name="by confidence", points=ours, colour=1),
        Series(name="random", points=((0.0, accuracy), (1.0, 1.0)), colour=3, dashed=True),
        Series(name="oracle: only the wrong ones", points=best, colour=4, dashed=True),
    ]
    said = ""
    if (error := outcome.served_error) is not None:
        share = 1 - outcome.served_share
        here = (share, 1 - error * outcome.served_share)
        series.append(Series(name="the chosen threshold", points=(here,), colour=2, dots=True))
        said = f" The chosen threshold sends {percent(share)} there: {percent(here[1])}."
    return Chart(
        id="deferral",
        title="Accuracy against the cloud's share",
        description=f"Alone the model is right in {percent(accuracy)}. What goes to the cloud counts as right.{said}",
        x_name="share of the cloud",
        y_name="accuracy",
        series=tuple(series),
        y_range=(_floor(accuracy), 1.0),
    )


def reliability(outcome: Outcome) -> Chart:
    """Stated confidence against how often it was right, in bins of equal size."""
    ordered = sorted(outcome.judged, key=lambda item: item.confidence)
    size = math.ceil(len(ordered) / _BINS)
    bins = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    points = tuple((_mean([item.confidence for item in part]), _mean([item.right for item in part])) for part in bins)
    spread = tuple(share_interval(sum(item.right for item in part), len(part)) for part in bins)
    ece = outcome.artefact.ece
    return Chart(
        id="reliability",
        title="Reliability",
        description=f"On the line, a stated confidence is how often the answer was right; bars are 95 % intervals. "
        f"The mean distance from it is {percent(ece or 0.0)}.",
        x_name="stated confidence",
        y_name="right",
        series=(
            Series(name="exact", points=((0.0, 0.0), (1.0, 1.0)), colour=3, dashed=True),
            Series(name=f"{len(bins)} bins of {size} items", points=points, colour=1, dots=True, spread=spread),
        ),
    )


def coverage(outcome: Outcome) -> Chart:
    """What could be served against the error allowed: certified, and in hindsight."""
    scores = [item.confidence for item in outcome.judged]
    right = [item.right for item in outcome.judged]
    delta, thresholds = outcome.target.delta, grid(scores)
    certified = []
    for alpha in TARGETS:
        found = certify(scores, right, alpha=alpha, delta=delta, thresholds=thresholds, traffic_scores=scores)
        certified.append((alpha, 0.0 if found is None else found.coverage))
    ordered = [item.right for item in _trusted_first(outcome)]
    hindsight = tuple((alpha, _served_at(ordered, alpha)) for alpha in TARGETS)
    some = next((f"from {percent(alpha)} on" for alpha, share in certified if share), "at none of these")
    return Chart(
        id="coverage",
        title="Share served locally against the error allowed",
        description=f"Something can be certified {some} (confidence {percent(1 - delta)}, each point for itself). "
        "In hindsight: the most that kept the error on these very items, which promises nothing.",
        x_name="error allowed",
        y_name="served locally",
        series=(
            Series(name="certified", points=tuple(certified), colour=1),
            Series(name="in hindsight", points=hindsight, colour=3, dashed=True),
        ),
        x_range=(0.0, TARGETS[-1]),
    )


def _trusted_first(outcome: Outcome) -> list[Judged]:
    return sorted(outcome.judged, key=lambda item: -item.confidence)


def _served_at(ordered: Sequence[bool], alpha: float) -> float:
    """The largest share of the most trusted items that errs in at most ``alpha``."""
    best = wrong = 0
    for count, right in enumerate(ordered, 1):
        wrong += not right
        if wrong <= alpha * count:
            best = count
    return best / len(ordered)


def _floor(accuracy: float) -> float:
    return max(0.0, math.floor(accuracy * 10 - 0.2) / 10)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# -- words and tables ------------------------------------------------------------------------------------------------


def _facts(outcome: Outcome) -> str:
    artefact, error = outcome.artefact, outcome.served_error
    facts = [
        ("accuracy of all answers", f"{artefact.accuracy:.3f}"),
        ("AUROC", "-" if artefact.auroc is None else f"{artefact.auroc:.3f}"),
        ("served of the test half", percent(outcome.served_share)),
        ("wrong among those", "-" if error is None else percent(error)),
        ("served at best, with a perfect score", percent(outcome.most_share)),
    ]
    if (certificate := artefact.certificate) is not None:
        facts.append(("bound on the error", percent(certificate.bound)))
    if artefact.threshold is None and outcome.labels_needed is not None:
        facts.append(("labels that might do", f"about {outcome.labels_needed}"))
    return "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts) + "</dl>"


def _confusion(outcome: Outcome, options: Sequence[str]) -> str:
    """Of a closed set: what would be served, by the right option and the chosen one."""
    pairs = Counter(item.options for item in outcome.served if item.options is not None)
    if not options:
        return ""
    head = "<section><h2>What would be served</h2>"
    if not pairs:
        return f"{head}<p>Nothing of the test half.</p></section>"
    if len(options) <= _MOST_OPTIONS:
        said = "<p>Rows: the right option; columns: the one chosen.</p>"
        return f'{head}{said}<div class="wide">{_square(pairs, options)}</div></section>'
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]][:_MOST_PAIRS]
    rows = "".join(
        f"<tr><td>{escape(options[right])}</td><td>{escape(options[chosen])}</td><td>{count}</td></tr>"
        for (right, chosen), count in wrong
    )
    names = "".join(f"<th scope=col>{name}</th>" for name in ("right", "served", "times"))
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{head}<p>The most frequent errors of {sum(pairs.values())} served.</p>{table}</section>"


def _square(pairs: Counter[tuple[int, int]], options: Sequence[str]) -> str:
    columns = "".join(f'<th scope=col class="tall"><span>{escape(option)}</span></th>' for option in options)
    rows = "".join(
        f"<tr><th scope=row>{escape(option)}</th>{''.join(_cells(pairs, right, len(options)))}</tr>"
        for right, option in enumerate(options)
    )
    return f'<table class="confusion"><thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table>'


def _cells(pairs: Counter[tuple[int, int]], right: int, options: int) -> Iterator[str]:
    for chosen in range(options):
        count = pairs[(right, chosen)]
        kind = "" if not count else ' class="good"' if right == chosen else ' class="bad"'
        yield f"<td{kind}>{count or ''}</td>"


def _levels(outcome: Outcome) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(tried.level.value)}</th>"
        + (
            f"<td colspan=5>{escape(tried.problem)}</td>"
            if tried.problem is not None
            else "".join(f"<td>{_number(n)}</td>" for n in (tried.accuracy, tried.auroc, tried.aurc, tried.brier))
            + f"<td>{'used' if tried.used else ''}</td>"
        )
        + "</tr>"
        for tried in outcome.tried
    )
    names = ("level", "accuracy", "AUROC", "AURC", "Brier", "")
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return (
        "<section><h2>Levels, in cross-validation on the fitting half</h2><p>A level is used only where it is better "
        'than the one before beyond its noise.</p><div class="wide"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _provenance(outcome: Outcome, about: Provenance) -> str:
    source = (
        "gold labels" if outcome.artefact.source is LabelSource.GOLD else "the cloud's answers: right means it agrees"
    )
    facts = [
        ("task", f"{about.task}, definition {about.definition_sha256[:16]}"),
        ("model", f"{about.model}, sha256 {about.model_sha256}"),
        (
            "labels",
            f"{about.data}: {outcome.fitted} items to fit on, {outcome.certified_on} others to certify; {source}",
        ),
        ("made", f"{about.made_at} by edged {__version__}, version {about.version} of the task"),
    ]
    rows = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts)
    return (
        f'<section><h2>Where it comes from</h2><div class="wide"><table><tbody>{rows}</tbody></table></div>'
        "<p>The stated error is that among locally served answers, for traffic like these items, on average over the "
        "task and not per request.</p></section>"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_STYLE = """
:root{color-scheme:light dark;--text:#1d2329;--soft:#5b6670;--page:#fff;--grid:#e3e7eb;
--c1:#0b62c4;--c2:#c2410c;--c3:#6b7680;--c4:#177245;--good:#d7efe0;--bad:#f9d9cd}
@media (prefers-color-scheme:dark){:root{--text:#e6eaee;--soft:#a5b0ba;--page:#14181c;--grid:#2c343b;
--c1:#6fb1ff;--c2:#ff9d6b;--c3:#9aa6b1;--c4:#6fd39b;--good:#1d4a30;--bad:#5c2c1b}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1rem}h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 1rem}
h2{font-size:1.1rem;margin:0 0 .3rem}header p,figcaption p,section p{color:var(--soft);margin:0 0 .5rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.8rem;margin:0 0 1.5rem}
dl div{border-top:2px solid var(--grid);padding-top:.3rem}dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.25rem}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));
gap:2rem}figure{margin:0}svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:11px}
.axis{stroke:var(--soft);fill:none}.grid{stroke:var(--grid);fill:none}.line{fill:none;stroke-width:2}
.bar{stroke-width:1.5;opacity:.6}.dashed{stroke-dasharray:5 4}
.line.c1,.bar.c1{stroke:var(--c1)}.line.c2,.bar.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.line.c4{stroke:var(--c4)}circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}
.legend{list-style:none;margin:.2rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem}
.key{display:inline-block;width:1.2em;border-top:3px solid;margin-right:.4em;vertical-align:middle}
.key.dashed{border-top-style:dashed}.key.c1{border-color:var(--c1)}.key.c2{border-color:var(--c2)}
.key.c3{border-color:var(--c3)}.key.c4{border-color:var(--c4)}section{margin-top:2rem}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}th,td{padding:.25rem .6rem;text-align:left;vertical-align:top;
border-bottom:1px solid var(--grid)}.confusion td{text-align:right}
.good{background:var(--good)}.bad{background:var(--bad)}
.tall{vertical-align:bottom}.tall span{writing-mode:vertical-rl;transform:rotate(180deg)}
td{overflow-wrap:anywhere}summary{cursor:pointer;color:var(--soft);font-size:.85rem}
"""
