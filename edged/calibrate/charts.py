"""Line charts as inline SVG that follows the page's colours, each with a title, a description and its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 10, 42
_TICKS = 5
_DOT = 3.5

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or dots; ``spread`` holds the low and high end of a bar at each point."""

    name: str
    points: Points
    colour: int
    dots: bool = False
    dashed: bool = False
    spread: tuple[tuple[float, float], ...] = ()

    @property
    def style(self) -> str:
        """Its classes."""
        return f"c{self.colour} dashed" if self.dashed else f"c{self.colour}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Shares over shares. ``description`` says in words what is to be seen."""

    id: str
    title: str
    description: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)

    def svg(self) -> str:
        """The drawing alone."""
        label = f'aria-labelledby="{self.id}-title {self.id}-desc"'
        parts = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" {label}>',
            f'<title id="{self.id}-title">{escape(self.title)}</title>',
            f'<desc id="{self.id}-desc">{escape(self.description)}</desc>',
            *self._axes(),
            *(mark for series in self.series for mark in self._marks(series)),
            "</svg>",
        ]
        return "".join(parts)

    def html(self) -> str:
        """The drawing, its legend, and the numbers as a table for those who do not see it."""
        legend = "".join(
            f'<li><span class="key {series.style}"></span>{escape(series.name)}</li>' for series in self.series
        )
        return (
            f"<figure><figcaption><h2>{escape(self.title)}</h2><p>{escape(self.description)}</p></figcaption>"
            f'{self.svg()}<ul class="legend">{legend}</ul>{self._numbers()}</figure>'
        )

    def _numbers(self) -> str:
        rows = "".join(
            f"<tr><th scope=row>{escape(series.name)}</th><td>{_percent(x)}</td><td>{_percent(y)}</td></tr>"
            for series in self.series
            for x, y in series.points
        )
        names = ("line", self.x_name, self.y_name)
        head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
        return (
            f'<details><summary>The numbers</summary><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div></details>"
        )

    def _axes(self) -> Sequence[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        marks = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
        for step in range(_TICKS + 1):
            share = step / _TICKS
            x = self.x_range[0] + share * (self.x_range[1] - self.x_range[0])
            y = self.y_range[0] + share * (self.y_range[1] - self.y_range[0])
            px, py = self._x(x), self._y(y)
            marks += [
                f'<path class="grid" d="M{px:.1f} {_TOP}V{bottom}M{_LEFT} {py:.1f}H{right}"/>',
                f'<text x="{px:.1f}" y="{bottom + 15}" text-anchor="middle">{_percent(x)}</text>',
                f'<text x="{_LEFT - 5}" y="{py + 4:.1f}" text-anchor="end">{_percent(y)}</text>',
            ]
        middle = (_LEFT + right) / 2
        marks.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(self.x_name)}</text>')
        return marks

    def _marks(self, series: Series) -> Sequence[str]:
        places = [(self._x(x), self._y(y)) for x, y in series.points]
        bars = [
            f'<path class="bar c{series.colour}" d="M{x:.1f} {self._y(low):.1f}V{self._y(high):.1f}"/>'
            for (x, _), (low, high) in zip(places, series.spread, strict=False)
        ]
        if series.dots:
            dots = [f'<circle class="c{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}"/>' for x, y in places]
            return [*bars, *dots]
        if not places:
            return bars
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        return [*bars, f'<path class="line {series.style}" d="M{path}"/>']

    def _x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (_clipped(value, low, high) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (_clipped(value, low, high) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _clipped(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
