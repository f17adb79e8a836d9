"""The report has the field's words, and no title of a plot is cut."""

from __future__ import annotations

from functools import partial

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from turbo_runtime.distill.evaluation import record as report
from turbo_runtime.distill.evaluation.record import DomainRecord, Evaluation, Record
from turbo_runtime.distill.evaluation.speedup_benchmark import Speedup

DOMAIN = DomainRecord(
    Evaluation(40, 100, (0.8, 0.5), 2.5),
    Evaluation(41, 110, (0.8, 0.5), 2.6),
    "sha256:1",
    (Speedup(1, 9, 30.0, 1.2, 1.5, 3.0, 0), Speedup(8, 9, 90.0, 1.1, 1.25, 3.0, 0)),
)
RECORD = Record("heads", {"chat": DOMAIN}, {"training": 20}, 3, (2.0, 1.5), (1.5, 2.0), 1, {"training": 9.0})


def test_it_shows_speedup_acceptance_by_position_and_loss() -> None:
    page = report.render(RECORD, "a/model", "draft")
    headings = [part.partition("</h2>")[0] for part in page.split("<h2>")[1:]]
    assert headings == ["Speedup", "Acceptance by position", "Loss and acceptance length by epoch"]
    assert "<th>speedup at 8, before</th><th>speedup at 8, after</th>" in page
    assert "<td>1.10</td><td>1.25</td>" in page
    assert page.count("<svg") == 3


@pytest.mark.parametrize("name", ["chat", "questions of customers " * 5, "questions-of-customers" * 5])
def test_no_text_of_a_plot_is_cut_or_lies_over_the_next_plot(name: str) -> None:
    speedups = partial(report._plot_speedups, name, DOMAIN)
    plots = [partial(report._plot_losses, RECORD), partial(report._plot_acceptance_lengths, RECORD)]
    for pair in ([speedups, speedups], plots):
        figure = report.draw(pair)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        width, height = figure.canvas.get_width_height()
        for number, axes in enumerate(figure.axes):
            for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
                box = text.get_window_extent(renderer)
                assert number * width / 2 <= box.x0, text.get_text()
                assert box.x1 <= (number + 1) * width / 2, text.get_text()
                assert box.y0 >= 0, text.get_text()
                assert box.y1 <= height, text.get_text()
