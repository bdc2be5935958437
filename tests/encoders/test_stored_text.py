import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demr.encoders.base import EncoderIdentity
from demr.encoders.stored_text import StoredText, WordVectors, _token_words, open_text
from demr.errors import FeatureError, InputError

IDENTITY = EncoderIdentity("clip", "1", 2.0, (("clip", 3),), 4, "l2")


def save(folder: Path, name: str, tokens: int, **more: Any) -> np.ndarray[Any, Any]:
    table = np.random.default_rng(tokens).standard_normal((tokens, 4)).astype(np.float16)
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", last_hidden_state=table, **more)
    return table


def test_tokens_are_found_by_qid_and_know_their_words(tmp_path: Path) -> None:
    qids = {"A man's dog runs.": "2579", "two": "v_3", "unfamiliarity": "9"}
    # start, a, man, 's, dog, runs, the full stop, end
    first = save(tmp_path, "qid2579", 8, pooler_output=np.zeros(4))
    second = save(tmp_path, "v_3", 3)
    save(tmp_path, "qid9", 5)  # one word in three pieces
    text = StoredText(tmp_path, IDENTITY).with_qids(qids)
    assert text.identity == IDENTITY
    found = text.encode_queries(list(qids))
    np.testing.assert_array_equal(found[0].features, first)
    np.testing.assert_array_equal(found[1].features, second)
    assert found[0].features.dtype == np.float32
    assert found[0].words == ("a", "man's", "dog", "runs")
    assert found[0].token_word.tolist() == [-1, 0, 1, 1, 2, 3, -1, -1]
    assert found[1].token_word.tolist() == [-1, 0, -1]
    assert found[2].token_word.tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("query", "token_word"),
    [
        ("person opens door", [-1, 0, 1, 2, -1]),
        ("He said, no!", [-1, 0, 1, -1, 2, -1, -1]),
        ("don’t", [-1, 0, 0, -1]),
        ("room 42", [-1, 0, 1, 1, -1]),
    ],
)
def test_words_of_tokens_by_hand(query: str, token_word: list[int]) -> None:
    assert _token_words(query, len(token_word)).tolist() == token_word
    assert set(_token_words(query, len(token_word) + 1).tolist()) == {-1}


def test_missing_and_damaged_queries_are_named(tmp_path: Path) -> None:
    save(tmp_path, "qid1", 3)
    text = StoredText(tmp_path, IDENTITY, {"a": "1", "b": "2", "c": "3"})
    with pytest.raises(FeatureError, match="got 2 of 3 without, such as qid 2"):
        text.encode_queries(["a", "b", "c"])
    for content in (b"", b"PK\x03\x04 cut"):
        (tmp_path / "qid2.npz").write_bytes(content)
        with pytest.raises(FeatureError, match=r"qid2\.npz: expected a readable \.npz"):
            text.encode_queries(["b"])
    np.savez(tmp_path / "qid2.npz", other=np.zeros((2, 4)))
    with pytest.raises(FeatureError, match=r"qid2\.npz: expected a readable \.npz"):
        text.encode_queries(["b"])
    np.savez(tmp_path / "qid2.npz", features=np.zeros(4))
    with pytest.raises(FeatureError, match=r"got shape \(4,\)"):
        text.encode_queries(["b"])


def test_two_files_of_one_qid_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "qid1", 3)
    text = StoredText(tmp_path, IDENTITY, {"a": "1"})
    text.encode_queries(["a"])
    save(tmp_path, "1", 4)
    with pytest.raises(
        FeatureError, match=r"expected one file for qid 1, got qid1\.npz and 1\.npz; remove"
    ):
        text.encode_queries(["a"])


def test_what_needs_the_encoder_itself_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "qid1", 3)
    text = StoredText(tmp_path, IDENTITY, {"a": "1"})
    with pytest.raises(InputError, match=r"reconstruction\.masking: expected feature"):
        text.encode_queries(["a"], hidden=[[0]])
    with pytest.raises(InputError, match="got stored features alone"):
        text.encode_video("talk.mp4")


def test_word_vectors_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"
    vectors = np.arange(8, dtype=np.float16).reshape(2, 4)
    np.savez(path, words=np.array(["dog", "a"]), vectors=vectors)
    text = open_text(path, IDENTITY)
    (found,) = text.encode_queries(["A dog barks."])
    assert found.words == ("a", "dog", "barks")
    np.testing.assert_array_equal(found.features, [[4, 5, 6, 7], [0, 1, 2, 3], [0, 0, 0, 0]])
    assert found.token_word.tolist() == [0, 1, 2]
    (hidden,) = text.encode_queries(["A dog barks."], hidden=[[1]])
    np.testing.assert_array_equal(hidden.features[1], 0)
    np.testing.assert_array_equal(hidden.features[0], found.features[0])
    (again,) = text.encode_queries(["A dog barks."])  # hiding leaves the table alone
    np.testing.assert_array_equal(again.features, found.features)
    with pytest.raises(InputError, match="at least one word"):
        text.encode_queries(["?!"])
    with pytest.raises(InputError, match="got stored features alone"):
        text.encode_video("talk.mp4")


