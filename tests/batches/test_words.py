import sys
from collections.abc import Callable, Iterator

import pytest

from demr.batches import words
from demr.batches.words import maskable_words, split_query, tag_tokens
from demr.errors import InputError

# word/n noun, word/v main verb, word/a adjective; everything else is none of them.
# The rules of demr.batches.words were written with the first list in view, the second came after.
SEEN = """
the red/a circle/n bounces/v
a blue/a star/n spins/v around
something green/a blinks/v
the yellow/a square/n grows/v
a purple/a triangle/n moves/v to the left/n
the orange/a hexagon/n shrinks/v slowly
red/a circle/n bounces/v
blue/a square/n moves/v right
the white/a diamond/n appears/v
a cyan/a pentagon/n leaves/v the picture/n
the pink/a star/n and the green/a circle/n swap/v colours/n
find/v the moment/n when the red/a square/n disappears/v
show/v me the blinking/v triangle/n
when does the green/a star/n shrink/v
where does the blue/a circle/n spin/v
does the yellow/a triangle/n jump/v
the star/n is spinning/v
a square/n that is growing/v
the red/a one blinks/v twice
a small/a circle/n turns/v into a large/a square/n
the circle/n falls/v down
green/a triangle/n rotating/v
a star/n starts/v to spin/v
the blue/a shape/n gets/v bigger/a
a person/n opens/v the door/n
person/n turns/v on the light/n
a man/n is drinking/v a glass/n of water/n
the woman/n puts/v a book/n on the shelf/n
a young/a girl/n plays/v with her dog/n
person/n takes/v off their shoes/n
he throws/v the ball/n to the other/a boy/n
she is washing/v her hands/n in the sink/n
two people/n are talking/v in the kitchen/n
a person/n sits/v on the sofa/n and eats/v a sandwich/n
the man/n walks/v through the doorway/n
someone closes/v the window/n
the dog/n runs/v across the green/a field/n
a chef/n cuts/v the onion/n into small/a pieces/n
the car/n stops/v at the red/a light/n
a woman/n in a white/a dress/n dances/v with an old/a man/n
children/n are playing/v football/n
the speaker/n drops/v the microphone/n
person/n does n't open/v the box/n
a baby/n laughs/v at the camera/n
they clean/v the dirty/a window/n with a towel/n
a man/n pours/v coffee/n into a cup/n
the boy/n climbs/v a tall/a tree/n
a lady/n looks/v at herself in the mirror/n
person/n is holding/v a phone/n
the vlogger/n shows/v her new/a bag/n
who opens/v the fridge/n
what happens/v after the man/n sits/v down
find/v a person/n cooking/v dinner/n
show/v the goal/n
look/v for the yellow/a bus/n
people/n walk/v along the beach/n
a cat/n jumps/v onto the table/n
the teacher/n writes/v on the board/n
he smiles/v
a group/n of friends/n eat/v pizza/n together
the bird/n flies/v away
an elderly/a couple/n is sitting/v on a bench/n
snow/n covers/v the mountain/n
the train/n arrives/v at the station/n
a girl/n wearing/v a hat/n rides/v a bicycle/n
the player/n kicks/v the ball/n
a man/n fixes/v the broken/a chair/n
the fish/n swims/v in clear/a water/n
person/n laughing/v
a big/a wave/n hits/v the boat/n
"""
FRESH = """
a magenta/a oval/n bounces/v off the wall/n
tiny/a brown/a triangle/n enters/v from the right/n
the gray/a square/n stops/v moving/v
which shape/n blinks/v
green/a star/n fades/v away
two circles/n swap/v places/n
count/v the spins/n of the red/a star/n
the circle/n grows/v and then shrinks/v
a dark/a blue/a hexagon/n slides/v upwards
is there a white/a triangle/n that rotates/v
a nurse/n helps/v an old/a patient/n
the musician/n plays/v a loud/a guitar/n on stage/n
she did n't lock/v the car/n
person/n washes/v some dishes/n in the sink/n
two men/n shake/v hands/n and smile/v
a farmer/n feeds/v his hungry/a cows/n
when do the kids/n blow/v out the candles/n
a person/n sneezes/v twice
the red/a car/n overtakes/v a truck/n
a reporter/n interviews/v a famous/a singer/n
"""
TAGS = {"n": "noun", "v": "verb", "a": "adjective", "": None}


def sentences(text: str) -> Iterator[list[tuple[str, str | None]]]:
    for line in text.strip().splitlines():
        pairs = (word.partition("/") for word in line.split())
        yield [(word, TAGS[tag]) for word, _, tag in pairs]


def scores(text: str) -> tuple[float, float, float]:
    """Token accuracy, precision and recall of nouns."""
    truth: list[str | None] = []
    found: list[str | None] = []
    for sentence in sentences(text):
        truth += [tag for _, tag in sentence]
        found += tag_tokens(tuple(word for word, _ in sentence))
    both = list(zip(truth, found, strict=True))
    hits = both.count(("noun", "noun"))
    right = sum(expected == got for expected, got in both)
    return right / len(both), hits / found.count("noun"), hits / truth.count("noun")


