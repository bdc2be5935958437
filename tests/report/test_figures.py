import warnings
from pathlib import Path

import pytest
from matplotlib.cbook import is_math_text
from tests.report.searches import answer, moment, result_of

from demr.machine.terminal import printable
from demr.report.figures import error_figure, noise_figure, sweep_figure, variant_figure
from demr.report.output import figure_text, markdown
from demr.report.search_figure import search_figure
from demr.search.result import SearchResult


def test_search_figure_is_a_picture(result: SearchResult, tmp_path: Path) -> None:
    money = answer("costs $5 and $6^{", moments=[moment(30.0, 36.0)])
    truth = {"a red circle bounces": [(62.0, 70.0)]}
    path = search_figure(result_of(*result.answers, money), tmp_path / "new" / "answer.png", truth)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [found.name for found in path.parent.iterdir()] == ["answer.png"]


def test_search_figure_without_intervals_or_answers(
    zero_shot: SearchResult, tmp_path: Path
) -> None:
    for result in (zero_shot, result_of()):
        assert search_figure(result, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# Formulas that matplotlib cannot read, what it hides or never ends, and what no font has.
NAMES = [
    *("$x_", "$\\frac{$", "a $5 and $6^{", "_hidden", "\\$", "\x1b[31m[/b]", "🦒 猫 رجل", "a\nb"),
    *("\udcff", "<b>&amp;", "", "%s {x}", "x" * 300),
]


def test_names_in_figures_are_only_names(tmp_path: Path) -> None:
    panels = {name: {split: [[1.0, 2.0]] * len(NAMES) for split in NAMES} for name in NAMES[:2]}
    curves = {"video": [0.0, 1.0, 2.0], "text": [0.0, 0.5, 0.7]}
    balance = {"levels": [0.0, 0.5, 1.0], "EU": curves, "AU+EU": curves}
    bins = {"error s": [1.0, 2.0], "evidence": [3.0, 2.0], "EU s": [1.0, 2.0], "AU+EU s": [1.0, 3]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Names that are too long for the picture are the only thing to be warned of.
        warnings.filterwarnings("ignore", message=".*constrained_layout not applied.*")
        variant_figure(NAMES, panels, tmp_path / "variants.png")
        for name in NAMES:
            sweep_figure(name, NAMES, panels, tmp_path / "sweep.png")
            noise_figure({name: [balance], "other": [balance]}, tmp_path / "noise.png")
            error_figure({name: [bins], "other": [bins]}, tmp_path / "errors.png")
            search_figure(result_of(answer(name, moments=[moment(1.0, 2.0)])), tmp_path / "s.png")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("text", NAMES)
def test_text_is_drawn_as_it_is(text: str) -> None:
    given = figure_text(text)
    assert not is_math_text(given)
    # What matplotlib does to text that is no formula.
    assert given.replace(r"\$", "$").strip() == printable(text).strip()


def test_markdown_cells_stay_cells() -> None:
    assert markdown("a | b") == r"a \| b"
    assert markdown("[x](javascript:1) <img> `c` *d* _e_ f_g # h") == (
        r"\[x\](javascript:1) \<img\> \`c\` \*d\* \_e\_ f_g # h"
    )
    assert markdown("# a\n\x1b") == r"\# a\\n\\x1b"
