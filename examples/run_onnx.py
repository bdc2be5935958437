"""Find moments with an exported model, NumPy and onnxruntime: neither demr nor torch is needed.

    demr export shapes                                    # where demr is; writes shapes.onnx
    python run_onnx.py shapes.onnx video.npz query.npz    # anywhere

``video.npz`` holds ``features``, the clips' raw features (L, Dv), and ``duration_s`` (or give
--duration). Instead of it a feature pack can be named, a folder with index.json, and a video in it
with --vid. ``query.npz`` holds the tokens' raw features (T, Dt) as ``last_hidden_state`` or
``features``. Both come from the encoder that the model was trained on, and are normalised here.

Moments are ranked as the model's calibration says (score, uncertainty, fusion or voting), and what
overlaps a better one by an IoU above 0.7 is dropped: the same moments, scores and deviations that
demr gives. Left out are calibrated intervals and the probability that the moment is in the video
at all (their numbers are in the metadata, under calibration.json): a moment that is absent gets an
answer here too. Deviations are standard deviations in seconds, of the model's ignorance and of
what the footage leaves open.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Columns of one candidate moment each; all are sliced together.
Moments = dict[str, Array]
NMS_IOU, VOTING_IOU = 0.7, 0.3
# Boundaries that move may end up on each other: more are kept at first than are shown.
SPARE, RIVALS = 4, 10


def main() -> None:
    """Print the moments of one query in one video, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what demr export wrote")
    parser.add_argument("video", type=Path, help=".npz, or the folder of a feature pack")
    parser.add_argument("query", type=Path, help=".npz of the query's tokens")
    parser.add_argument("--vid", help="video in the feature pack")
    parser.add_argument("--duration", type=float, help="of the video in seconds")
    parser.add_argument("--top", type=int, default=3, help="moments to show")
    parser.add_argument("--json", action="store_true", help="print JSON, in seconds")
    given = parser.parse_args()
    session = onnxruntime.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    if given.video.is_dir():
        features, duration_s = read_pack(given.video, given.vid)
    else:
        with np.load(given.video) as arrays:
            features = arrays["features"].astype(np.float32)
            duration_s = given.duration or float(arrays.get("duration_s", 0))
        if not duration_s > 0:
            parser.error(f"{given.video} holds no duration_s: give --duration")
    with np.load(given.query) as arrays:
        name = "last_hidden_state" if "last_hidden_state" in arrays else "features"
        tokens = arrays[name].astype(np.float32)
    moments = search(session, facts, features, duration_s, tokens, given.top)
    if given.json:
        print(json.dumps({name: column.tolist() for name, column in moments.items()}))
        return
    for row in range(len(moments["score"])):
        start, end = moments["window_s"][row]
        print(
            f"{start:8.2f} s {spread(moments, row, 0)}  to {end:8.2f} s {spread(moments, row, 1)}"
            f"  score {moments['score'][row]:.2f}"
        )


def spread(moments: Moments, row: int, side: int) -> str:
    """Deviations of a boundary, in seconds."""
    model, footage = moments["epistemic_s"][row, side], moments["aleatoric_s"][row, side]
    return f"± {math.hypot(model, footage):.2f} (model {model:.2f}, footage {footage:.2f})"


