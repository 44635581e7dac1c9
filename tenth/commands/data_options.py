"""What commands that read text share: sources as they are named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenth.data.readers import Format, TextSource


def text_sources(
    paths: Sequence[str], text_key: str, domain: str | None, domain_key: str | None, format: Format
) -> list[TextSource]:
    """The sources of a command; RequestError where one has no files, before any work."""
    from tenth.data.readers import TextSource, source_files

    sources = [TextSource(path, "", text_key, domain, domain_key, format) for path in paths]
    for source in sources:
        source_files(source)
    return sources
