"""Small valid inputs of every kind that the commands read, to be damaged by the fuzz."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import yaml
from tests.encoders.clip_models import build_model

VIDEOS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "libopus"),
    "webm": ("libvpx", "libopus"),
    "ts": ("mpeg2video", "mp2"),
    "avi": ("mpeg4", "mp2"),
    "mpg": ("mpeg2video", "mp2"),
}
ANNOTATIONS = (
    *("labels.jsonl", "captions.json", "frames.json", "charades.txt", "table.csv"),
    *("didemo.json", "nlq.json", "youcook2.json", "hirest.json"),
)
_RATE = 25
_QUERIES = ("a person opens the door", "someone drinks coffee", "the dog runs away")


def build_corpus(root: Path, world: Path, run: Path) -> Path:
    """Write the corpus into a new folder and return it.

    Args:
        root: The folder.
        world: A rendered shapes world with features.
        run: A run that was trained on it.
    """
    root.mkdir(parents=True)
    (root / "world").symlink_to(world)
    (root / "run").symlink_to(run)
    _write_videos(root)
    _write_annotations(root)
    _write_features(root)
    build_model(root / "clip", "clip")
    (root / "queries.txt").write_text("a star\nthe red circle bounces\n", encoding="utf-8")
    shutil.copyfile(run / "config.yaml", root / "recipe.yaml")
    grid = {"title": "lr", "sweep": "retrieval.lr", "values": [1e-3, 1e-4]}
    (root / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    return root


def _write_videos(root: Path) -> None:
    for ending, (codec, sound) in VIDEOS.items():
        with av.open(str(root / f"video.{ending}"), "w") as container:
            stream = container.add_stream(codec, _RATE)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            audio = container.add_stream(sound, 48000)
            assert isinstance(audio, av.AudioStream)
            audio.layout = "mono"
            for index in range(2 * _RATE):
                image = np.full((64, 96, 3), 30, np.uint8)
                image[20:40, index : index + 20] = (220, 40, 40)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
            for index in range(2 * 48):
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1000), np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts = 48000, index * 1000
                frame.time_base = Fraction(1, 48000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def _write_annotations(root: Path) -> None:
    records = [
        {
            "qid": number,
            "query": query,
            "vid": f"v{number % 2}",
            "duration": 20.0,
            "relevant_windows": [[2.0 * number, 2.0 * number + 6.0]],
            "relevant_clip_ids": [number, number + 1, number + 2],
            "saliency_scores": [[1, 2, 3], [2, 2, 4], [0, 1, 1]],
        }
        for number, query in enumerate(_QUERIES)
    ]
    lines = [json.dumps(record) for record in records]
    (root / "labels.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, document in _documents().items():
        (root / name).write_text(json.dumps(document), encoding="utf-8")
    text = "".join(f"v{n} {n}.5 {n + 4}.0##{query}.\n" for n, query in enumerate(_QUERIES))
    (root / "charades.txt").write_text(text, encoding="utf-8")
    table = "".join(f"v{n},{query},{n}.5,{n + 4}.0\n" for n, query in enumerate(_QUERIES))
    (root / "table.csv").write_text("video,query,start,end\n" + table, encoding="utf-8")
    predictions = [
        {
            "qid": record["qid"],
            "query": record["query"],
            "vid": record["vid"],
            "pred_relevant_windows": [[1.0, 7.0, 0.9], [4.0, 9.5, 0.4]],
            "pred_saliency_scores": [0.1] * 10,
            "present": 0.7,
            "intervals": [[[0.0, 2.0], [6.0, 8.0]], [[3.0, 5.0], [9.0, 10.0]]],
            "aleatoric": [[0.5, 0.5], [1.0, 1.0]],
            "epistemic": [[0.1, 0.1], [0.2, 0.2]],
        }
        for record in records
    ]
    lines = [json.dumps(record) for record in predictions]
    (root / "predictions.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _documents() -> dict[str, object]:
    """A small file of each form of annotations that is one JSON document, by its name."""
    captions = {
        f"v{number}": {
            "duration": 20.0,
            "timestamps": [[1.0, 4.5], [3.0, 20.0]],
            "sentences": [_QUERIES[0], _QUERIES[number]],
        }
        for number in range(2)
    }
    frames = {
        f"s{number}.avi": {
            "timestamps": [[10, 90], [50, 300]],
            "sentences": list(_QUERIES[:2]),
            "num_frames": 600,
            "fps": 29.4,
        }
        for number in range(2)
    }
    didemo = [
        {
            "video": f"v{number}.mp4",
            "description": query,
            "times": [[0, 1], [1, 1], [number, 2]],
            "annotation_id": number,
            "num_segments": 6,
        }
        for number, query in enumerate(_QUERIES)
    ]
    queries = [
        {"query": query, "clip_start_sec": 2.0 * number, "clip_end_sec": 2.0 * number + 3.5}
        for number, query in enumerate([*_QUERIES, None])
    ]
    clip = {
        "clip_uid": "c0",
        "video_start_sec": 30.0,
        "video_end_sec": 50.0,
        "annotations": [{"annotation_uid": "a0", "language_queries": queries}],
    }
    segments = [
        {"segment": [3 * number, 3 * number + 5], "id": number, "sentence": query}
        for number, query in enumerate(_QUERIES)
    ]
    entry = {"duration": 20.0, "subset": "training", "recipe_type": "113", "annotations": segments}
    moment = {"relevant": True, "clip": True, "v_duration": 20, "bounds": [2, 9], "steps": []}
    return {
        "captions.json": captions,
        "frames.json": frames,
        "didemo.json": didemo,
        "nlq.json": {"version": "1", "videos": [{"video_uid": "u0", "clips": [clip]}]},
        "youcook2.json": {"database": {"v0": entry}},
        "hirest.json": {query: {"v0.mp4": moment} for query in _QUERIES},
    }


def _write_features(root: Path) -> None:
    rng = np.random.default_rng(0)
    (root / "npz").mkdir()
    with h5py.File(root / "features.h5", "w") as file:
        for number in range(2):
            rows = rng.standard_normal((10, 8)).astype(np.float32)
            np.savez(root / "npz" / f"v{number}.npz", features=rows)
            file.create_dataset(f"v{number}", data=rows, compression="gzip")
