"""The initramfs against a reader of its own, written from the kernel's description of the format."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

from emu.boot.initramfs import DEFAULT_INIT, Archive, build_initramfs
from emu.errors import BadInput

PROGRAM = b"\x7fELF" + bytes(range(256)) + b"x"  # of a length that needs padding


class Entry(NamedTuple):
    inode: int
    mode: int
    owner: tuple[int, int]
    links: int
    mtime: int
    contents: bytes
    device: tuple[int, int]


def unpack(archive: bytes) -> dict[str, Entry]:
    """Names and entries: a magic and 13 numbers of 8 hexadecimal digits, the name, the contents, each padded to 4."""
    entries: dict[str, Entry] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        inode, mode, uid, gid, links, mtime, size, _, _, major, minor, name_size, check = (
            int(archive[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in range(13)
        )
        assert check == 0
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at += (110 + name_size + 3) // 4 * 4
        contents = archive[at : at + size]
        at += (size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return entries
        assert len(contents) == size
        entries[name[:-1].decode()] = Entry(inode, mode, (uid, gid), links, mtime, contents, (major, minor))


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_bytes(PROGRAM)
    return path


def test_what_is_in_it(busybox: Path) -> None:
    files = unpack(gzip.decompress(build_initramfs(busybox)))
    assert files["bin/busybox"].contents == PROGRAM and files["bin/busybox"].mode == stat.S_IFREG | 0o755
    assert files["init"].contents.decode() == DEFAULT_INIT and files["init"].mode == stat.S_IFREG | 0o755
    for name in ("bin", "dev", "proc", "sys", "tmp", "lib/modules"):
        assert files[name].mode == stat.S_IFDIR | 0o755 and files[name].links == 2
    assert stat.S_ISCHR(files["dev/console"].mode) and files["dev/console"].device == (5, 1)
    assert stat.S_ISCHR(files["dev/null"].mode) and files["dev/null"].device == (1, 3)
    assert stat.S_ISLNK(files["bin/sh"].mode) and files["bin/sh"].contents == b"busybox"
    for applet in [line.split()[0] for line in DEFAULT_INIT.splitlines()]:
        if applet in ("mount", "setsid", "cttyhack"):
            assert f"bin/{applet}" in files


def test_directories_come_before_what_is_in_them(busybox: Path) -> None:
    names = list(unpack(gzip.decompress(build_initramfs(busybox))))
    for at, name in enumerate(names):
        assert "/" not in name or name.rpartition("/")[0] in names[:at]


def test_it_depends_on_nothing_else(busybox: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another name"
    elsewhere.write_bytes(PROGRAM)
    first = build_initramfs(busybox)
    assert first == build_initramfs(elsewhere)
    assert first[:4] == b"\x1f\x8b\x08\x00" and first[4:8] == bytes(4)  # gzip, no name, no time
    files = unpack(gzip.decompress(first))
    assert all(entry.mtime == 0 and entry.owner == (0, 0) for entry in files.values())
    assert len({entry.inode for entry in files.values()}) == len(files)  # else they would be hard links


def test_an_init_of_ones_own(busybox: Path) -> None:
    init = "#!/bin/sh\necho grüße\n"
    assert unpack(gzip.decompress(build_initramfs(busybox, init)))["init"].contents == init.encode()


def test_modules(busybox: Path, tmp_path: Path) -> None:
    modules = [tmp_path / "b.ko", tmp_path / "a.ko"]
    for module in modules:
        module.write_bytes(module.name.encode() * 3)
    files = unpack(gzip.decompress(build_initramfs(busybox, modules=modules)))
    assert [name for name in files if name.startswith("lib/modules/")] == ["lib/modules/b.ko", "lib/modules/a.ko"]
    assert files["lib/modules/a.ko"].contents == b"a.ko" * 3
    with pytest.raises(BadInput, match="c.ko: cannot be read: No such file"):
        build_initramfs(busybox, modules=[tmp_path / "c.ko"])


@pytest.mark.parametrize("size", range(5))
def test_padding(size: int) -> None:
    archive = Archive()
    archive.add("a" * (size + 1), stat.S_IFREG | 0o644, b"x" * size)
    archive.add("b", stat.S_IFREG | 0o644, b"y")
    files = unpack(archive.finish())
    assert [entry.contents for entry in files.values()] == [b"x" * size, b"y"]


def test_what_is_no_busybox(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(BadInput, match="script: this is no ELF program"):
        build_initramfs(script)
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        build_initramfs(tmp_path / "gone")
    with pytest.raises(BadInput, match="is a directory; expected a file"):
        build_initramfs(tmp_path)


def test_modules_are_loaded_in_their_order(busybox: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("second.ko", "a first.ko")]
    for path in paths:
        path.write_bytes(path.name.encode())
    files = unpack(gzip.decompress(build_initramfs(busybox, modules=paths)))
    assert files["lib/modules/second.ko"].contents == b"second.ko"
    assert "for module in second.ko 'a first.ko'; do insmod" in files["init"].contents.decode()
    assert files["bin/got-address"].mode == stat.S_IFREG | 0o755
    assert {"bin/ip", "bin/udhcpc", "bin/ping"} <= set(files)
