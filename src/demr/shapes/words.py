"""Everyday words that the embedded world has no meaning for, for queries with unknown words."""

import hashlib
from functools import cache

_NOUNS = """
    giraffe elephant dog cat horse monkey penguin kitten rabbit tiger dolphin parrot spider
    chicken goat zebra whale turtle squirrel frog butterfly camel lion fox owl crocodile teacher
    doctor woman man child baby farmer dancer pilot singer soldier waiter nurse cyclist
    firefighter king grandmother clown referee skater surfer drummer car bicycle train airplane
    helicopter boat tractor truck bus motorcycle rocket scooter submarine taxi ambulance pizza
    banana sandwich carrot cake tomato onion pancake sausage pumpkin noodle coffee soup bread
    cheese hammer ladder umbrella guitar piano violin trumpet telephone laptop camera printer
    television microphone keyboard lamp candle mirror pillow blanket sofa chair table fridge
    oven kettle spoon fork knife bottle bucket broom towel toothbrush shoe hat jacket sweater
    scarf backpack suitcase wallet river mountain forest volcano island desert waterfall cloud
    snowman castle bridge lighthouse stadium kitchen garden balcony robot dragon ghost hexagon
    octagon cylinder spiral arrow letter flag balloon kite puppet newspaper envelope basket tent
    anchor
"""
_VERBS = """
    dance sing cook read write laugh cry sneeze yawn whistle shout whisper clap wave kneel swim
    dive run walk crawl gallop bark meow explode melt freeze burn boil evaporate crumble shatter
    knit decorate sew iron vacuum dust sweep wash bake fry chop peel chew swallow lick bite kick
    punch throw catch juggle wrestle ski skate pedal park crash overtake land snore sleep wake
    dream argue apologise vote marry graduate dial type print photograph applaud salute bow
    stretch meditate sweat shiver bleed limp stumble sip eat dine bathe shave sneak hide hunt
    fish dig plant bloom wither rust leak
"""
_ADJECTIVES = """
    furry wooden striped metallic hungry sleepy angry happy elderly feathered plastic muddy
    frozen woollen leather bearded barefoot noisy silent drunk nervous famous invisible electric
    inflatable rusty transparent checkered spotted shiny sticky wet dusty broken expensive cheap
    delicious rotten ripe sharp blunt foreign young tired lazy brave curious clever muscular
    checked velvet marble brass
"""


@cache
def unknown_words(sort: str, part: str) -> tuple[str, ...]:
    """Return the nouns, verbs or adjectives that belong to ``train`` or to ``test``.

    A hash gives half of the words to each part, so that a test word was never trained on.
    """
    lists = {"noun": _NOUNS, "verb": _VERBS, "adjective": _ADJECTIVES}
    bit = 0 if part == "train" else 1
    return tuple(
        word for word in lists[sort].split() if hashlib.sha256(word.encode()).digest()[0] % 2 == bit
    )