def search(
    session: onnxruntime.InferenceSession,
    facts: dict[str, str],
    features: NDArray[np.float32],
    duration_s: float,
    tokens: NDArray[np.float32],
    top: int,
) -> Moments:
    """Prepare, run, rank. ``score`` (N,); the rest in seconds, start and end, (N, 2)."""
    config = json.loads(facts["config.json"])
    calibration = json.loads(facts.get("calibration.json", '{"ranking": "score", "tau": 0}'))
    video, text = prepare(config["encoder"], features, duration_s, tokens)
    if len(video) > config["max_clips"]:
        sys.exit(
            f"{len(video)} clips, where the model reads {config['max_clips']} at once: cut the "
            "video into parts, each with a duration of its own"
        )
    everything = np.ones((1, len(video)), bool), np.ones((1, len(text)), bool)
    inputs = {"video": video[None], "video_mask": everything[0]}
    inputs |= {"text": text[None], "text_mask": everything[1]}
    names = [output.name for output in session.get_outputs()]
    said = dict(zip(names, session.run(names, inputs), strict=True))
    found = {name: column[0].astype(np.float64) for name, column in said.items()}
    # A float32 probability near 1 cannot tell two clips apart; its logit can.
    found["foreground"] = 1 / (1 + np.exp(-found["foreground_logit"]))
    # Likewise alpha near 1; the deviation was computed from alpha - 1 itself.
    found["nig_alpha"] = 1 + found["nig_beta"] / found["aleatoric"] ** 2
    best = select(found, calibration, duration_s, SPARE * max(top, RIVALS))
    windows = in_seconds(best, duration_s)
    owner = suppress(windows, top)
    keep = owner == np.arange(len(owner))
    return {
        "window_s": windows[keep],
        "aleatoric_s": best["aleatoric"][keep] * duration_s,
        "epistemic_s": best["epistemic"][keep] * duration_s,
        "score": best["score"][keep],
    }


