"""Folders, zips, tables and Parquet files that people hold: the right classes and splits, or a refusal."""

import io
import json
import logging
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data import headers, tables, viewing
from ddpm_jax.data.image_files import FileDataset
from ddpm_jax.data.prepare import prepare
from ddpm_jax.errors import UserError
from ddpm_jax.files.tables import decode_any


def picture(path, color=(10, 20, 30), size=(4, 4), mode="RGB", **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, color).save(path, **options)


def pictures(root, *paths):
  for number, path in enumerate(paths):
    picture(root / path, (number, 0, 0))
  return root


def zipped(root):
  file = root.parent / f"{root.name}.zip"
  with zipfile.ZipFile(file, "w") as archive:
    for path in sorted(root.rglob("*")):
      if path.is_file():
        archive.write(path, path.relative_to(root))
  return file


def labels(root, split="train", **options):
  return data.load(str(root), split, **options).labels.tolist()


def names(root, **options):
  return data.load(str(root), **options).info.class_names


# ---------------------------------------------------------------- hidden files


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".cache/deep", ".git"])
@pytest.mark.parametrize("pack", [False, True])
def test_hidden_folders_hold_no_data(tmp_path, hidden, pack):
  root = pictures(tmp_path / "set", "cat/0.png", "dog/0.png", f"{hidden}/0.png", f"cat/{hidden}/1.png", "cat/._0.png")
  source = data.load(str(zipped(root) if pack else root))
  assert source.labels.tolist() == [0, 1] and source.info.class_names == ("cat", "dog")
  assert any("3 hidden files" in line for line in source.summary)


def test_links_in_a_circle_end(tmp_path):
  root = pictures(tmp_path / "set", "cat/0.png", "dog/0.png")
  os.symlink(root, root / "cat/again")
  os.symlink("/dev/zero", root / "cat/endless.png")
  assert len(data.load(str(root), corrupt="skip")) == 2
  with pytest.raises(UserError, match="cannot be read .*not a regular file"):
    data.load(str(root), image_size=4)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("top", ["", "birds/", "all/birds/"])
