"""Draws the timeline of an explanation, in a terminal and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.sax.saxutils import escape, quoteattr

from rich.text import Text

from clockwork.config.observe import TIMELINE_WIDTH_MIN
from clockwork.observe.explain import LaneSpan, LaneTimeline, Timeline
from clockwork.observe.palette import ANSWER_LOOKS, EXECUTING, LOADING, WAITING, StateStyle
from clockwork.system.clock import duration
from clockwork.wire.telling import visible

LOOKS = {"execute": EXECUTING, "load": LOADING}
OWN_SIGN = "●"  # The sign of the request's own batch and of its model's loads in a terminal
PREDICTED_SIGN = "~"  # The sign of an action that had not ended in a terminal
_OUTCOME_COLORS = {look.word: look.color for look in ANSWER_LOOKS}

_WIDTH, _LANE, _GAP, _TOP, _BOTTOM, _CHARACTER = 960, 22, 6, 58, 40, 8
"""Pixels of a picture: its width, a lane's height, the gap between lanes, the margins above and below them,
and a character's width."""

_STYLE = """
text{font:12px system-ui,sans-serif;fill:#1a1a1a} .title{font-size:15px;font-weight:600} .quiet{fill:#666}
.lane{fill:#f2f2f2} .label{pointer-events:none} .execute{fill:#fff} .load{fill:#000} .own{stroke:#000;stroke-width:2} .mark{stroke:#1a1a1a}
.back{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#eee} .quiet{fill:#aaa} .lane{fill:#2a2a2a} .own{stroke:#fff}
.mark{stroke:#eee} .back{fill:#161616}}
"""


def draw_text(timeline: Timeline, width: int) -> Iterator[Text]:
    """Yield the lines of a timeline that is ``width`` columns wide."""
    names = max([len(visible(lane.name)) for lane in timeline.lanes], default=0)
    columns = max(width, TIMELINE_WIDTH_MIN) - names - 1
    per_column = (timeline.until_ns - timeline.from_ns) / columns

    def column_of(at_ns: int) -> int:
        return min(max(int((at_ns - timeline.from_ns) / per_column), 0), columns - 1)

    marks = {column_of(moment.at_ns): moment for moment in reversed(timeline.moments)}
    line = Text(" " * (names + 1))
    for column in range(columns):
        line.append(marks[column].sign if column in marks else " ", "bold")
    yield line
    for lane in timeline.lanes:
        line = Text(visible(lane.name).rjust(names) + " ", no_wrap=True)
        for character, style in _cells(lane, columns, column_of, set(marks)):
            line.append(character, style)
        yield line
    yield _axis(timeline, names, columns, column_of(timeline.zero_ns))
    legend = Text()
    for look in (EXECUTING, LOADING):
        legend.append(f"{look.sign} ", look.color).append(f"{look.word}   ")
    legend.append(
        f"{OWN_SIGN} its own batch, or a load of its model   {PREDICTED_SIGN} not ended, as predicted"
    )
    yield legend
    yield Text("   ".join(f"{moment.sign} {moment.word}" for moment in timeline.moments))


def _cells(
    lane: LaneTimeline, columns: int, column_of: Callable[[int], int], marked: set[int]
) -> list[tuple[str, str]]:
    cells = [("│", "dim") if column in marked else ("·", "dim") for column in range(columns)]
    # the request's own action is drawn over others
    for span in sorted(lane.spans, key=lambda drawn: drawn.is_own):
        look = LOOKS[span.what]
        sign = OWN_SIGN if span.is_own else PREDICTED_SIGN if span.is_predicted else look.sign
        first, last = column_of(span.begin_ns), column_of(max(span.end_ns - 1, span.begin_ns))
        style = f"bold {look.color}" if span.is_own else look.color
        for column in range(first, last + 1):
            cells[column] = (sign, style)
        if last - first > len(span.label) + 1:
            for place, character in enumerate(f" {span.label} "):
                cells[first + 1 + place] = (character, style)
    return cells


def _axis(timeline: Timeline, names: int, columns: int, zero: int) -> Text:
    """Return the axis, labelled with times relative to the arrival at both ends and at the arrival."""
    begin, end = (
        f"-{duration(timeline.zero_ns - timeline.from_ns)}",
        duration(timeline.until_ns - timeline.zero_ns),
    )
    line = list(" " * columns)
    for place, text in ((columns - len(end), end), (0, begin), (max(zero, len(begin) + 1), "0")):
        line[place : place + len(text)] = text
    return Text(" " * (names + 1) + "".join(line), "dim")


