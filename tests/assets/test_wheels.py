"assets.wheels: a package index of our own with one small wheel, and everything that can go wrong on the way from it to the cache."

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gti_nb.assets import EMBEDDED, Wheel, asset_path, cache_dir
from gti_nb.core import GTIError

MEMBERS = {
    "tiny_asset/data/a.txt": b"first " * 50,
    "tiny_asset/data/more/b.txt": b"second",
    "tiny_asset/code.py": b"raise SystemExit('ran')",
}


def make_wheel(folder: Path, members=MEMBERS) -> Wheel:
    "A wheel that pip accepts, and its description."
    folder.mkdir(exist_ok=True)
    file = folder / "tiny_asset-1.0-py3-none-any.whl"
    info = {
        "tiny_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        b"Requires-Dist: does-not-exist-anywhere\n",
        "tiny_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_asset-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(file, "w") as z:
        for name, data in {**members, **info}.items():
            z.writestr(name, data)
    return Wheel(
        "data", "tiny-asset==1.0", hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size, "tiny_asset/data/", "test terms"
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    "An index with the wheel, and an empty cache; both by environment, as a user would have them."
    monkeypatch.setitem(EMBEDDED, "tiny-asset", make_wheel(tmp_path / "index"))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "GTI_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def test_fetch_reads_only_the_members_and_says_the_terms_once(index, capsys):
    folder = asset_path("tiny-asset", "data")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == ["a.txt", "gti_manifest.json", "more/b.txt"]
    assert (folder / "a.txt").read_bytes() == MEMBERS["tiny_asset/data/a.txt"]
    assert capsys.readouterr().out.count("test terms") == 1
    (index / "index" / "tiny_asset-1.0-py3-none-any.whl").unlink()
    assert asset_path("tiny-asset", "data") == folder and "test terms" not in capsys.readouterr().out
    assert names_in(index / "cache") == [folder.name]


def flip(file: Path) -> None:
    "Change one bit; size and time of change stay."
    times, data = file.stat(), bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda f: flip(f / "a.txt"), "a.txt has other bytes than were written"),
        (lambda f: (f / "more" / "b.txt").unlink(), "more/b.txt is missing"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json was added"),
        (lambda f: (f / "gti_manifest.json").write_text('{"sha256": '), "not valid JSON"),
        (lambda f: (f / "gti_manifest.json").write_text((f / "gti_manifest.json").read_text().replace("terms", "times")), "not what was"),
    ],
)
def test_a_damaged_cache_is_named_and_fetched_again(index, capsys, damage, says):
    folder = asset_path("tiny-asset", "data")
    damage(folder)
    capsys.readouterr()
    assert asset_path("tiny-asset", "data") == folder
    said = capsys.readouterr().out
    assert says in said and "fetching tiny-asset again" in said
    assert (folder / "a.txt").read_bytes() == MEMBERS["tiny_asset/data/a.txt"] and not (folder / "config.json").exists()
    asset_path("tiny-asset", "data")
    assert capsys.readouterr().out == ""


def test_a_damaged_cache_without_network_names_the_file(index, capsys):
    folder = asset_path("tiny-asset", "data")
    flip(folder / "a.txt")
    (index / "index" / "tiny_asset-1.0-py3-none-any.whl").unlink()
    with pytest.raises(GTIError, match="the package index gave no such wheel"):
        asset_path("tiny-asset", "data")
    assert "a.txt has other bytes" in capsys.readouterr().out and (folder / "more" / "b.txt").exists()


def test_wrong_hash(index):
    make_wheel(index / "index", {"tiny_asset/data/a.txt": b"something else"})
    with pytest.raises(GTIError, match="tiny-asset==1.0: sha256 is .*, expected .*nothing was read"):
        asset_path("tiny-asset", "data")
    assert names_in(index / "cache") == []


def test_no_network(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(index / "nowhere"))
    with pytest.raises(GTIError, match="tiny-asset==1.0: the package index gave no such wheel .*network"):
        asset_path("tiny-asset", "data")
    assert names_in(index / "cache") == []
    assert asset_path(index / "index", "data") == index / "index"  # a local path needs no network


def test_unreachable_index(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(GTIError, match="network"):
        asset_path("tiny-asset", "data")


def test_cache_that_cannot_be_made(index, monkeypatch):
    (index / "file").write_text("")
    monkeypatch.setenv("GTI_CACHE", str(index / "file" / "cache"))
    with pytest.raises(GTIError, match="cache folder .*set GTI_CACHE to a folder you can write, or pass a local path"):
        asset_path("tiny-asset", "data")


def test_read_only_cache_that_is_filled_works(index, monkeypatch):
    folder = asset_path("tiny-asset", "data")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("os.open", refuse)
    assert asset_path("tiny-asset", "data") == folder


def test_full_disk(index, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(GTIError, match="the disk is full"):
        asset_path("tiny-asset", "data")
    assert names_in(index / "cache") == []


@pytest.mark.parametrize("name", ["../../../evil.txt", "/evil.txt", "a/../../../evil.txt", "..\\\\evil.txt", "C:evil.txt", "/../evil.txt"])
def test_member_that_climbs_out_is_refused(index, monkeypatch, name):
    monkeypatch.setitem(EMBEDDED, "tiny-asset", make_wheel(index / "index", {f"tiny_asset/data/{name}": b"x"}))
    with pytest.raises(GTIError, match="refused member"):
        asset_path("tiny-asset", "data")
    assert not list(index.rglob("evil.txt"))


def test_links_and_twins_are_refused(index, monkeypatch):
    link = zipfile.ZipInfo("tiny_asset/data/link")
    link.external_attr = 0o120777 << 16
    monkeypatch.setitem(EMBEDDED, "tiny-asset", make_wheel(index / "index", {link: b"/etc/passwd"}))
    with pytest.raises(GTIError, match="refused member 'tiny_asset/data/link', a link"):
        asset_path("tiny-asset", "data")
    twins = {zipfile.ZipInfo("tiny_asset/data/a.txt"): b"1", zipfile.ZipInfo("tiny_asset/data/./a.txt"): b"2"}
    monkeypatch.setitem(EMBEDDED, "tiny-asset", make_wheel(index / "index", twins))
    with pytest.raises(GTIError, match="occurs twice"):
        asset_path("tiny-asset", "data")
    assert names_in(index / "cache") == []


def test_absurd_expansion_is_refused(index, monkeypatch):
    bomb = zipfile.ZipInfo("tiny_asset/data/zeros")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    monkeypatch.setitem(EMBEDDED, "tiny-asset", make_wheel(index / "index", {bomb: bytes(2**26 + 1)}))
    with pytest.raises(GTIError, match="unpacks to 67,108,865 bytes, allowed: 67,108,864"):
        asset_path("tiny-asset", "data")
    assert names_in(index / "cache") == []


def test_two_processes_at_once(index):
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path; from gti_nb.assets import EMBEDDED, Wheel, asset_path
EMBEDDED["tiny-asset"] = Wheel(*{tuple(vars(EMBEDDED["tiny-asset"]).values())!r})
print("at", asset_path("tiny-asset", "data"))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sum("test terms" in s for s in said) == 1 and len({s.splitlines()[-1] for s in said}) == 1
    assert (asset_path("tiny-asset", "data") / "a.txt").read_bytes() == MEMBERS["tiny_asset/data/a.txt"]


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here" and not cache_dir().exists()
    monkeypatch.delenv("GTI_CACHE")
    assert cache_dir().name == "gti-nb"
