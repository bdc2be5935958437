import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demr import MomentRetriever
from demr.annotations.annotations import read_annotations
from demr.answers.calibration import Calibration
from demr.answers.domain import describe_domain, measure_strangeness
from demr.answers.inference import predict_dataset
from demr.answers.judging import UNCALIBRATED_NOTE, judge, presence_probability
from demr.answers.predictions import rank_all
from demr.answers.pretrained import find_model, load_pretrained
from demr.batches.stretches import MAX_CLIPS
from demr.encoders import VideoFeatures
from demr.errors import FeatureError, InputError, ModelError
from demr.features.pack import FeaturePack
from demr.runs.config import load_config
from demr.runs.data import open_data
from demr.search.queries import check_query
from demr.search.result import Answer
from demr.search.retriever import EncodedVideo
from demr.shapes import demo_annotations, demo_scene
from demr.video.writing import VideoWriter

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def retriever(run: Path) -> MomentRetriever:
    return MomentRetriever.from_pretrained(run, device="cpu")


@pytest.fixture(scope="module")
def clip(world: Path) -> Path:
    return next((world / "videos").glob("iid*.mp4"))


@pytest.fixture(scope="module")
def video(retriever: MomentRetriever, clip: Path) -> EncodedVideo:
    # Two training videos draw an edge that every other one is beyond.
    return replace(retriever.encode_video(clip), strangeness=0.0)


@pytest.fixture(scope="module")
def queries(world: Path, retriever: MomentRetriever) -> list[str]:
    """Sentences of words that the tiny model was trained on."""
    every = [annotation.query for annotation in read_annotations(world / "iid.jsonl")]
    encoded = retriever.encoder.encode_queries(every)
    return [q.query for q in encoded if not retriever.pretrained.unknown_words(q.words)]


def numbers(answer: Answer) -> list[float]:
    flat = [*answer.saliency] if answer.present is None else [answer.present, *answer.saliency]
    for moment in answer.moments:
        flat += [moment.start, moment.end, moment.score, *moment.aleatoric, *moment.epistemic]
    # The tiny world has too few queries of several moments to calibrate those after the first.
    if answer.moments:
        flat += [*answer.moments[0].start_interval, *answer.moments[0].end_interval]
    return [value for value in flat if not math.isnan(value)]


