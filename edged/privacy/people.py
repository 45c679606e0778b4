"""Names of people, where the words around them give them away.

No dictionary and no model: a name is found behind a title, a greeting, a label or a closing formula, and then wherever
else it stands in the same request. A name that is only mentioned is not found; ``[redact] names`` lists those to know.
"""

from collections.abc import Callable, Iterator
from typing import Any

from edged.privacy.words import Finder, whole_words

_WORD = r"\p{Lu}[\p{L}\p{M}'\-]*\p{Ll}[\p{L}\p{M}'\-]*"
_PARTICLE = r"(?:(?:de|da|di|del|des|der|den|dos|du|van|von|zu|la|le|bin|ibn|al|el|ter) ){0,2}"
_NAME = rf"{_WORD}(?: {_PARTICLE}(?:\p{{Lu}}\.|{_WORD})){{0,3}}"
_FULL_NAME = rf"{_WORD}(?: {_PARTICLE}(?:\p{{Lu}}\.|{_WORD})){{1,3}}"
_TITLE = (
    r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Herr|Herrn|Frau|Mme|Mlle|Monsieur|Madame"
    r"|Sr|Sra|Señor|Señora|Signor|Signora|Sig|Dhr|Mevr|Pan|Pani)\.?"
)
_GREETING = (
    r"(?:Dear|Hi|Hello|Hey|Liebe|Lieber|Hallo|Bonjour|Cher|Chère|Hola|Estimado|Estimada|Querida|Querido|Ciao|Caro|Cara"
    r"|Beste|Geachte|Sehr geehrte|Sehr geehrter)"
)
_SAYING = (
    r"(?i:my name is|name's|i am called|mein name ist|ich heiße|ich heisse|je m'appelle|mon nom est|me llamo"
    r"|mi nombre es|mi chiamo|ik heet|mijn naam is|signed by|spoke to|spoke with|speak to|speak with)"
)
_LABEL = (
    r"(?i:full name|first name|last name|given name|family name|surname|name|vorname|nachname|nom|prénom|nombre"
    r"|apellido|cognome|naam|patient|patient name|customer name|contact person|contact name|account holder|cardholder)"
)
_ROLE = (
    r"(?i:customer|client|employee|contact|from|to|cc|attn|attention|author|applicant|tenant|recipient|sender|kunde)"
)
_CLOSING = (
    r"(?i:regards|sincerely|wishes|cheers|yours|thanks|thank you|grüße|grüßen|gruß|cordialement|saludos|saluti|groeten)"
)
_PATTERNS = (
    rf"\b{_TITLE}\s(?:{_TITLE}\s)?({_NAME})",
    rf"(?:^|[\n\"'>]|\. )\s{{0,8}}{_GREETING},?\s(?:{_TITLE}\s){{0,2}}({_NAME})",
    rf"\b{_SAYING}[:,]?\s({_NAME})",
    rf"\b{_LABEL}\"?\s{{0,2}}[:=]\s{{0,4}}\"?({_NAME})",
    rf"\b{_ROLE}\"?\s{{0,2}}[:=]\s{{0,4}}\"?({_FULL_NAME})",
    rf"{_CLOSING}[,.!]?\s{{0,4}}\n\s{{0,8}}({_NAME})",
    rf"({_FULL_NAME})\"?\s<[^<>\s]{{1,100}}@",
)
_NOT_NAMES = frozenset(
    {
        *("All", "Team", "There", "Everyone", "Everybody", "World", "Sir", "Madam", "Customer"),
        *("Support", "Friend", "Friends", "Colleague", "Colleagues", "Zusammen", "Welt", "Damen"),
        *("Herren", "Tous", "Todos", "Tutti", "Assistant", "User", "You", "Your", "The", "This"),
        *("That", "Please", "What", "When", "Where", "Why", "How", "And", "Can", "Could", "Would"),
        *("Should", "Not", "None", "True", "False", "Null", "Unknown", "Required", "String"),
    }
)
_MIN_PART_CHARS = 3


def finder(compile_: Callable[[str], Any], known: tuple[str, ...]) -> Finder:
    """Finds names given away by their surroundings, and those that are known."""
    patterns = [compile_(pattern) for pattern in _PATTERNS]
    listed = whole_words(compile_, list(known), ignore_case=True)

    def find(text: str) -> Iterator[tuple[int, int]]:
        yield from listed(text)
        for pattern in patterns:
            for match in pattern.finditer(text):
                if match.group(1).split()[0] not in _NOT_NAMES:
                    yield match.span(1)

    return find


def parts(name: str) -> list[str]:
    """A name and those of its words that would give it away by themselves."""
    words = [word for word in name.split() if len(word) >= _MIN_PART_CHARS and word[:1].isupper()]
    return [name, *(word for word in words if word not in _NOT_NAMES and word.strip(".'-").isalpha())]