# Nouns of the fresh sentences are few (70), so that one mistake counts for more than a point.
@pytest.mark.parametrize(("text", "nouns"), [(SEEN, 0.95), (FRESH, 0.9)], ids=["seen", "fresh"])
def test_the_tagger_is_right_about_hand_tagged_sentences(
    text: str, nouns: float, record_property: Callable[[str, object], None]
) -> None:
    accuracy, precision, recall = scores(text)
    numbers = f"accuracy {accuracy:.3f}, nouns: precision {precision:.3f}, recall {recall:.3f}"
    record_property("tagger", numbers)
    print(numbers)
    assert accuracy >= 0.95, numbers
    assert precision >= nouns, numbers
    assert recall >= nouns, numbers


def test_there_are_enough_sentences() -> None:
    assert len(list(sentences(SEEN))) >= 60
    assert len(list(sentences(FRESH))) >= 20


QUERY = "A tall man doesn't open the red door."
WORDS = ("a", "tall", "man", "doesn't", "open", "the", "red", "door")


@pytest.mark.parametrize(
    ("pos", "expected"),
    [
        ({"noun"}, (2, 7)),
        ({"verb"}, (4,)),
        ({"adjective"}, (1, 6)),
        ({"noun", "verb", "adjective"}, (1, 2, 4, 6, 7)),
        (set(), ()),
    ],
)
def test_indices_point_into_the_words_of_the_encoder(
    pos: set[str], expected: tuple[int, ...]
) -> None:
    assert maskable_words(QUERY, WORDS, pos) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("a", "tall", "man", "does", "n't", "open", "the", "red", "door"), (2, 8)),
        (("a", "tall", "man", "doesnt", "open", "the", "red", "door"), (2, 7)),
        (("a", "tall", "man"), (2,)),  # cut by the encoder
        (("a", "tall", "[unk]", "opens", "the", "door"), (5,)),  # rewritten by the encoder
        (("a", "tall", "man", "", "doesn't", "open", "the", "red", "door"), (2, 8)),
        ((), ()),
    ],
)
def test_words_may_be_split_cut_or_rewritten(
    given: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    found = maskable_words(QUERY, given, {"noun"})
    if "[unk]" in given:
        found = tuple(index for index in found if given[index] != "[unk]")
    assert found == expected


def test_hyphens_and_possessives() -> None:
    given = ("the", "dog's", "t", "shirt", "is", "white")
    assert maskable_words("The dog's T-shirt is white", given, {"noun"}) == (1, 2, 3)


@pytest.mark.parametrize(
    "query",
    ["RED CIRCLE BOUNCES", "Red Circle Bounces", "red circle bounces!", "red  circle\nbounces"],
)
def test_case_and_punctuation_do_not_matter(query: str) -> None:
    assert maskable_words(query, ("red", "circle", "bounces"), {"noun"}) == (1,)
    assert maskable_words(query, ("red", "circle", "bounces"), {"verb"}) == (2,)


@pytest.mark.parametrize(
    ("query", "given"),
    [
        ("", ()),
        ("   ", ()),
        ("?!", ()),
        ("\U0001f600 \U0001f680", ()),
        ("\u0130stanbul", ("i\u0307stanbul",)),
        ("\u4e00\u4e2a\u4eba", ("\u4e00\u4e2a\u4eba",)),
        ("'' n't 's -", ("n't", "s")),
        ("a" * 5000, ("a" * 5000,)),
    ],
)
def test_strange_queries_are_tagged_without_an_error(query: str, given: tuple[str, ...]) -> None:
    found = maskable_words(query, given, words.PARTS_OF_SPEECH)
    assert all(0 <= index < len(given) for index in found)


def test_five_hundred_words() -> None:
    given = ("the", "dog", "runs", "and") * 125
    assert maskable_words(" ".join(given), given, {"noun"}) == tuple(range(1, 500, 4))


def test_each_clause_has_its_verb() -> None:
    query = "a dog barks while the red circle bounces"
    assert maskable_words(query, query.split(), {"verb"}) == (2, 7)


def test_clitics_are_split_off() -> None:
    assert split_query("He can\u2019t, she'll; I'm rock-hard.") == [
        *("He", "ca", "n't", ",", "she", "'ll", ";", "I", "'m", "rock-hard", ".")
    ]


def test_an_unknown_part_of_speech_is_named() -> None:
    with pytest.raises(InputError, match="adverb"):
        maskable_words("a dog", ("a", "dog"), {"noun", "adverb"})


def test_without_the_tagger_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words._tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "HanTa", None)
    with pytest.raises(InputError, match=r"pip install .*demr\[train\]"):
        maskable_words("a dog nobody tagged before", ("a", "dog"), {"noun"})
    words._tagger.cache_clear()


def test_a_model_in_the_current_folder_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "morphmodel_en.pgz").write_bytes(b"not a model")
    monkeypatch.chdir(folder)
    words._tagger.cache_clear()
    assert tag_tokens(("the", "dog")) == (None, "noun")


def test_the_tagger_is_seen_without_loading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words.has_tagger()
    monkeypatch.setattr(words, "find_spec", {"HanTa": None}.get)
    assert not words.has_tagger()
