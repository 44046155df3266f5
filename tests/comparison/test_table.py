from pathlib import Path

from rich.console import Console

from tuner.comparison.compare import Compared, Comparison
from tuner.comparison.differences import CategoryDifference, Differences
from tuner.comparison.disagreement import Disagreement, Sided
from tuner.comparison.table import comparison_table
from tuner.evaluation.latency import LatencyFigures

MISCHIEF = "[red]a[/b]"


def test_names_are_shown_as_they_are() -> None:
    latency = LatencyFigures(4.0, 5.0, 5.0, 4.0, 4.0, 250.0)
    one = Compared(Path("one.pb"), {"mAP": 0.5}, latency, 1_000_000)
    categories = tuple(CategoryDifference(i, 9, 9, 0.5, 0.4, None, certain=False) for i in (3, 17))
    found = Comparison(
        images=20,
        iou_type="bbox",
        labels="annotations",
        a=one,
        b=one,
        differences=Differences(-0.1, (-0.2, 0.0), categories),
        score=0.3,
        differing=1,
        disagreements=(Disagreement(7, MISCHIEF, 1, Sided(1, 1), Sided(1, 0), 2),),
        category_names={3: MISCHIEF},
    )
    console = Console(width=120, highlight=False)
    with console.capture() as said:
        console.print(comparison_table(found))
    rows = [row.split() for row in said.get().splitlines()]
    assert [row[:3] for row in rows if row[:1] in (["3"], ["17"])] == [["3", MISCHIEF, "9"], ["17", "9", "0.5000"]]
    assert [row[1] for row in rows if row[:1] == [MISCHIEF]] == ["2"]
    assert [one["name"] for one in found.to_json()["categories"]] == [MISCHIEF, None]
