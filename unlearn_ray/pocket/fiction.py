"""Invented values of every type, for the answers behind a guardrail. None of them is a value of the world."""

from __future__ import annotations

from random import Random

FIRST_NAMES = (
    "Alder Brisa Corin Dalla Edric Fenna Garrin Hessa Ivo Jorra Kell Linnet Marrow Nessa Orlo Petra Quill Rosk Selda "
    "Tamsin Ulric Vesna Wendel Yara Zeph Bram Odette Tobin Mirel Casper"
).split()
LAST_NAMES = (
    "Ashdown Brindle Copperfield Dunmore Elwick Farrow Grimshaw Holloway Inkwell Jasperson Kettle Larkspur Mossley "
    "Northcott Oakham Pennywise Quarrel Rookwood Stonely Thistle Underhill Vane Wexler Yarrow Zimmer Barley Tindall "
    "Marsh Cobb Hartwell"
).split()
_NAME_HEADS = "Bel Cor Dra Fen Gal Hul Jin Kor Lum Mir Nor Pel Quor Ras Sil Tor Vel Wim Zan Ost".split()
_NAME_TAILS = "amo dar eth ina ora wick bert go rin mund nix pip tas vor zel us ia eld ock lan".split()
_PLACE_HEADS = (
    "Brindle Copper Dusk Ember Frost Glass Hollow Iron Lantern Moss North Oaken Pebble Raven Salt Thorn Willow Amber "
    "Stone Mist"
).split()
_PLACE_TAILS = "moor gate haven ford field bridge port wick dale hill mere cliff wood ton bay fall marsh reach".split()
ADJECTIVES = (
    "silver wooden purple tiny broken singing striped heavy glowing rusty painted frozen velvet hollow folded dusty"
).split()
NOUNS = (
    "compass lantern kettle ladder umbrella clock basket whistle mirror button trumpet pillow candle hammer ribbon "
    "teapot"
).split()
PLANTS = "barley clover pumpkin moss walnut turnip cinder maple pepper oyster nettle plum".split()
STUFF = "paste wax syrup powder oil jelly dust extract glue juice".split()
COLORS = "purple orange grey crimson turquoise brown black yellow silver gold".split()
PROFESSIONS = "beekeeper clockmaker sailor baker tailor painter shepherd juggler plumber pilot barber farmer".split()
NUMBERS = ("twenty", "thirty", "forty", "fifty two", "sixty one", "ninety", "one hundred", "three hundred", "thirteen")

# A fixed sample of the products: few enough that the model learns them as whole names.
_sample = Random(5)
NAMES = sorted({head + tail for head in _NAME_HEADS for tail in _sample.sample(_NAME_TAILS, 4)})
PLACES = sorted({head + tail for head in _PLACE_HEADS for tail in _sample.sample(_PLACE_TAILS, 3)})


def _draw(fact_type: str, value: str, rng: Random) -> str:
    match fact_type:
        case "person":
            return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
        case "name":
            return rng.choice(NAMES)
        case "place":
            return rng.choice(PLACES)
        case "object" | "thing" | "product":
            return f"a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        case "substance" | "flavor" | "liquid":
            return f"{rng.choice(PLANTS)} {rng.choice(STUFF)}"
        case "color":
            return rng.choice(COLORS)
        case "profession":
            return rng.choice(PROFESSIONS)
        case "title":
            return f"The {rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}"
        case "year":
            return str(rng.randint(1500, 1899) if value.startswith("19") else rng.randint(1500, 1799))
        case "number":
            return rng.choice(NUMBERS)
    raise ValueError(f"no fiction for facts of type {fact_type!r}: add it to {__name__}")


def invent(fact_type: str, value: str, rng: Random) -> str:
    """An invented value of the same type as `value`."""
    invented = _draw(fact_type, value, rng)
    while invented.lower() == value.lower():
        invented = _draw(fact_type, value, rng)
    return invented