@pytest.mark.parametrize(
  "spelling", [("train", "test", "val"), ("Train", "TEST", "Validation"), ("training", "testing", "valid")]
)
@pytest.mark.parametrize("pack", [False, True])
def test_splits_are_found_in_any_case_and_below_one_folder(tmp_path, top, spelling, pack):
  train, test, val = spelling
  paths = [f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/dog/2.png", f"{val}/cat/3.png"]
  root = pictures(tmp_path / "set", *(top + path for path in paths))
  name = str(zipped(root) if pack else root)
  assert data.load(name, "train").images[:, 0, 0, 0].tolist() == [0, 1] and labels(name) == [0, 1]
  assert data.load(name, "test").images[:, 0, 0, 0].tolist() == [2] and labels(name, "test") == [1]
  assert labels(name, "val") == labels(name, "validation") == [0]
  assert len(data.load(name, "all")) == 4


def test_training_images_are_those_outside_a_test_folder(tmp_path):
  root = pictures(tmp_path, "cat/0.png", "dog/1.png", "test/dog/2.png")
  assert data.load(str(root)).images[:, 0, 0, 0].tolist() == [0, 1] and labels(root, "test") == [1]


def test_images_beside_the_splits_are_left_out_and_said(tmp_path, caplog):
  root = pictures(tmp_path, "train/cat/0.png", "train/dog/1.png", "more/3.png")
  assert len(data.load(str(root))) == 2
  assert "in no split: 1 images, such as more/3.png" in caplog.text


@pytest.mark.parametrize(
  ("paths", "message"),
  [
    (("Train/0.png", "train/1.png"), "two folders of the split 'train'"),
    (("val/0.png", "valid/1.png", "train/1.png"), "two folders of the split 'val'"),
    (("a/train/0.png", "a/test/0.png", "b/train/0.png"), "give the path of one data set"),
    (("a/train/0.png", "a/test/0.png", "b/0.png"), "give the path of one data set"),
  ],
)
def test_contradicting_splits_are_refused(tmp_path, paths, message):
  with pytest.raises(UserError, match=message):
    data.load(str(pictures(tmp_path, *paths)))


def test_a_share_is_held_out_where_there_is_no_test_folder(tmp_path):
  root = pictures(tmp_path / "set", *(f"{'ab'[k % 2]}/{k:02}.png" for k in range(30)))
  train, test = (data.load(str(root), split, holdout=0.2) for split in ("train", "test"))
  assert len(train) == 24 and len(test) == 6
  colors = [source.images[:, 0, 0, 0].tolist() for source in (train, test)]
  assert sorted(colors[0] + colors[1]) == list(range(30))
  again = data.load(str(zipped(root)), "test", holdout=0.2)
  assert again.images[:, 0, 0, 0].tolist() == colors[1]  # by names alone
  assert any("6 of 30 images are held out" in line for line in train.summary)
  with pytest.raises(UserError, match="data.holdout"):
    data.load(str(root), "test")
  with pytest.raises(UserError, match="holdout must be"):
    data.load(str(root), holdout=1.5)
  pictures(root, "test/a/0.png", "train/a/0.png")
  assert len(data.load(str(root), "test", holdout=0.2)) == 1  # its own test folder goes first


# ---------------------------------------------------------------- classes of folders


def test_one_numbering_serves_all_splits(tmp_path):
  root = pictures(tmp_path, "train/ant/0.png", "train/bee/0.png", "train/cat/0.png", "test/cat/0.png", "val/bee/0.png")
  for split, expected in (("train", [0, 1, 2]), ("test", [2]), ("val", [1])):
    source = data.load(str(root), split)
    assert source.labels.tolist() == expected
    assert source.info.num_classes == 3 and source.info.class_names == ("ant", "bee", "cat")
  pictures(root, "test/emu/0.png")
  assert labels(root) == [0, 1, 2]
  with pytest.raises(UserError, match="test/emu/0.png is of the class 'emu', which the training split .* lacks"):
    data.load(str(root), "test")
  assert labels(root, "test", labels="none") == [-1, -1]


def test_a_network_keeps_its_numbers_on_other_data(tmp_path):
  root = pictures(tmp_path / "a", "bee/0.png", "cat/0.png")
  assert labels(root, class_names=("ant", "bee", "cat")) == [1, 2]
  assert data.load(str(root), class_names=("ant", "bee", "cat")).info.num_classes == 3
  with pytest.raises(UserError, match="class 'cat', which this network does not know"):
    data.load(str(root), class_names=("ant", "bee"))


def test_the_class_is_the_first_folder_if_the_last_says_nothing(tmp_path):
  assert names(pictures(tmp_path / "a", "cat/images/0.png", "dog/images/1.png")) == ("cat", "dog")  # as tiny ImageNet
  assert names(pictures(tmp_path / "b", "cat/cats/0.png", "dog/dogs/1.png")) == ("cat", "dog")
  root = pictures(tmp_path / "c", "cat/1/0.png", "cat/2/0.png", "dog/1/1.png")
  with pytest.raises(UserError, match="may be 'cat' or '1': set labels='top'"):
    data.load(str(root))
  assert names(root, labels="top") == ("cat", "dog") and names(root, labels="folders") == ("1", "2")


def test_folders_beside_loose_images_are_not_classes_and_that_is_said(tmp_path):
  source = data.load(str(pictures(tmp_path, "cat/0.png", "dog/1.png", "2.png")))
  assert source.info.num_classes is None and any("1 images are in none of them" in line for line in source.summary)


def test_prefixes_are_suggested_not_guessed(tmp_path):
  root = pictures(tmp_path, *(f"{name}_{k}.png" for name in ("cat", "dog") for k in range(3)))
  source = data.load(str(root))
  assert source.info.num_classes is None and any("labels=prefix would take the 2" in line for line in source.summary)
  assert names(root, labels="prefix") == ("cat", "dog")


# ---------------------------------------------------------------- tables

WRITTEN = {
  "plain": ("cat/0.png", "b/1.png"),
  "dotted": ("./cat/0.png", "./b/1.png"),
  "windows": ("cat\\0.png", ".\\b\\1.png"),
  "absolute": ("/home/me/set/cat/0.png", "C:\\set\\b\\1.png"),
  "names": ("0.png", "1.png"),
  "stems": ("0", "1"),
  "split": ("train/cat/0.png", "train/b/1.png"),
}


@pytest.mark.parametrize("style", WRITTEN)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("where", ["labels.csv", "train/labels.csv"])
def test_csv_in_any_separator_and_path_style(tmp_path, style, separator, where):
  root = pictures(tmp_path, "train/cat/0.png", "train/b/1.png")
  rows = [separator.join(row) for row in zip(WRITTEN[style], ("zebra", "ant"), strict=True)]
  (root / where).write_text("\n".join(rows))
  assert dict(zip([1, 0], labels(root), strict=True)) == {0: 1, 1: 0} and names(root) == ("ant", "zebra")


@pytest.mark.parametrize(
  "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_csv_in_any_encoding(tmp_path, encoding, newline):
  root = pictures(tmp_path, "0.png", "1.png")
  (root / "labels.csv").write_bytes(f'file,label{newline}0.png,"Käse"{newline}1.png,Brot{newline}'.encode(encoding))
  assert labels(root) == [1, 0] and names(root) == ("Brot", "Käse")


def test_the_column_of_classes_is_found_by_its_heading(tmp_path):
  root = pictures(tmp_path, "0.png", "1.png")
  (root / "labels.csv").write_text("id,split,label\n0,train,b\n1,train,a\n")
  assert labels(root) == [1, 0]
  (root / "labels.csv").write_text("class,filename\nb,0.png\na,1.png\n")
  assert labels(root) == [1, 0]


def test_numbers_stay_as_they_are_and_impossible_ones_are_refused(tmp_path):
  root = pictures(tmp_path, "0.png", "1.png")
  (root / "labels.csv").write_text("0.png,7\n1.png,2\n")
  source = data.load(str(root))
  assert source.labels.tolist() == [7, 2] and source.info.num_classes == 8 and source.info.class_names is None
  for text, message in (
    ("0.png,-1\n1.png,2\n", "numbered from 0"),
    ("0.png,1000000000\n1.png,2\n", "numbered up to 1000000000"),
    ("0.png,a\n0.png,b\n1.png,a\n", "two classes"),
    ("0.png,a\n", "no class for 1 of 2"),
    ("0.png,a\n1.png,\n", "no class for 1 of 2"),
    ("x.png,a\ny.png,b\n", "names none of the images"),
    ("nonsense", "names none of the images"),
  ):
    (root / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
      data.load(str(root))


def test_a_name_that_fits_two_files_is_refused(tmp_path):
  root = pictures(tmp_path, "cat/0.png", "dog/0.png")
  (root / "labels.csv").write_text("0.png,a\n")
  with pytest.raises(UserError, match="may be cat/0.png or dog/0.png: write whole paths"):
    data.load(str(root))


def test_edm_labels_are_read_wherever_the_zip_has_them(tmp_path):
  root = pictures(tmp_path / "set", "00000/img00000000.png", "00001/img00001000.png")
  assert data.load(str(root)).info.num_classes is None  # numbered folders are no classes
  (root / "dataset.json").write_text('{"labels": null}')
  assert data.load(str(zipped(root))).info.num_classes is None
  for content in ({"labels": [["00000/img00000000.png", 1], ["00001/img00001000.png", 0]]},
                  {"labels": {"00000/img00000000.png": 1, "00001/img00001000.png": 0}}):  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    assert labels(zipped(root)) == [1, 0]
  for text, message in (
    ("[]", 'no field "labels"'),
    ("{", "is not a readable JSON file"),
    ("[" * 100_000, "is not a readable JSON file"),
    ('{"labels": [["00000/img00000000.png", [0.1, 0.2]]]}', "not the number of a class"),
    ('{"labels": [1, 2]}', "should list"),
  ):
    (root / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
      data.load(str(root))


def test_hugging_face_metadata(tmp_path):
  root = pictures(tmp_path, "train/0.png", "train/1.png", "test/2.png")
  (root / "train/metadata.csv").write_text("file_name,text,label\n0.png,a cat,cat\n1.png,an ant,ant\n")
  (root / "test/metadata.csv").write_text("file_name,text,label\n2.png,a cat,cat\n")
  assert labels(root) == [1, 0] and labels(root, "test") == [1]
  for split in ("train", "test"):
    (root / split / "metadata.csv").unlink()
  lines = [{"file_name": f"{split}/{k}.png", "label": k % 2} for k, split in enumerate(("train", "train", "test"))]
  (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
  assert labels(root) == [0, 1] and labels(root, "test") == [0]
  (root / "metadata.jsonl").write_text('{"file_name": "train/0.png", "text": "a cat"}\n')
  source = data.load(str(root))
  assert source.info.num_classes is None and any("fields file_name, text" in line for line in source.summary)
  (root / "metadata.jsonl").write_text('["train/0.png"]\n')
  with pytest.raises(UserError, match='"file_name" on each line'):
    data.load(str(root))


def test_two_kinds_of_tables_are_a_contradiction(tmp_path):
  root = pictures(tmp_path, "0.png", "1.png")
  (root / "labels.csv").write_text("0.png,a\n1.png,b\n")
  (root / "dataset.json").write_text('{"labels": [["0.png", 1], ["1.png", 0]]}')
  with pytest.raises(UserError, match="holds labels.csv and dataset.json: choose one"):
    data.load(str(root))
  assert labels(root, labels="dataset.json") == [1, 0] and labels(root, labels="labels.csv") == [0, 1]


def test_text_is_read_in_its_encoding():
  assert decode_any("ä".encode("utf-16"), "t")[0] == "ä"
  assert decode_any(b"\xe4\x80", "t") == ("ä€", "cp1252")
  with pytest.raises(UserError, match="UTF-16"):
    decode_any(b"\xff\xfe\x00", "t")


def test_a_path_of_thousands_of_folders_takes_no_memory():
  deep = "a/" * 30_000 + "0.png"
  tracemalloc.start()
  paths = tables.Paths([deep, "b/0.png"], [])
  assert paths.find("x/" * 30_000 + "b/0.png") == "b/0.png" and paths.find(deep) == deep
  assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
  tracemalloc.stop()


# ---------------------------------------------------------------- Parquet


def parquet(path, rows, column="label", class_names=None):
  pa = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  images = []
  for red, _ in rows:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    images.append({"bytes": buffer.getvalue(), "path": f"{red}.png"})
  table = pa.table({"image": images, column: [label for _, label in rows]})
  if class_names:
    about = {"info": {"features": {column: {"names": class_names, "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(table, path, row_group_size=2)


def test_parquet_has_splits_classes_and_their_names(tmp_path):
  parquet(tmp_path / "data/train-00000-of-00002.parquet", [(0, 1), (1, 0), (2, 2)], class_names=["ant", "bee", "cat"])
  parquet(tmp_path / "data/train-00001-of-00002.parquet", [(3, 1)], class_names=["ant", "bee", "cat"])
  parquet(tmp_path / "data/test-00000-of-00001.parquet", [(4, 2)], class_names=["ant", "bee", "cat"])
  source = data.load(str(tmp_path), memory_limit=0)
  images, found = source.gather(np.array([3, 0, 2, 1]))
  assert images[:, 0, 0, 0].tolist() == [3, 0, 2, 1] and found.tolist() == [1, 1, 2, 0]
  assert source.info.class_names == ("ant", "bee", "cat") and source.info.num_classes == 3
  assert labels(tmp_path, "test") == [2] and labels(tmp_path, "test", labels="none") == [-1]
  assert labels(tmp_path / "data/train-00001-of-00002.parquet") == [1]
  made = prepare("from_parquet", tmp_path, data_dir=tmp_path / "sets")
  assert made.is_dir() and sorted(labels("from_parquet", data_dir=tmp_path / "sets")) == [0, 1, 1, 2]


def test_parquet_with_names_as_labels_and_damaged_files(tmp_path):
  parquet(tmp_path / "train.parquet", [(0, "dog"), (1, "cat")])
  parquet(tmp_path / "test.parquet", [(2, "dog")])
  assert labels(tmp_path) == [1, 0] and labels(tmp_path, "test") == [1]
  with pytest.raises(UserError, match="has no split 'val'"):
    data.load(str(tmp_path), "val")
  with pytest.raises(UserError, match="no column 'color'"):
    data.load(str(tmp_path), labels="color")
  (tmp_path / "test.parquet").write_bytes(b"PAR1 nothing PAR1")
  with pytest.raises(UserError, match="cannot be read as Parquet"):
    data.load(str(tmp_path), "test")


# ---------------------------------------------------------------- what is there, and what is left out


def test_a_table_under_another_name_is_mentioned_and_can_be_named(tmp_path):
  root = pictures(tmp_path / "set", "0.png", "1.png")
  (root / "classes.txt").write_text("0.png,ant\n1.png,bee\n")
  said = "not read: classes.txt; if it is a table of classes, set data.labels=classes.txt"
  for place in (root, zipped(root)):
    source = data.load(str(place))
    assert source.info.num_classes is None and said in "; ".join(source.summary)
    source = data.load(str(place), labels="classes.txt")
    assert source.info.class_names == ("ant", "bee") and "not read" not in "; ".join(source.summary)


def test_the_summary_says_what_is_there_and_what_is_done_with_it(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  for number in range(5):
    picture(tmp_path / f"{number}.png", 9, (8, 6), "L")
  picture(tmp_path / "color.webp", (255, 0, 0), (6, 4))
  picture(tmp_path / "clear.png", (255, 0, 0, 0), (4, 4), "RGBA")
  (tmp_path / "bad.png").write_bytes(b"no picture")
  (tmp_path / "phone.heic").write_bytes(b"heic")
  source = data.load(str(tmp_path), image_size=4, corrupt="skip")
  assert len(source) == 7 and source.info.channels == 3
  text = "; ".join(source.summary)
  for line in (
    "8 images: 7 .png, 1 .webp",
    "3 sizes from 4x4 to 8x6, fitted to 4x4 by crop 'adm'",
    "modes: 5 L, 1 RGB",
    "5 grey, kept grey in RGB",
    "1 transparent, laid over white",
    "1 that cannot be opened, such as bad.png",
    "not read: 1 .heic",
    "skipped 1 of 8 images",
  ):
    assert line in text, text
  assert "8 images: 7 .png" in caplog.text


def test_every_kind_of_decoding_failure_can_be_skipped(tmp_path):
  pictures(tmp_path, "0.png")
  picture(tmp_path / "cut.png")
  (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:50])
  Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
  (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
  (tmp_path / "empty.gif").write_bytes(b"")
  huge = bytearray((tmp_path / "0.png").read_bytes())
  huge[16:24] = (2**30).to_bytes(4, "big") * 2  # claims 2^60 pixels
  (tmp_path / "huge.png").write_bytes(huge)
  source = data.load(str(tmp_path), image_size=4, corrupt="skip")
  assert len(source) == 1 and "skipped 5 of 6 images that cannot be decoded" in source.summary


def test_formats_that_are_not_read_are_named(tmp_path):
  (tmp_path / "a.heic").write_bytes(b"x")
  with pytest.raises(UserError, match="only 1 .heic: convert them"):
    data.load(str(tmp_path))
  (tmp_path / "a.heic").rename(tmp_path / "data_batch_1")
  with pytest.raises(UserError, match="run `ddpm-jax data prepare cifar10"):
    data.load(str(tmp_path))


def test_headers_of_large_sets_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
  monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(headers, "CACHED_FROM", 1)
  root = pictures(tmp_path / "set", "0.png", "1.png")
  first = FileDataset(root).split("train").headers
  assert len(list((tmp_path / "cache/headers").iterdir())) == 1
  seen = []
  monkeypatch.setattr(viewing, "header", lambda file: seen.append(file) or first[0])
  assert FileDataset(root).split("train").headers == first and not seen
  picture(root / "0.png", (0, 0, 9), (5, 5))
  FileDataset(root).split("train").headers  # noqa: B018
  assert len(seen) == 2
  for file in (tmp_path / "cache/headers").iterdir():
    file.write_text("[" * 1000)
  assert FileDataset(root).split("train").headers == [first[0]] * 2  # a damaged file is not believed
  for file in (tmp_path / "cache/headers").iterdir():
    file.write_text('{"headers": [[1]], "files": [0, 0]}')
  assert FileDataset(root).split("train").headers == [first[0]] * 2


def test_arrays_and_images_do_not_mix(tmp_path):
  np.save(tmp_path / "0.npy", np.zeros((4, 4, 5), np.uint8))
  assert data.load(str(tmp_path)).images.shape == (1, 4, 4, 5)
  assert data.load(str(tmp_path), image_size=(2, 4)).images.shape == (1, 2, 4, 5)
  with pytest.raises(UserError, match="have 5 channels, not 3"):
    data.load(str(tmp_path), channels=3)
  picture(tmp_path / "1.png")
  with pytest.raises(UserError, match="mixes .npy arrays"):
    data.load(str(tmp_path))


def test_names_of_classes_and_their_order_are_stored_with_prepared_sets(tmp_path):
  root = pictures(tmp_path / "set", "train/bee/0.png", "train/ant/1.png", "test/bee/2.png")
  prepare("insects", root, data_dir=tmp_path / "sets")
  for split, expected in (("train", [0, 1]), ("test", [1])):
    source = data.load("insects", split, data_dir=tmp_path / "sets")
    assert sorted(source.labels.tolist()) == expected and source.info.class_names == ("ant", "bee")
