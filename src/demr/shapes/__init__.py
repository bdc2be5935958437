"""The embedded world: short videos of moving coloured shapes, with sentences and true windows.

It imports :mod:`demr.encoders`, :mod:`demr.features` and what lies below. Begin with ``world.py``,
which draws a scene, then ``render.py``.
"""

from demr.shapes.language import demo_annotations, scene_annotations
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
]
