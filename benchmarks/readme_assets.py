"""Make what the README shows: docs/answer.png and the demo's table.

    python benchmarks/readme_assets.py

Runs the demo and puts its table between the fences of README.md that hold `demr demo` output.
"""

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

from demr.demo import run_demo, search_demo
from demr.report import answer_figure, search_table

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"(beside the answers:\n\n```text\n).*?(\n```)", re.DOTALL)


def main() -> None:
    """Search the demo video and write both."""
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), 0)
        result, truth = search_demo(Path(folder) / "shapes.mp4", 0)
    answer_figure(result, ROOT / "docs" / "answer.png", truth)
    stream = io.StringIO()
    Console(file=stream, width=100).print(search_table(result, truth))
    table = "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(_FENCE.sub(lambda m: m[1] + table + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
