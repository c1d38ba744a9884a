"""What the worst classes were taken for."""

from collections.abc import Mapping

from mimbench.benchmarks.records import outcomes_of
from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.markup import text

WORST, MISTAKES = 5, 3


def confusions(gathered: Gathered) -> list[str]:
    """Return a table for each checkpoint and benchmark whose outcomes tell."""
    found = []
    for title, runs in gathered.first_seeds():
        for look, path, result in runs:
            if look.twin:
                continue
            for kept in outcomes_of(path, result, gathered.manifest.tasks):
                if taken := kept.taken_for():
                    found.append(draw_confusion(f"{title} · {look.label}", look, taken))
                    break
    return [f'<div class="grid class-grid">{"".join(found)}</div>'] if found else []


def draw_confusion(title: str, look: RowLook, taken: Mapping[str, Mapping[str, float]]) -> str:
    """Return the worst classes with their most frequent mistakes.

    Args:
        title: Of the table.
        look: The row's.
        taken: Class -> predicted class -> share of the class's images in percent.
    """
    right = {name: shares.get(name, 0.0) for name, shares in taken.items()}
    worst = sorted(right, key=lambda name: right[name])[:WORST]
    rows = "".join(_row(name, right[name], taken[name], look) for name in worst)
    return (
        f'<div><h3>{text(title)}</h3><table class="confusion"><thead><tr><th scope="col">class</th>'
        '<th scope="col">right</th><th scope="col">taken for</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(name: str, right: float, shares: Mapping[str, float], look: RowLook) -> str:
    others = sorted(((v, k) for k, v in shares.items() if k != name and v > 0), reverse=True)
    mistakes = ", ".join(f"<b>{text(k)}</b> ({v:.0f} %)" for v, k in others[:MISTAKES])
    return (
        f'<tr><th scope="row">{text(name)}</th><td>{right:.0f} %<i class="share" '
        f'style="width:{0.04 * right:.2f}rem;--tone:{look.tone}"></i></td><td>{mistakes or "·"}</td></tr>'
    )
