from __future__ import annotations

from pathlib import Path

import pytest

from greyhound.cache.store import PackError
from greyhound.cache.survey.table import COLUMNS, Row, read_rows, write_rows

ROWS = [
    Row("a/1.jpg", "a", "JPEG", 640, 480, 12345, 6, 31.5, 120.25, 88.0, "ab" * 32, "0f" * 8, ("grayscale", "dark"), "", "exclude", "grayscale"),
    Row('b/<img onerror="x">\n,;.jpg', "b", findings=("near-duplicate",), of="a/1.jpg"),
]  # fmt: skip


def test_the_table_comes_back_as_it_was(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "survey.csv")
    assert [*read_rows(tmp_path / "survey.csv")] == ROWS
    first = (tmp_path / "survey.csv").read_text().splitlines()[0]
    assert first == (
        "path,class,format,width,height,bytes,orientation,colourfulness,mean_luma,sharpness,sha256,"
        "perceptual_hash,findings,of,verdict,reason"
    )
    assert first == ",".join(COLUMNS)


@pytest.mark.parametrize("content", [b"path,class\na,b\n", b"\xff\xfe\x00", b"path,class,width\na,b,wide\n"])
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.csv"
    file.write_bytes(content)
    with pytest.raises(PackError, match=r"other\.csv is no survey\.csv"):
        list(read_rows(file))
    with pytest.raises(PackError, match=r"cannot be read"):
        list(read_rows(tmp_path / "nothing.csv"))
