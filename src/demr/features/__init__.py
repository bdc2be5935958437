"""Features on disk (feature packs), features that others published, and features as model input.

It imports :mod:`demr.encoders` for what features are, :mod:`demr.machine`, and torch. Begin with
:func:`prepare_video` in ``prepare.py``, which training and search share; ``pack.py`` stores clip
features, ``imports.py`` brings in published ones, whose forms ``sources.py`` reads.
"""

from demr.features.imports import FeatureImport, import_features
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.features.prepare import (
    align_streams,
    as_float32,
    check_storable,
    clip_spans,
    feature_statistics,
    prepare_query,
    prepare_video,
    span_fractions,
)
from demr.features.sources import open_source

__all__ = [
    "FeatureImport",
    "FeaturePack",
    "FeaturePackWriter",
    "align_streams",
    "as_float32",
    "check_storable",
    "clip_spans",
    "feature_statistics",
    "import_features",
    "open_source",
    "prepare_query",
    "prepare_video",
    "span_fractions",
]
