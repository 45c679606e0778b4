"""Prompts of a wanted length that no server has seen before, and that make a model write at length."""

import random

_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name team minute idea kid body information back"
)
_STORY_WORDS = 24
_TASK = "Write a very long and detailed story about all of this. Do not stop early."

_FIRST_NAMES = "Margaret Ferdinand Yolanda Bartholomew Philippa Sofia Robert Jane Anselm Ottilie Hugo Beatrix Casimir"
_LAST_NAMES = (
    "Osterhagen Quillfeather Abernathy Drinkwater Lindqvist Ellery Whitcombe Marchetti Okafor Holloway Vandermeer"
)
_STREETS = "Willowbrook Harbour Granite Cathedral Mill River Orchard Station Meadow Foundry Chapel Lantern"
_TOWNS = "Tillamook Ellenport Marquette Ashtabula Natchitoches Harwick Dunmore Selkirk Brackley Fairhaven"
_CONTACTS = 8


def prompt(words: int, *, seed: str) -> str:
    """A text of about ``words`` tokens, the same for the same seed.

    Texts of different seeds differ from the first word on, so that no cached prefix of an earlier prompt can be used.
    """
    chosen = random.Random(seed).choices(_WORDS.split(), k=max(8, words - len(_TASK.split())))  # noqa: S311 - no secret
    return f"{' '.join(chosen)}.\n\n{_TASK}"


def story(*, seed: str) -> str:
    """A short prompt of a few words, to be told a story about."""
    return prompt(_STORY_WORDS, seed=seed)


def words_for(wanted_tokens: int, *, tried_words: int, got_tokens: int | None) -> int:
    """Correct the number of words by what a server counted for a try.

    Each word is one token, and the chat template adds the same number to every prompt.
    """
    if got_tokens is None:
        return tried_words
    return max(8, tried_words + wanted_tokens - got_tokens)


def extraction(*, seed: str) -> str:
    """A text full of names, addresses and numbers, and the task to bring all of them out as they are written."""
    chosen = random.Random(seed)  # noqa: S311 - no secret

    def contact() -> str:
        first, last, street, town = (
            chosen.choice(names.split()) for names in (_FIRST_NAMES, _LAST_NAMES, _STREETS, _TOWNS)
        )
        house, phone = chosen.randrange(1, 999), chosen.randrange(1000, 9999)
        return f"{first} {last}, {house} {street} Street, {town}, phone 555-{phone}"

    contacts = "\n".join(contact() for _ in range(_CONTACTS))
    return f"{contacts}\n\nList all contacts above, one per line, with every detail exactly as it is written."
