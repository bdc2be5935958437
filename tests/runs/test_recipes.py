"""Every recipe of a published data set trains for two steps on random features and is measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demr.encoders import get_encoder
from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.features.pack import FeaturePackWriter
from demr.runs.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem != "shapes")
CLIP_S = {"charades_sta": 1.0, "charades_cd": 1.0}
QUERIES = ("a person opens the door", "someone runs", "the dog eats food", "a man sits down")
PLACES = ("kitchen", "garage", "street", "cellar", "church", "office")
CLIPS = 9


def write_split(path: Path, vids: list[str], rng: np.random.Generator, clip_s: float) -> list[str]:
    """Four queries a video, in the form the name asks for; returns the qids."""
    duration = CLIPS * clip_s
    sentences = [[f"{query} in the {place}." for query in QUERIES] for place in PLACES[: len(vids)]]
    start = rng.uniform(0, duration / 2, (len(vids), len(QUERIES)))
    windows = np.stack([start, start + rng.uniform(2, duration / 2, start.shape)], axis=-1)
    if path.suffix == ".json":
        captions = {
            vid: {
                "timestamps": windows[row].tolist(),
                "sentences": sentences[row],
                "video_duration": duration,
            }
            for row, vid in enumerate(vids)
        }
        path.write_text(json.dumps(captions))
        return [f"{vid}_{number}" for vid in vids for number in range(len(QUERIES))]
    lines, qids = [], []
    for row, vid in enumerate(vids):
        for number, query in enumerate(sentences[row]):
            qids.append(f"{path.stem}{row}{number}")
            lines.append(
                json.dumps(
                    {
                        "qid": qids[-1],
                        "query": query,
                        "vid": vid,
                        "duration": duration,
                        "relevant_windows": [windows[row, number].tolist()],
                    }
                )
            )
    path.write_text("\n".join(lines))
    return qids


def write_tokens(path: Path, query: str, rng: np.random.Generator) -> None:
    """Features of a query's tokens, as CLIP's published ones."""
    tokens = len(query.replace(".", " .").split()) + 2
    states = rng.standard_normal((tokens, 512)).astype(np.float16)
    np.savez(path, last_hidden_state=states)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_measured(
    recipe: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
    vlm_models: dict[str, Path],
    film: Path,
) -> None:
    from demr.annotations.annotations import read_annotations

    config, clip_s = load_config(recipe), CLIP_S.get(recipe.stem, 2.0)
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    root.mkdir()
    text = None if config.data.text is None else root / config.data.text
    # A recipe without stored queries names a model that reads them; here a tiny one does.
    encoder = f"vlm:{vlm_models['smolvlm']}" if text is None else config.data.encoder
    if text is not None:
        text.mkdir()
    splits = {config.data.train: "tr", **{path: name for name, path in config.data.tests.items()}}
    if isinstance(config.data.val, Path):
        splits[config.data.val] = "va"
    vids = {path: [f"{name}{number}" for number in range(3)] for path, name in splits.items()}
    if isinstance(config.data.val, float):
        vids[config.data.train] = [f"tr{number}" for number in range(6)]
    identity = EncoderIdentity(
        "clip+slowfast", "1", clip_s, (("slowfast", 2304), ("clip", 512)), 512, "l2"
    )
    if text is None:
        assert config.data.encoder == "vlm"
        identity = get_encoder(encoder, device="cpu").identity
    with FeaturePackWriter(root / config.data.features, identity) as writer:
        for path, names in vids.items():
            write_split(root / path, names, rng, clip_s)
            if text is not None:
                for annotation in read_annotations(root / path):
                    write_tokens(text / f"qid{annotation.qid}.npz", annotation.query, rng)
            for vid in names:
                table = rng.standard_normal((CLIPS, identity.video_dim)).astype(np.float32)
                writer.add(VideoFeatures(vid, CLIPS * clip_s, clip_s, table))
    run = tmp_path / "run"
    steps = {
        "data.root": root,
        "data.encoder": encoder,
        "reconstruction.epochs": 1,
        "reconstruction.batch_size": 6,
        "retrieval.epochs": 1,
        "retrieval.batch_size": 6,
    }
    if isinstance(config.data.val, float):
        steps["data.val"] = 0.5
    sets = [part for key, value in steps.items() for part in ("--set", f"{key}={value}")]
    done = cli("train", recipe, *sets, "--out", run)
    assert done.code == 0, done.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"val", *config.data.tests} | (
        {"gap"} if "ood" in config.data.tests else set()
    )
    for name in ("val", *config.data.tests):
        assert metrics[name]["queries"] == 12
        assert 0 <= metrics[name]["R1@0.5"] <= 100
        assert metrics[name]["absent_queries"] == 12
        # Random features of ten videos may all be unlike those of the others.
        unjudged = metrics[name].get("presence/not judged", 0)
        assert 0 <= metrics[name].get("presence/AUROC", float(unjudged > 0)) <= 1
    trained = json.loads((run / "config.json").read_text())
    assert trained["encoder"]["streams"] == [list(stream) for stream in identity.streams]
    check_commands(recipe.stem, run, film, cli)


def check_commands(stem: str, run: Path, film: Path, cli: Callable[..., Any]) -> None:
    """What else can be done with a run: of stored queries measured, of an encoder searched."""
    if stem == "qvhighlights":
        assert cli("evaluate", run).code == 0
        assert cli("balance", run, "--limit", 4).code == 0
    if stem == "qvhighlights_vlm":
        # The model names its encoder, layer and all, and a search makes it again.
        found = cli("search", film, "a dog", "--model", run, "--json")
        assert found.code == 0, found.err
        assert ",layer=2" in json.loads(found.out)["encoder"]