def prepare(
    encoder: dict[str, Any],
    features: NDArray[np.float32],
    duration_s: float,
    tokens: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bring features to unit length where the model asks for it, and append clips' fractions."""
    clip_s, streams = encoder["clip_s"], encoder["streams"]
    wanted = max(1, math.ceil((duration_s - 1e-3) / clip_s))
    width = sum(dims for _, dims in streams)
    if features.shape[1] != width or tokens.shape[1] != encoder["text_dim"]:
        sys.exit(
            f"clips of {features.shape[1]} and tokens of {tokens.shape[1]} numbers, where the "
            f"model was trained on {width} and {encoder['text_dim']} ({encoder['name']})"
        )
    if abs(len(features) - wanted) > 2:
        sys.exit(f"{len(features)} clips, where {duration_s:g} s by {clip_s:g} s make {wanted}")
    features = features[:wanted]
    if encoder["normalization"] == "l2":
        ends = np.cumsum([dims for _, dims in streams])[:-1]
        features = np.concatenate([unit(part) for part in np.split(features, ends, axis=1)], axis=1)
        tokens = unit(tokens)
    start_s = np.arange(len(features)) * clip_s
    spans = np.stack([start_s, np.minimum(start_s + clip_s, duration_s)], axis=1) / duration_s
    return np.concatenate([features, spans.astype(np.float32)], axis=1), tokens


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    normalised: NDArray[np.float32] = rows / np.maximum(length, 1e-6)
    return normalised


def select(found: Moments, calibration: dict[str, Any], duration_s: float, count: int) -> Moments:
    """Rank all clips' windows, keep the best of each place, let the others move their ends."""
    ranking, tau = calibration["ranking"], calibration["tau"]
    score = found["foreground"]
    if ranking in ("uncertainty", "fusion") and tau and len(score) > 1:
        doubt = np.log((found["epistemic"] ** 2).mean(axis=1) * duration_s**2 + 1e-12)
        score = score * np.exp(-tau * (doubt - doubt.mean()) / max(doubt.std(), 1e-6))
    ranked = pick(found | {"score": score}, np.argsort(-score, kind="stable"))
    windows = in_seconds(ranked, duration_s)
    owner = suppress(windows, count)
    keep = np.flatnonzero(owner == np.arange(len(owner)))
    if ranking == "fusion":
        return fuse(ranked, owner, keep)
    if ranking == "voting":
        return vote(ranked, windows, keep, calibration.get("disagreement", 1.0))
    return pick(ranked, keep)


def vote(ranked: Moments, windows: Array, keep: NDArray[np.int64], disagreement: float) -> Moments:
    """Ends become the mean of all overlapping windows', by precision; dissent is ignorance."""
    kept = pick(ranked, keep)
    votes = np.stack([iou(window, windows) >= VOTING_IOU for window in windows[keep]])
    votes[np.arange(len(keep)), keep] = True
    nu, alpha, beta = (ranked[name] for name in ("nig_nu", "nig_alpha", "nig_beta"))
    # Foreground over the squared scale of the predictive Student-t.
    weight = ranked["foreground"][:, None] / np.maximum(beta * (1 + nu) / (nu * alpha), 1e-24)
    weight = np.maximum(weight, 1e-300)
    total = votes @ weight
    moved = votes @ (weight * ranked["window"]) / total
    # Where start and end would change places, the voters contradict each other: it stays.
    kept["window"] = np.where(moved[:, :1] > moved[:, 1:], kept["window"], moved)
    away = (ranked["window"] - kept["window"][:, None]) ** 2
    dissent = np.einsum("kn,nb,knb->kb", votes, weight, away) / total
    kept["epistemic"] = np.sqrt(kept["epistemic"] ** 2 + disagreement * dissent)
    return kept


def fuse(ranked: Moments, owner: NDArray[np.int64], keep: NDArray[np.int64]) -> Moments:
    """Sum the evidence of a window and of those it absorbed, weighted by their foreground."""
    kept = {name: column.copy() for name, column in pick(ranked, keep).items()}
    for row, index in enumerate(keep):
        part = pick(ranked, owner == index)
        best = part["foreground"].max()
        weight = (part["foreground"] / best if best > 0 else np.ones(len(part["score"])))[:, None]
        evidence = weight * part["nig_nu"]
        nu = evidence.sum(axis=0)
        window = (evidence * part["window"]).sum(axis=0) / nu
        beta = (weight * part["nig_beta"]).sum(axis=0)
        beta += (evidence * (part["window"] - window) ** 2).sum(axis=0) / 2
        alpha = (weight * part["nig_alpha"]).sum(axis=0) + (weight.sum() - 1) / 2
        if window[0] <= window[1]:  # otherwise its members contradict each other
            kept["window"][row] = window
        kept["aleatoric"][row] = np.sqrt(beta / (alpha - 1))
        kept["epistemic"][row] = np.sqrt(beta / (alpha - 1) / nu)
    return kept


def suppress(windows: Array, limit: int) -> NDArray[np.int64]:
    """For each window, best first, the kept one that absorbed it; -1 once enough are kept."""
    owner = np.full(len(windows), -1)
    kept = 0
    for index, window in enumerate(windows):
        if owner[index] < 0 and kept < limit:
            kept += 1
            owner[(owner < 0) & (iou(window, windows) > NMS_IOU)] = index
            owner[index] = index
    return owner


def iou(window: Array, windows: Array) -> Array:
    """Intersection over union of one window with many."""
    shared = np.minimum(window[1], windows[:, 1]) - np.maximum(window[0], windows[:, 0])
    shared = np.maximum(shared, 0)
    union = (window[1] - window[0]) + (windows[:, 1] - windows[:, 0]) - shared
    ratio: Array = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return ratio


def in_seconds(moments: Moments, duration_s: float) -> Array:
    """Windows inside the video."""
    seconds: Array = np.clip(moments["window"], 0, 1) * duration_s
    return seconds


def pick(moments: Moments, rows: NDArray[Any]) -> Moments:
    """The same rows of every column."""
    return {name: column[rows] for name, column in moments.items()}


def read_pack(folder: Path, vid: str | None) -> tuple[NDArray[np.float32], float]:
    """A video's features and duration; a shard is safetensors, of one float16 table."""
    videos = json.loads((folder / "index.json").read_text())["videos"]
    if vid not in videos:
        sys.exit(f"--vid must be one of the {len(videos)} videos of {folder}")
    entry = videos[vid]
    raw = (folder / f"video-{entry['shard']:05d}.safetensors").read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])["features"]
    low, high = header["data_offsets"]
    table = np.frombuffer(raw[begin + low : begin + high], np.float16).reshape(header["shape"])
    rows = table[entry["row"] : entry["row"] + entry["rows"]]
    return rows.astype(np.float32), entry["duration_s"]


if __name__ == "__main__":
    main()