def test_many_queries_at_once_are_answered_as_one_by_one(
    retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    together = retriever.search(video, queries)
    assert [answer.query for answer in together] == queries
    for answer in together:
        alone = retriever.search(video, answer.query)
        assert answer.verdict == alone.verdict
        assert numbers(answer) == pytest.approx(numbers(alone), rel=1e-5, abs=1e-5)


def test_more_queries_than_a_batch(retriever: MomentRetriever, video: EncodedVideo) -> None:
    asked = [f"a red circle spins {number}" for number in range(70)]
    answers = retriever.search(video, asked, top=1)
    assert [answer.query for answer in answers] == asked


def test_a_saved_model_answers_as_the_one_in_memory(
    run: Path, retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    again = MomentRetriever(load_pretrained(run), Calibration.load(run / "calibration.json"))
    assert again.search(video, queries) == retriever.search(video, queries)


def test_training_and_search_prepare_equal_tensors(
    recipe: Path, retriever: MomentRetriever, video: EncodedVideo, clip: Path
) -> None:
    data = open_data(load_config(recipe).data)
    annotations = data.read(Path("iid.jsonl"))
    dataset = data.dataset(annotations)
    stored = retriever.prepare(data.pack[clip.stem], str(clip))
    for index in (0, len(dataset) - 1):
        item = dataset[index]
        assert torch.equal(item.video, stored.inputs)
        assert torch.equal(item.span_norm, stored.span_norm)
        assert item.duration_s == stored.duration_s
    # The same from the file itself, but for the float16 in which packs are stored.
    torch.testing.assert_close(video.inputs, stored.inputs, rtol=2e-3, atol=2e-3)
    assert video.duration_s == pytest.approx(stored.duration_s, abs=0.13)


def test_an_answer_is_within_the_video_and_in_order(
    retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    answers = believing(retriever).search(video, queries, top=10)
    assert any(len(answer.moments) > 1 for answer in answers)
    for answer in answers:
        assert answer.present is not None
        assert 0 <= answer.present <= 1
        assert len(answer.saliency) == len(video.inputs)
        assert all(-1.001 <= value <= 1.001 for value in answer.saliency)
        assert answer.moments
        scores = [moment.score for moment in answer.moments]
        assert scores == sorted(scores, reverse=True)
        for low, high in (answer.moments[0].start_interval, answer.moments[0].end_interval):
            assert 0 <= low <= high <= video.duration_s
        for moment in answer.moments:
            assert 0 <= moment.start <= moment.end <= video.duration_s
            assert min(*moment.aleatoric, *moment.epistemic) > 0
            assert all(map(math.isfinite, (*moment.aleatoric, *moment.epistemic)))


def test_what_is_said_does_not_depend_on_how_many_moments_are_shown(
    retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    sure = believing(retriever)
    one = sure.search(video, queries, top=1)
    ten = sure.search(video, queries, top=10)
    for few, many in zip(one, ten, strict=True):
        assert few.present == many.present
        assert few.moments == many.moments[:1]


def test_a_higher_level_widens_the_intervals(
    run: Path, retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    narrow = believing(MomentRetriever.from_pretrained(run, device="cpu", level=0.5))
    for wide, close in zip(
        believing(retriever).search(video, queries), narrow.search(video, queries), strict=True
    ):
        outer, inner = wide.moments[0], close.moments[0]
        assert outer.start_interval[0] <= inner.start_interval[0]
        assert outer.end_interval[1] >= inner.end_interval[1]


def believing(retriever: MomentRetriever) -> MomentRetriever:
    """A retriever that calls everything found, unless something else speaks against it."""
    calibration = replace(retriever.calibration, thresholds={"found": 0.0, "absent": -1.0})
    return MomentRetriever(retriever.pretrained, calibration, device="cpu", level=retriever.level)


def test_a_level_that_was_not_fitted_is_refused_before_a_video_is_read(
    run: Path,
) -> None:
    with pytest.raises(InputError, match=r"labelled queries support, got 0.9999"):
        MomentRetriever.from_pretrained(run, device="cpu", level=0.9999)


def test_unknown_words_are_named_and_not_judged(
    retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    sure = believing(retriever)
    known = sure.search(video, queries[0])
    assert known.verdict == "found"
    assert known.unknown_words == ()
    odd = sure.search(video, "the Zebra juggles, the zebra juggles quinces")
    assert (odd.present, odd.verdict) == (None, "uncertain")
    assert all(moment.verdict == "uncertain" for moment in odd.moments)
    assert odd.unknown_words == ("zebra", "juggles", "quinces")
    assert any("zebra, juggles, quinces" in note for note in odd.notes)


def test_without_absent_queries_presence_is_not_known(
    retriever: MomentRetriever, video: EncodedVideo, queries: list[str]
) -> None:
    calibration = replace(
        retriever.calibration, presence=None, confidence=None, further_confidence=None
    )
    for verdict_limits in ({"found": 0.0, "absent": -1.0}, {"found": 2.0, "absent": 1.0}):
        calibration = replace(calibration, thresholds=verdict_limits)
        bare = MomentRetriever(retriever.pretrained, calibration, device="cpu")
        found = bare.search(replace(video, strangeness=0.0), queries)
        known = retriever.search(video, queries)
        assert {answer.verdict for answer in found} == {"uncertain"}
        assert all(UNCALIBRATED_NOTE in answer.notes for answer in found)
        assert {answer.present for answer in found} == {None}
        assert all(answer.moments for answer in found)
        assert {moment.confidence for answer in found for moment in answer.moments} == {None}
    assert not any(UNCALIBRATED_NOTE in answer.notes for answer in known)


@pytest.mark.parametrize(
    ("present", "expected"),
    [(0.61, "found"), (0.59, "uncertain"), (0.41, "uncertain"), (0.39, "not in this video")],
)
def test_verdicts(
    retriever: MomentRetriever,
    video: EncodedVideo,
    queries: list[str],
    monkeypatch: pytest.MonkeyPatch,
    present: float,
    expected: str,
) -> None:
    sure = MomentRetriever(retriever.pretrained, retriever.calibration, device="cpu")
    monkeypatch.setattr(
        type(sure.calibration.presence), "probability", lambda _, rows: np.full(len(rows), present)
    )
    calm = replace(video, strangeness=0.0)
    assert sure.search(calm, queries[0]).verdict == expected
    far = sure.search(replace(video, strangeness=2.0), queries[0])
    assert (far.present, far.verdict) == (None, "uncertain")
    assert any("unlike anything" in note for note in far.notes)


@pytest.mark.parametrize("kind", ["noise", "saturated"])
def test_a_video_unlike_the_training_ones_is_not_judged(
    video: EncodedVideo, queries: list[str], tmp_path: Path, kind: str
) -> None:
    # The bundled model: two videos, as the tiny one saw, draw no edge worth the name.
    retriever = MomentRetriever.from_pretrained(device="cpu")
    rng = np.random.default_rng(0)
    path = tmp_path / f"{kind}.mp4"
    with VideoWriter(path, 192, 108, 8) as writer:
        for index in range(64):
            frame = rng.integers(0, 256, (108, 192, 3), dtype=np.uint8)
            if kind == "saturated":
                frame[:] = [(255, 0, 255), (0, 255, 0)][index // 4 % 2]
            writer.write(frame)
    strange = retriever.encode_video(path)
    assert strange.strangeness > 2
    assert retriever.encode_video(video.path).strangeness < 1
    sure = believing(retriever)
    assert sure.search(replace(strange, strangeness=0.0), queries[0]).verdict == "found"
    answer = sure.search(strange, queries[0])
    assert (answer.present, answer.verdict) == (None, "uncertain")
    assert all(math.isnan(sum(moment.start_interval)) for moment in answer.moments)
    assert any("unlike anything" in note for note in answer.notes)


def test_strangeness_by_hand() -> None:
    scale = {"clips": 1, "low": [0.0, 0.0], "high": [1.0, 1.0], "edge": 0.125}
    domain = {"scales": [scale]}
    features = np.array([[0.5, 0.5], [2.0, 0.5], [0.5, -1.0], [1.005, 0.0]], np.float32)
    # 2 of 8 values lie outside, a hair's breadth does not count; twice the edge.
    assert measure_strangeness(features, domain) == pytest.approx(2.0)
    assert measure_strangeness(features, None) == 0.0


def test_the_edge_is_found_on_videos_that_did_not_draw_it(world: Path) -> None:
    kinds: dict[str, list[Any]] = {"train": [], "val": [], "iid": [], "ood": []}
    for video in FeaturePack(world / "features"):
        kinds[video.vid.split("_")[0]].append(video.features)
    domain = json.loads(json.dumps(describe_domain(kinds["train"], kinds["val"])))
    for kind in ("train", "val", "iid"):
        assert max(measure_strangeness(features, domain) for features in kinds[kind]) <= 1.01
    # Drawn by the same two videos that it judges, the edge would make every other one strange.
    narrow = describe_domain(kinds["train"], [])
    assert measure_strangeness(kinds["iid"][0], narrow) > 5


@pytest.mark.parametrize("query", ["", "  \n", "😀 🎉", "?!...", "_ _", "-"])
def test_queries_without_a_word_are_refused(query: str) -> None:
    with pytest.raises(InputError, match="query"):
        check_query(query)


def test_the_longest_query() -> None:
    check_query(" ".join(["word"] * 77))
    with pytest.raises(InputError, match="at most 77 words, got 78"):
        check_query(" ".join(["word"] * 78))
    check_query("圆圈 2")


def test_searching_needs_something_to_ask_and_to_list(
    retriever: MomentRetriever, video: EncodedVideo
) -> None:
    with pytest.raises(InputError, match="empty list"):
        retriever.search(video, [])
    with pytest.raises(InputError, match="--top"):
        retriever.search(video, "a red circle", top=0)


def test_features_of_another_encoder_are_refused(
    retriever: MomentRetriever, video: EncodedVideo
) -> None:
    with pytest.raises(FeatureError, match="clip@1"):
        retriever.search(
            replace(video, identity=replace(video.identity, name="clip")), "a red circle"
        )
    wrong = VideoFeatures("v", 10.0, 1.0, np.zeros((10, 3), np.float32))
    with pytest.raises(FeatureError, match="features of v"):
        retriever.prepare(wrong, "v.mp4")


def test_a_model_of_another_encoder_version_is_refused(own_run: Path, clip: Path) -> None:
    path = own_run / "config.json"
    config = json.loads(path.read_text())
    config["encoder"]["version"] = "0"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="an encoder that is") as caught:
        MomentRetriever.from_pretrained(own_run).encode_video(clip)
    assert "\n" not in str(caught.value)


def test_a_model_without_intervals_is_refused(run: Path) -> None:
    bare = replace(Calibration.load(run / "calibration.json"), interval=None)
    with pytest.raises(ModelError, match="demr calibrate"):
        MomentRetriever(load_pretrained(run), bare)


def test_a_model_without_calibration_is_refused(own_run: Path) -> None:
    (own_run / "calibration.json").unlink()
    with pytest.raises(ModelError, match="demr calibrate"):
        MomentRetriever.from_pretrained(own_run)


@pytest.mark.parametrize("name", ["nope", "../nope", "a/b/c", "x.txt", "/nope/nope"])
def test_unknown_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        find_model(name)


def test_a_truncated_video_is_answered_with_a_note(
    retriever: MomentRetriever, clip: Path, tmp_path: Path, queries: list[str]
) -> None:
    cut = tmp_path / "cut.mkv"
    import av

    with av.open(str(clip)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    video = retriever.encode_video(cut)
    assert video.notes
    assert retriever.search(video, queries[0]).notes[: len(video.notes)] == video.notes


def test_the_bundled_model_is_whole_and_knows_its_limits() -> None:
    bundled = MomentRetriever.from_pretrained(device="cpu")
    assert bundled.pretrained.domain is not None
    assert bundled.pretrained.known_words is not None
    assert bundled.encoder.identity == bundled.pretrained.identity
    folder = find_model("shapes")
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 8 << 20


def test_the_bundled_model_answers_the_demo(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "demo"
    done = cli("demo", "--out", out)
    assert done.code == 0, done.err
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<video" in page
    answers = json.loads((out / "answers.json").read_text())["answers"]
    truths = demo_annotations(demo_scene(0))
    assert [answer["query"] for answer in answers] == [truth.query for truth in truths]
    hits = 0
    present = [truth for truth in truths if truth.kind in ("present", "thing")]
    assert len(present) >= 6
    for answer, truth in zip(answers, truths, strict=True):
        if truth.kind in ("absent", "unknown"):
            assert answer["verdict"] != "found", truth.query
            assert not any(moment["verdict"] == "found" for moment in answer["moments"])
        elif truth.kind in ("present", "thing"):
            assert answer["verdict"] != "not in this video", truth.query
            hits += any(
                (min(top["end"], end) - max(top["start"], start))
                >= 0.5 * (max(top["end"], end) - min(top["start"], start))
                for top in answer["moments"][:1]
                for start, end in truth.windows_s or ()
            )
    assert hits >= len(present) - 1


# --- long videos ------------------------------------------------------------------------------


def test_a_limit_that_the_video_fits_changes_no_bit(
    run: Path, video: EncodedVideo, queries: list[str]
) -> None:
    clips = len(video.inputs)
    tight = MomentRetriever.from_pretrained(run, device="cpu", max_clips=clips)
    loose = MomentRetriever.from_pretrained(run, device="cpu", max_clips=10 * clips)
    assert tight.search(video, queries) == loose.search(video, queries)
    with pytest.raises(InputError, match="max_clips"):
        MomentRetriever.from_pretrained(run, max_clips=0)


@pytest.mark.parametrize("limit", [1, 2, 11])
def test_a_long_video_is_answered_stretch_by_stretch(
    run: Path, video: EncodedVideo, queries: list[str], limit: int
) -> None:
    small = MomentRetriever.from_pretrained(run, device="cpu", max_clips=limit)
    shares: list[float] = []
    answers = small.search(video, queries, top=4, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    for answer in answers:
        assert len(answer.saliency) == len(video.inputs)
        assert all(map(math.isfinite, numbers(answer)))
        assert answer.present is not None
        assert 0 <= answer.present <= 1
        for moment in answer.moments:
            assert 0 <= moment.start <= moment.end <= video.duration_s


@pytest.mark.parametrize("limit", [7, 1000])
def test_evaluation_and_search_agree(run: Path, recipe: Path, limit: int) -> None:
    data = open_data(load_config(recipe).data)
    annotations = data.read(Path("iid.jsonl"))
    retriever = MomentRetriever.from_pretrained(run, device="cpu", max_clips=limit)
    raw = predict_dataset(retriever.pretrained.model, data.dataset(annotations), max_clips=limit)
    predictions = rank_all(raw, retriever.calibration)
    present = presence_probability(retriever.calibration, predictions)
    assert present is not None
    vid = annotations[0].vid
    video = replace(retriever.prepare(data.pack[vid], vid), strangeness=0.0)
    answers = retriever.search(video, [annotation.query for annotation in annotations])
    judgements = judge(predictions, retriever.calibration)
    for answer, prediction, chance, said in zip(
        answers, predictions, present, judgements, strict=True
    ):
        assert answer.saliency == tuple(prediction.saliency.tolist())
        if answer.unknown_words:
            assert (answer.present, answer.verdict) == (None, "uncertain")
            continue
        # Many rows are multiplied in another order than one.
        assert answer.present == pytest.approx(chance, rel=1e-12)
        assert answer.verdict == said.verdict
        rows = said.listed[:5]
        windows = [(moment.start, moment.end) for moment in answer.moments]
        assert windows == [tuple(window) for window in prediction.moments.window_s[rows].tolist()]
        assert [m.score for m in answer.moments] == prediction.moments.score[rows].tolist()


def test_reading_tells_how_far_it_has_come(retriever: MomentRetriever, clip: Path) -> None:
    seconds: list[float] = []
    video = retriever.encode_video(clip, progress=seconds.append)
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(video.duration_s, abs=0.5)
    count = len(seconds)
    retriever.encode_video(clip)
    assert len(seconds) == count


def test_the_limit_is_what_the_model_was_trained_on(run: Path, recipe: Path, own_run: Path) -> None:
    data = open_data(load_config(recipe).data)
    longest = max(len(data.pack[a.vid].features) for a in data.read(Path("train.jsonl")))
    assert MomentRetriever.from_pretrained(run).max_clips <= longest
    assert MomentRetriever.from_pretrained().max_clips == 120
    path = own_run / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "max_clips"}))
    assert MomentRetriever.from_pretrained(own_run).max_clips == MAX_CLIPS
    for wrong in (0, -3, "many", True):
        path.write_text(json.dumps(config | {"max_clips": wrong}))
        with pytest.raises(ModelError, match=r"config\.json"):
            MomentRetriever.from_pretrained(own_run)
