"""Lists in pages whose tokens survive changes between them; knows no message."""

from __future__ import annotations

import re
from collections.abc import Callable

from csi_driver.domain.catalogue import HeldT, Index
from csi_driver.errors import InvalidToken

_PREFIX = "after:"
_TOKEN = re.compile(r"after:[a-z0-9-]{1,63}")
_MOST = 20000


def check_token(starting_token: str) -> None:
    """Refuse a token that no page of ours ended with.

    Raises: InvalidToken.
    """
    if starting_token and not _TOKEN.fullmatch(starting_token):
        raise InvalidToken(starting_token)


def last_of(starting_token: str) -> str:
    """The id that the page before ended with; empty for the first page.

    Raises: InvalidToken.
    """
    check_token(starting_token)
    return starting_token.removeprefix(_PREFIX)


def token_after(object_id: str) -> str:
    """The token of the page that follows the object; it holds also when the object is deleted meanwhile."""
    return f"{_PREFIX}{object_id}"


def page(index: Index[HeldT], max_entries: int, starting_token: str) -> tuple[list[HeldT], bool]:
    """The objects behind the token, and whether none follow them.

    Raises: InvalidToken.
    """
    return page_of(index, max_entries, starting_token, lambda _: True)


def page_of(
    index: Index[HeldT], max_entries: int, starting_token: str, is_wanted: Callable[[HeldT], bool]
) -> tuple[list[HeldT], bool]:
    """The wanted objects behind the token, and whether none follow them.

    Raises: InvalidToken.
    """
    check_token(starting_token)
    limit = min(max_entries or _MOST, _MOST)
    found: list[HeldT] = []
    last = starting_token.removeprefix(_PREFIX)
    while len(found) <= limit:
        batch = index.after(last, limit + 1)
        found += [held for held in batch if is_wanted(held)]
        if len(batch) <= limit:
            break
        last = batch[-1].object_id
    return found[:limit], len(found) <= limit