def test_words_in_bytes_are_words(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "w.npz",
        words=np.array([b"a", b"dog"]),
        vectors=np.arange(1, 9, dtype=np.float32).reshape(2, 4),
    )
    (found,) = WordVectors(tmp_path / "w.npz", IDENTITY).encode_queries(["A dog"])
    assert found.features.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("words", "vectors"),
    [
        (np.array([["a"], ["b"]]), np.ones((2, 4))),
        (np.array(["a", "b"]), np.zeros((2, 4))),
        (np.array("a"), np.ones((1, 4))),
        (np.array(["a", "b"]), np.ones((3, 4))),
        (np.array(["a"], dtype=object), np.ones((1, 4))),
    ],
)
def test_tables_that_know_nothing(
    tmp_path: Path, words: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any]
) -> None:
    np.savez(tmp_path / "w.npz", words=words, vectors=vectors)
    with pytest.raises(FeatureError, match=r"words and vectors|a readable"):
        WordVectors(tmp_path / "w.npz", IDENTITY)


def test_a_pipe_in_place_of_a_querys_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "qid7.npz")
    stored = StoredText(tmp_path, IDENTITY, {"x": "7"})
    with pytest.raises(FeatureError, match="a pipe, no regular file"):
        stored.encode_queries(["x"])


def test_word_vectors_of_another_width_or_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.npz"
    np.savez(path, words=np.array(["dog"]), vectors=np.zeros((1, 300)))
    with pytest.raises(FeatureError, match="--text-dim"):
        WordVectors(path, IDENTITY)
    np.savez(path, words=np.array(["dog", "cat"]), vectors=np.zeros((1, 4)))
    with pytest.raises(FeatureError, match=r"got words of shape \(2,\)"):
        WordVectors(path, IDENTITY)
    for broken in (tmp_path / "none.npz", tmp_path / "text.npz"):
        (tmp_path / "text.npz").write_text("x")
        with pytest.raises(FeatureError, match=r"a readable \.npz of text features"):
            open_text(broken, IDENTITY)


@pytest.mark.data
def test_official_text_features(data_dir: Path) -> None:
    folder = data_dir / "samples" / "qvh_official_format" / "clip_text_features"
    query = "A girl and her mother cooked while talking with each other on facetime."
    identity = EncoderIdentity("clip", "1", 2.0, (("clip", 512),), 512, "l2")
    (found,) = StoredText(folder, identity, {query: "2579"}).encode_queries([query])
    assert found.features.shape == (16, 512)
    # 13 words, the full stop and both ends: every word is one token.
    assert found.token_word.tolist() == [-1, *range(13), -1, -1]


def test_tokens_as_spelled_say_which_word_they_are(tmp_path: Path) -> None:
    pieces = np.array(["[CLS]", "un", "##lock", "it", "[SEP]"])
    for qid, count in (("1", 5), ("2", 4)):
        table = np.zeros((count, 4), np.float16)
        # Of another length they are of something else, and the count decides.
        np.savez(tmp_path / f"{qid}.npz", last_hidden_state=table, tokens=pieces)
    text = StoredText(tmp_path, IDENTITY, {"Unlock it": "1", "unlock it": "2"})
    first, second = text.encode_queries(["Unlock it", "unlock it"])
    assert first.token_word.tolist() == [-1, 0, 0, 1, -1]
    assert second.token_word.tolist() == [-1, 0, 1, -1]


def test_where_a_word_is_in_parts_its_place_is_bounded(tmp_path: Path) -> None:
    qids = {"a dog runs": "1", "the cat sits": "2", "a photographer runs": "3"}
    for qid, tokens in (("1", 5), ("2", 5), ("3", 7)):
        save(tmp_path, qid, tokens)
    *whole, parted = StoredText(tmp_path, IDENTITY, qids).encode_queries(list(qids))
    assert all(query.word_span is None for query in whole)
    assert parted.token_word.tolist() == [-1] * 7
    assert parted.word_span is not None
    assert parted.word_span.tolist() == [[1, 2], [2, 5], [3, 6]]


@pytest.mark.parametrize("qid", ["../other", "/etc/x", "a/b", ".."])
def test_a_qid_leads_nowhere_else(tmp_path: Path, qid: str) -> None:
    save(tmp_path, "other", 3)
    folder = tmp_path / "text"
    folder.mkdir()
    with pytest.raises(FeatureError, match="1 of 1 without"):
        StoredText(folder, IDENTITY, {"a": qid}).encode_queries(["a"])
