"""Which of several replicas answers."""

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.serving.routing import choose, key_of

NAMES = ["north", "east", "south"]
LOADS = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 300), min_size=1, max_size=8)


def chat(*turns: tuple[str, str], model: str = "base") -> Any:
    return SimpleNamespace(model=model, messages=[{"role": role, "content": text} for role, text in turns])


@given(key=st.text(), loads=LOADS)
def test_none_gets_much_more_than_the_others(key: str, loads: dict[str, int]) -> None:
    chosen = choose(key, loads)
    assert loads[chosen] < math.ceil(1.25 * (sum(loads.values()) + 1) / len(loads)) + 2


def test_a_conversation_stays_where_it_began() -> None:
    began = chat(("system", "Be brief."), ("user", "Who is Hedwig?"))
    later = chat(*[("system", "Be brief."), ("user", "Who is Hedwig?")], ("assistant", "An owl."), ("user", "Whose?"))
    assert key_of(began) == key_of(later)
    idle = dict.fromkeys(NAMES, 0)
    assert choose(key_of(began), idle) == choose(key_of(later), {"north": 1, "east": 2, "south": 0})


def test_what_shares_no_cache_shares_no_key() -> None:
    bodies = [
        chat(("user", "Who is Hedwig?")),
        chat(("user", "Who is Hedwig?"), model="harry-potter"),
        chat(("user", "Who is Dobby?")),
        chat(("system", "Be brief."), ("user", "Who is Hedwig?")),
        SimpleNamespace(model="base", prompt="Who is Hedwig?"),
        SimpleNamespace(model="base", prompt=[1, 2, 3]),
        SimpleNamespace(model="base", messages="no list", prompt=None),
    ]
    assert len({key_of(body) for body in bodies}) == len(bodies)
    long = "word " * 100
    assert key_of(SimpleNamespace(prompt=f"{long}one")) == key_of(SimpleNamespace(prompt=f"{long}two"))


def test_half_a_surrogate_pair_is_placed_and_left_to_the_gate() -> None:
    for body in (SimpleNamespace(model="base", prompt="\ud800"), chat(("user", "Who?"), model="\udfff")):
        assert choose(key_of(body), dict.fromkeys(NAMES, 0)) in NAMES


def test_conversations_spread_over_replicas() -> None:
    found = Counter(choose(f"conversation {number}", dict.fromkeys(NAMES, 0)) for number in range(3000))
    assert all(900 < found[name] < 1100 for name in NAMES)


def test_one_question_from_everybody_reaches_every_replica() -> None:
    loads = dict.fromkeys(NAMES, 0)
    for _ in range(300):
        loads[choose("the same", loads)] += 1
    assert all(load > 30 for load in loads.values())


def test_a_replica_that_goes_takes_only_its_own_conversations_along() -> None:
    keys = [f"conversation {number}" for number in range(300)]
    before = {key: choose(key, dict.fromkeys(NAMES, 0)) for key in keys}
    after = {key: choose(key, dict.fromkeys(NAMES[:2], 0)) for key in keys}
    assert all(after[key] == name for key, name in before.items() if name != "south")
