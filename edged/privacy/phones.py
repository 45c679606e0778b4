"""Phone numbers, as the numbering plan of each country has them."""

import re
from collections.abc import Iterator

from edged.errors import ConfigError
from edged.privacy.words import Place, is_apart

_BARE = re.compile(r"[0-9]{10,15}")


class Numbers:
    """Finds numbers in international form, and those that can be dialled as they stand in one of ``regions``.

    Raises: ConfigError for a region that has no numbering plan.
    """

    def __init__(self, regions: tuple[str, ...]) -> None:
        import phonenumbers

        if unknown := [region for region in regions if region not in phonenumbers.SUPPORTED_REGIONS]:
            raise ConfigError(f'redact.phone_regions: "{unknown[0]}" is not a region phone numbers are known for')
        self._regions: tuple[str | None, ...] = regions or (None,)
        self._country_codes = {phonenumbers.country_code_for_region(region) for region in regions}

    def within(self, window: str) -> Iterator[Place]:
        """The places of numbers in a short text."""
        import phonenumbers

        for region in self._regions:
            for number in phonenumbers.PhoneNumberMatcher(window, region, max_tries=len(window)):
                yield number.start, number.end
        for match in _BARE.finditer(window):
            if is_apart(window, *match.span()) and self._is_international(match.group()):
                yield match.span()

    def _is_international(self, digits: str) -> bool:
        """Digits that lack only the plus sign, of a country that is asked for."""
        import phonenumbers

        try:
            number = phonenumbers.parse(f"+{digits}")
        except phonenumbers.NumberParseException:
            return False
        return number.country_code in self._country_codes and bool(phonenumbers.is_valid_number(number))
