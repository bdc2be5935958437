"""A trained model as one file that runs without this package.

It imports :mod:`demr.search` and what lies below. Begin with ``exporting.py``.
"""

from demr.export.exporting import Exported, Localiser, export_model, load_onnx, load_pt2

__all__ = ["Exported", "Localiser", "export_model", "load_onnx", "load_pt2"]
