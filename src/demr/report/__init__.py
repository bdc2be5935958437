"""Results for people and for other programs: tables, data formats, the HTML page, figures.

It imports :mod:`demr.search` and what lies below, and no torch. Begin with ``wording.py``, which
says what is shown of a search; ``page.py`` is the largest of those that show it.
"""

from demr.report.figures import error_figure, noise_figure, sweep_figure, variant_figure
from demr.report.formats import to_csv, to_json, to_srt
from demr.report.page import write_html_report
from demr.report.search_figure import search_figure
from demr.report.several import ShownAnswer, shown_answers, videos_table
from demr.report.tables import metrics_table, search_table
from demr.report.wording import Windows, explain_answer, unique_notes

__all__ = [
    "ShownAnswer",
    "Windows",
    "error_figure",
    "explain_answer",
    "metrics_table",
    "noise_figure",
    "search_figure",
    "search_table",
    "shown_answers",
    "sweep_figure",
    "to_csv",
    "to_json",
    "to_srt",
    "unique_notes",
    "variant_figure",
    "videos_table",
    "write_html_report",
]
