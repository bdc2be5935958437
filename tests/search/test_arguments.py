"""What cannot be an argument is one error, before any work."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demr import MomentRetriever, ZeroShotRetriever
from demr.encoders import get_encoder
from demr.errors import DemrError, InputError

# Of these a caller may have none by mistake; the last word is what the error has to name.
NO_QUERIES = [
    (None, "sentence"), ("", "sentence"), (" \t", "sentence"), ("?!", "no word"), (3, "sentence"),
    (b"a dog", "sentence"), ([], "at least one"), ((), "at least one"), (["a", 3], "sentence"),
    (["a", None], "sentence"), (["a", ""], "sentence"), ([["a"]], "sentence"), ({}, "list"),
    ({"a"}, "list"), ({"a": 1}, "list"), (iter(["a"]), "list"), (math.nan, "sentence"),
    (True, "sentence"), ("a " * 78, "77 words"), (["a"] * 3 + [b"b"], "sentence"),
    (Path("a dog"), "sentence"), (..., "sentence"), (len, "sentence"),
]  # fmt: skip
NO_TOP = [
    *(0, -1, 1.5, 1.0, True, False, None, "3", math.nan, math.inf, [3], 10**6 * -1),
    *(np.float64(2), b"1", 2j),
]
NO_VIDEO: list[object] = [
    None,
    3,
    3.0,
    True,
    b"talk.mp4",
    "",
    [],
    ["talk.mp4"],
    {},
    ...,
    len,
    math.nan,
]
NO_LEVEL = [90, 1, 0, 1.0, 0.0, -0.1, 1.5, math.nan, math.inf, "0.9", None, True, [0.9], 2j]
NO_MODEL: list[object] = [3, None, b"shapes", "", [], True, ..., 0.5]
NO_ENCODER: list[object] = ["clip", 3, ..., type, Path("clip"), b"clip"]

Search = Callable[..., Any]


@pytest.fixture(scope="module", params=["trained", "zero-shot"])
def retriever(
    request: pytest.FixtureRequest, run: Path, clip_models: dict[str, Path]
) -> MomentRetriever | ZeroShotRetriever:
    if request.param == "trained":
        return MomentRetriever.from_pretrained(run, device="cpu")
    return ZeroShotRetriever(get_encoder(f"clip:{clip_models['clip']}", device="cpu"))


@pytest.fixture
def search(
    retriever: MomentRetriever | ZeroShotRetriever, monkeypatch: pytest.MonkeyPatch
) -> Search:
    """Ask about a video whose decoding would fail the test."""

    def decode(*_: object) -> None:
        raise AssertionError("the video was read")

    monkeypatch.setattr("demr.search.base.encode_noting_damage", decode)
    return retriever.search


@pytest.mark.parametrize(("query", "named"), NO_QUERIES)
def test_what_is_no_query(search: Search, query: Any, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        search("talk.mp4", query)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("top", NO_TOP)
def test_what_is_no_number_of_moments(search: Search, top: Any) -> None:
    with pytest.raises(InputError, match=r"top .*whole number"):
        search("talk.mp4", "a dog", top=top)


@pytest.mark.parametrize("video", NO_VIDEO)
def test_what_is_no_video(
    retriever: MomentRetriever | ZeroShotRetriever, search: Search, video: Any
) -> None:
    for call in (lambda: search(video, "a dog"), lambda: retriever.encode_video(video)):
        with pytest.raises(InputError, match="path of a video"):
            call()
    with pytest.raises(InputError, match="path of a video"):
        retriever.search_file(video, ["a dog"])


def test_what_is_wanted_of_numpy_is_taken(
    retriever: MomentRetriever | ZeroShotRetriever, film: Path
) -> None:
    search: Search = retriever.search
    video = retriever.encode_video(film)
    for top in (np.int64(1), 10**30):
        answer = search(video, np.array(["a red circle"])[0], top=top)
        assert answer.query == "a red circle"
        assert len(answer.moments) <= top


def test_a_url_is_no_file(retriever: MomentRetriever | ZeroShotRetriever) -> None:
    for url in ("https://example.com/talk.mp4", "rtsp://camera/1", "s3://talks/a.mp4"):
        with pytest.raises(InputError, match="got a URL"):
            retriever.encode_video(url)
    with pytest.raises(InputError, match=r"name the file itself: /talks/a\.mp4"):
        retriever.encode_video("file:///talks/a.mp4")


def test_a_video_of_the_other_retriever(
    run: Path, clip_models: dict[str, Path], film: Path
) -> None:
    trained = MomentRetriever.from_pretrained(run, device="cpu")
    zero_shot = ZeroShotRetriever(get_encoder(f"clip:{clip_models['clip']}", device="cpu"))
    with pytest.raises(InputError, match="a video that a ZeroShotRetriever encoded"):
        zero_shot.search(trained.encode_video(film), "a dog")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="a video that a MomentRetriever encoded"):
        trained.search(zero_shot.encode_video(film), "a dog")  # type: ignore[call-overload]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model would fail the test."""

    def load(*_: object) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setattr("demr.search.retriever.find_model", load)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "options",
    [
        *({"level": level} for level in NO_LEVEL),
        *({"max_clips": number} for number in (0, -1, 1.5, True, "10", math.nan)),
        *({"device": device} for device in (None, 3, b"cpu", ["cpu"])),
        *({"encoder": encoder} for encoder in NO_ENCODER),
        *({"source": source} for source in NO_MODEL),
    ],
    ids=str,
)
def test_what_cannot_be_loaded(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        MomentRetriever.from_pretrained(**options)
    (name,) = options
    assert str(caught.value).startswith({"source": "model"}.get(name, name))


def test_percent_are_told_apart_from_shares() -> None:
    with pytest.raises(InputError, match=r"got 90; write 0\.9 for 90 %"):
        MomentRetriever.from_pretrained(level=90)


@pytest.mark.parametrize("encoder", [*NO_ENCODER, None])
def test_what_is_no_encoder(encoder: Any) -> None:
    with pytest.raises(DemrError, match="expected an encoder"):
        ZeroShotRetriever(encoder)
