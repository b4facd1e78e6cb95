"core.contents: any single change of a folder changes its identity, nothing else does, and a kept hash hides no change."

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gti_nb.core import GTIError, changed_files, check_seal, path_hash, path_hashes, read_json, write_sealed

NAMES = st.text("ab%é.", min_size=1, max_size=3).filter(lambda name: name.strip("."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
FOLDERS = st.dictionaries(PATHS, st.binary(min_size=1, max_size=40), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settle(folder: Path) -> None:
    "Hash every file as if it were a day old, so that its hash is kept."
    tomorrow = time.time_ns() + 86400 * 10**9
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(time, "time_ns", lambda: tomorrow)
        path_hashes(folder)


def write(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    "Write what can be written: a name cannot be both a file and a folder."
    written = {}
    for name, data in files.items():
        path = folder / name
        if any(other.startswith(f"{name}/") or name.startswith(f"{other}/") for other in written):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written[name] = data
    return written


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FOLDERS, st.data())
def test_any_single_change_changes_the_identity(files, data):
    with TemporaryDirectory() as place:
        folder = Path(place) / "folder"
        names = sorted(write(folder, files))
        before = path_hash(folder)
        chosen = folder / data.draw(st.sampled_from(names))
        kind = data.draw(st.sampled_from(["byte", "longer", "name", "add", "remove", "touch", "copy"]))
        content = chosen.read_bytes()
        if kind == "byte":
            at = data.draw(st.integers(0, len(content) - 1))
            chosen.write_bytes(content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :])
        elif kind == "longer":
            chosen.write_bytes(content + b"\0")
        elif kind == "name":
            chosen.rename(chosen.with_name(f"{chosen.name}z"))
        elif kind == "add":
            chosen.with_name("zz").write_bytes(b"")
        elif kind == "remove":
            chosen.unlink()
        elif kind == "touch":
            os.utime(chosen, ns=(data.draw(st.integers(0, 2**60)),) * 2)
        else:  # other inodes and another place, the same content
            write(Path(place) / "copy", {name: (folder / name).read_bytes() for name in names})
            folder = Path(place) / "copy"
        assert (path_hash(folder) == before) == (kind in ("touch", "copy"))


def same_size(path: Path) -> None:
    path.write_bytes(b"evil")


def same_size_and_time(path: Path) -> None:
    times = path.stat()
    path.write_bytes(b"evil")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def another_inode(path: Path) -> None:
    times = path.stat()
    path.with_name("new").write_bytes(b"evil")
    os.utime(path.with_name("new"), ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("change", [same_size, same_size_and_time, another_inode])
def test_a_kept_hash_hides_no_change(tmp_path, cache, change, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"good")
    settle(tmp_path / "data")
    read = []
    monkeypatch.setattr("gti_nb.core.contents.file_hash", lambda path: read.append(path) or "0" * 64)
    good = path_hash(tmp_path / "data")
    assert not read, "an unchanged file is not read again"
    monkeypatch.undo()
    monkeypatch.setenv("GTI_CACHE", str(cache))
    change(tmp_path / "data" / "a")
    assert path_hash(tmp_path / "data") != good


def test_a_hash_is_not_kept_while_the_clock_could_miss_a_change(tmp_path, cache):
    (tmp_path / "a").write_bytes(b"good")
    path_hash(tmp_path / "a")
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"files": {"": 3}}', None])
def test_a_damaged_store_is_ignored(tmp_path, cache, damage):
    (tmp_path / "a").write_bytes(b"good")
    settle(tmp_path / "a")
    good = path_hash(tmp_path / "a")
    (store,) = (cache / "hashes").iterdir()
    kept = store.read_bytes()
    digest = next(iter(path_hashes(tmp_path / "a").values())).encode()
    store.write_bytes(kept.replace(digest, b"0" * 64) if damage is None else damage)
    assert path_hash(tmp_path / "a") == good


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "a").write_bytes(b"good")
    os.utime(tmp_path / "a", (0, 0))
    assert path_hash(tmp_path / "a") == path_hash(tmp_path / "a")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GTIError, match="pipe: neither a file nor a folder"):
        path_hash(tmp_path)
    (tmp_path / "pipe").unlink()
    (tmp_path / "round").symlink_to(tmp_path)
    with pytest.raises(GTIError, match="a link to a folder in which it lies"):
        path_hash(tmp_path)
    (tmp_path / "round").unlink()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(GTIError, match="broken: a link to a file that does not exist"):
        path_hash(tmp_path)
    with pytest.raises(GTIError, match="missing: No such file"):
        path_hash(tmp_path / "missing")


def test_links_count_as_what_they_lead_to(tmp_path):
    for place in ("plain", "linked", "blobs"):
        (tmp_path / place).mkdir()
    (tmp_path / "plain" / "model").write_bytes(b"weights")
    (tmp_path / "blobs" / "1234").write_bytes(b"weights")
    (tmp_path / "linked" / "model").symlink_to(tmp_path / "blobs" / "1234")
    assert path_hash(tmp_path / "linked") == path_hash(tmp_path / "plain")
    (tmp_path / "blobs" / "1234").write_bytes(b"weighty")
    assert path_hash(tmp_path / "linked") != path_hash(tmp_path / "plain")


def test_names_that_are_not_unicode(tmp_path):
    seen = set()
    for name in (b"a\xff", b"a\xfe", b"a%FF"):
        (tmp_path / "one").mkdir()
        (tmp_path / os.fsdecode(b"one/" + name)).write_bytes(b"x")
        seen.add(path_hash(tmp_path / "one"))
        assert changed_files(tmp_path / "one", path_hashes(tmp_path / "one")) == []
        (tmp_path / os.fsdecode(b"one/" + name)).unlink()
        (tmp_path / "one").rmdir()
    assert len(seen) == 3


def test_changed_files_are_named(tmp_path):
    write(tmp_path / "run", {"a": b"1", "b/c": b"2", "d": b"3"})
    expected = path_hashes(tmp_path / "run")
    assert changed_files(tmp_path / "run", expected) == []
    (tmp_path / "run" / "a").write_bytes(b"9")
    (tmp_path / "run" / "b" / "c").unlink()
    (tmp_path / "run" / "more").write_bytes(b"of the user")
    assert changed_files(tmp_path / "run", expected) == ["a has other bytes than were written", "b/c is missing"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=True)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), JSON, min_size=1, max_size=3), st.data())
def test_a_seal_tells_every_change(record, data):
    with TemporaryDirectory() as place:
        path = write_sealed(Path(place) / "a.json", record)
        read = read_json(path)
        check_seal(path, read)
        key = data.draw(st.sampled_from(sorted(record)))
        for changed in ({**read, key: [read[key]]}, {**read, "more": 1}, {k: v for k, v in read.items() if k != key}):
            with pytest.raises(GTIError, match="not what was written"):
                check_seal(path, changed)


def test_a_record_without_a_seal_is_of_an_earlier_version(tmp_path):
    check_seal(tmp_path / "old.json", {"schema": 1})
    with pytest.raises(GTIError, match="holds a list"):
        check_seal(tmp_path / "old.json", [])
