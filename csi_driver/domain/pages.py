"""Lists in pages whose tokens survive changes between them; knows no message."""

from __future__ import annotations

import re

from csi_driver.domain.catalogue import Catalogue
from csi_driver.errors import InvalidToken
from csi_driver.model import Volume

_PREFIX = "after:"
_TOKEN = re.compile(r"after:[a-z0-9-]{1,63}")
_MOST = 20000


def token_after(volume_id: str) -> str:
    """The token of the page that follows the volume; it holds also when the volume is deleted meanwhile."""
    return f"{_PREFIX}{volume_id}"


def page(
    catalogue: Catalogue, max_entries: int, starting_token: str, *, with_ephemeral: bool = False
) -> tuple[list[Volume], bool]:
    """The volumes behind the token, and whether none follow them; ephemeral ones only if they are asked for.

    Raises: InvalidToken.
    """
    if starting_token and not _TOKEN.fullmatch(starting_token):
        raise InvalidToken(starting_token)
    limit = min(max_entries or _MOST, _MOST)
    found: list[Volume] = []
    behind = starting_token.removeprefix(_PREFIX)
    while len(found) <= limit:
        part = catalogue.after(behind, limit + 1)
        found += [volume for volume in part if with_ephemeral or not volume.is_ephemeral]
        if len(part) <= limit:
            break
        behind = part[-1].volume_id
    return found[:limit], len(found) <= limit
