"""The embedded world: short videos of moving coloured shapes, with sentences and true windows.

It imports :mod:`demr.encoders`, :mod:`demr.features` and what lies below. Begin with ``script.py``,
the script of a scene, then ``world.py``, which writes one, ``render.py`` and ``queries.py``;
``dataset.py``, which needs torch, makes a data set of them.
"""

from demr.shapes.queries import demo_annotations, scene_annotations, thing_annotations
from demr.shapes.render import frames, render_scene
from demr.shapes.script import Event, Scene, event_table
from demr.shapes.world import demo_scene, make_scene

__all__ = [
    "Event",
    "Scene",
    "demo_annotations",
    "demo_scene",
    "event_table",
    "frames",
    "make_scene",
    "render_scene",
    "scene_annotations",
    "thing_annotations",
]