def draw_svg(timeline: Timeline) -> str:
    """Return the timeline as SVG, for light and dark backgrounds."""
    names = 12 + _CHARACTER * max([len(lane.name) for lane in timeline.lanes], default=0)
    scale = (_WIDTH - names - 12) / (timeline.until_ns - timeline.from_ns)
    height = _TOP + len(timeline.lanes) * (_LANE + _GAP) + _BOTTOM

    def x_of(at_ns: int) -> float:
        return round(
            names + (min(max(at_ns, timeline.from_ns), timeline.until_ns) - timeline.from_ns) * scale, 2
        )

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            f"aria-label={quoteattr(visible(timeline.title))}><style>{_STYLE}</style>"
        ),
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        f'<text class="title" x="12" y="22">{escape(visible(timeline.title))}</text>',
    ]
    for number, lane in enumerate(timeline.lanes):
        y = _TOP + number * (_LANE + _GAP)
        parts.append(
            f'<text x="{names - 8}" y="{y + 15}" text-anchor="end">{escape(visible(lane.name))}</text>'
        )
        parts.append(
            f'<rect class="lane" x="{names}" y="{y}" width="{_WIDTH - names - 12}" height="{_LANE}"/>'
        )
        for span in sorted(lane.spans, key=lambda drawn: drawn.is_own):
            parts.append(_svg_span(span, x_of(span.begin_ns), x_of(span.end_ns), y))
    bottom = _TOP + len(timeline.lanes) * (_LANE + _GAP)
    for place, moment in enumerate(timeline.moments):
        x, color = x_of(moment.at_ns), _OUTCOME_COLORS.get(moment.word, WAITING.color)
        text_y = 38 if place % 2 == 0 else 51
        parts.append(
            f'<line class="mark" x1="{x}" x2="{x}" y1="{text_y + 3}" y2="{bottom}" stroke-dasharray="3 3"/>'
        )
        parts.append(f'<circle cx="{x}" cy="{text_y - 4}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 7}" y="{text_y}">{escape(visible(moment.word))}</text>')
    y = bottom + 14
    parts.append(
        f'<text class="quiet" x="{names}" y="{y}">-{duration(timeline.zero_ns - timeline.from_ns)}</text>'
    )
    parts.append(f'<text class="quiet" x="{x_of(timeline.zero_ns)}" y="{y}" text-anchor="middle">0</text>')
    end = duration(timeline.until_ns - timeline.zero_ns)
    parts.append(f'<text class="quiet" x="{_WIDTH - 12}" y="{y}" text-anchor="end">{end}</text>')
    x = names
    for look in (EXECUTING, LOADING):
        parts.append(f'<rect x="{x}" y="{y + 8}" width="12" height="12" fill="{look.color}"/>')
        parts.append(f'<text x="{x + 17}" y="{y + 19}">{look.word}</text>')
        x += 100
    parts.append(f'<rect class="own" x="{x}" y="{y + 8}" width="12" height="12" fill="{EXECUTING.color}"/>')
    parts.append(f'<text x="{x + 17}" y="{y + 19}">its own batch, or a load of its model</text></svg>')
    return "\n".join(parts) + "\n"


def _svg_span(span: LaneSpan, begin: float, end: float, y: int) -> str:
    look: StateStyle = LOOKS[span.what]
    width = max(end - begin, 1)
    shown = 'class="own"' if span.is_own else 'opacity="0.6"'
    dashes = ' stroke-dasharray="4 2" stroke="#888"' if span.is_predicted else ""
    parts = [
        (
            f'<rect x="{begin}" y="{y + 1}" width="{width:.2f}" height="{_LANE - 2}" fill="{look.color}" {shown}{dashes}>'
            f"<title>{escape(visible(span.text))}</title></rect>"
        )
    ]
    if width > _CHARACTER * len(span.label) + 8:
        parts.append(
            f'<text class="label {span.what}" x="{begin + 4}" y="{y + 15}">{escape(visible(span.label))}</text>'
        )
    return "".join(parts)
