"""A list on disk answers as the list that it was made of."""

from __future__ import annotations

import pytest
from limits import files_up_to

from greyhound.cache.scan import ImageInfo, ScanError
from greyhound.cache.spool import spool


def test_items_come_back_in_order_and_by_place() -> None:
    items = [ImageInfo(sha256="a", thumbnail=bytes(768)), ImageInfo(), ImageInfo(detail="\udcff \U0001f415")]
    with spool(items) as spooled:
        assert len(spooled) == 3
        assert [spooled[place] for place in (2, 0, 1)] == [items[2], items[0], items[1]]
        assert [(item, spooled[0]) for item in spooled] == [(item, items[0]) for item in items]
        assert list(zip(spooled, spooled, strict=True)) == [(item, item) for item in items]
        with pytest.raises(IndexError):
            spooled[3]


def test_nothing_is_a_list_too() -> None:
    nothing: list[int] = []
    with spool(nothing) as spooled:
        assert (len(spooled), list(spooled)) == (0, [])


@pytest.mark.parametrize("items", [1, 10_000])
def test_a_full_disk_is_said_with_the_folder(items: int) -> None:
    refused = pytest.raises(ScanError, match=r"cannot be kept in .* \(File too large\).*TMPDIR")
    with files_up_to(100), refused, spool(ImageInfo(thumbnail=bytes(768)) for _ in range(items)):
        pytest.fail("an item was lost without a word")
