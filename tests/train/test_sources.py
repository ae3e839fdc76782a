"""Documents from every kind of file, in one order; what is held out."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from circadia.train.sources import Document, HeldOut, Source

ROWS = [{"text": f"text {i} ä\nsecond line", "author": "AB"[i % 2]} for i in range(5)]
TEXTS = [row["text"] for row in ROWS]
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def texts(path, **settings):
    return [document.text for document in Source((str(path),), **settings).documents()]


def jsonl(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("packed", ["", *PACK])
def test_text_and_jsonl(tmp_path, packed):
    pack, end = PACK.get(packed, bytes), f".{packed}" if packed else ""
    (tmp_path / f"a.jsonl{end}").write_bytes(pack(jsonl()))
    (tmp_path / f"b.txt{end}").write_bytes(pack(TEXTS[0].encode()))
    assert texts(tmp_path / f"a.jsonl{end}") == TEXTS
    assert texts(tmp_path) == [*TEXTS, TEXTS[0]]


def test_parquet_also_compressed(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert texts(tmp_path / "a.parquet") == texts(tmp_path / "b.parquet.gz") == TEXTS


def test_a_folder_is_read_in_the_order_of_names_without_notes(tmp_path):
    (tmp_path / "z").mkdir()
    for name, text in {"z/1.txt": "third", "a.txt": "first", "b.txt": "second", "NOTES.md": "no"}.items():
        (tmp_path / name).write_text(text)
    assert texts(tmp_path) == ["first", "second", "third"]
    assert texts(tmp_path / "NOTES.md") == ["no"]  # when it is named itself
    both = Source((str(tmp_path / "b.txt"), str(tmp_path / "z")))
    assert [document.text for document in both.documents()] == ["second", "third"]


def test_hugging_face_datasets_saved_and_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_bytes(jsonl())
    (tmp_path / "folder" / "test.jsonl").write_bytes(jsonl(ROWS[:1]))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "dict")
    assert texts(f"hf:{tmp_path / 'folder'}") == TEXTS
    assert texts(f"hf:{tmp_path / 'folder'}", split="test") == TEXTS[:1]
    assert texts(f"hf:{tmp_path / 'saved'}") == texts(f"hf:{tmp_path / 'dict'}", split="dev") == TEXTS
    with pytest.raises(ValueError, match="split 'no', cannot be read"):
        texts(f"hf:{tmp_path / 'folder'}", split="no")


@pytest.mark.parametrize("path", ["a.jsonl", "hf:saved", "a.jsonl a.jsonl"])
@pytest.mark.parametrize("start", [0, 2, 5, 7])
def test_starting_later_leaves_out_the_first(tmp_path, monkeypatch, path, start):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    source = Source(tuple(path.split()))
    everything = list(source.documents())
    assert len(everything) == 5 * len(source.paths)
    assert list(source.documents(start)) == everything[start:]


def test_held_out_by_pattern_and_by_fraction():
    documents = [Document(f"{i}.txt", "", {"author": "AB"[i % 2]}) for i in range(2000)]
    by_author, by_name = HeldOut(["author=B"]), HeldOut(["*5.txt", "0.txt"])
    assert [by_author(i, d) for i, d in enumerate(documents[:4])] == [False, True, False, True]
    assert [d.name for i, d in enumerate(documents[:17]) if by_name(i, d)] == ["0.txt", "5.txt", "15.txt"]
    picked = [HeldOut(0.1)(i, d) for i, d in enumerate(documents)]
    assert 150 < sum(picked) < 250
    assert not any(HeldOut(0.0)(i, d) for i, d in enumerate(documents))
    assert all(more or not less for less, more in zip(picked, [HeldOut(0.3)(i, d) for i, d in enumerate(documents)]))
    with pytest.raises(ValueError, match=r"0\.txt has no field 'year'; its fields are: author"):
        HeldOut(["year=1"])(0, documents[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', r"data\.text='text': a\.jsonl#0 has no such text; its fields are: body"),
        ("a.jsonl", b"{\n", "holds a line that is no JSON"),
        ("a.txt", b"\xff\xfe\xff", "is no UTF-8 text"),
        ("a.txt.gz", b"not packed", "cannot be read"),
        ("a.txt.gz", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20, "cannot be read"),
        ("a.txt.zst", b"not packed", "cannot be read"),
        ("a.jsonl", b'{"text": "a \\ud800 b"}', r"data\.text='text': a\.jsonl#0 holds half a character at 2"),
        ("a.parquet", b"not parquet", "is no Parquet file"),
        ("a.txt.xz", lzma.compress(b"x" * 9999)[:40], "cannot be read"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(tmp_path / name)


def test_places_without_text(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file that ends in \.txt"):
        Source((str(tmp_path),))
    with pytest.raises(
        ValueError, match="org/name does not exist; for a dataset of the Hugging Face Hub write hf:org/name"
    ):
        Source(("org/name",))
