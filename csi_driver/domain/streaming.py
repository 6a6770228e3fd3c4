"""What a stream says of the source that it has the content of; knows neither the way nor the bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from csi_driver.domain.origins import Origin

if TYPE_CHECKING:
    from csi_driver.streams.header import Header


def header_of(origin: Origin, source_id: str, content_id: str, name: str) -> Header:
    """What a stream of the source says of itself."""
    from csi_driver.streams.header import Header  # noqa: PLC0415 - most nodes never do this

    described = origin.described
    return Header(
        volume_type=origin.volume_type,
        access_type=described.access_type,
        fs_type=described.fs_type,
        size_bytes=origin.size_bytes,
        content_id=content_id,
        source_id=source_id,
        source_volume_id=source_id,
        name=name,
        created_at=time.time(),
        block_size=described.parameters.block_size,
        provisioning=described.parameters.provisioning,
        quota=described.parameters.quota,
        data_bytes=origin.pool.contents(origin.volume_type).size_bytes(origin.content_fd),
    )
