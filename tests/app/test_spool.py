"""The spool keeps bytes by their digest: durably, once, and whole or not at all."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import DiskShort, NotInSpool, SpoolDamaged, SpoolUnwritable
from app.spool import ABANDONED_SECONDS, Spool

PUT = "import sys; from pathlib import Path; from app.spool import Spool; spool = Spool(Path(sys.argv[1])); "


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "deep" / "spool")


def files(spool: Spool) -> list[Path]:
    return sorted(path for path in spool.root.rglob("*") if path.is_file())


def test_bytes_and_files_are_kept_under_their_digest(spool: Spool, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert spool.put(tmp_path / "file") == (digest, 3_000_000, True)
    assert spool.put(content) == (digest, 3_000_000, False)
    assert spool.path(digest) == spool.root / digest[:2] / digest[2:4] / digest
    assert spool.path(digest).read_bytes() == content
    assert files(spool) == [spool.path(digest)]


def test_no_bytes_are_bytes_too(spool: Spool) -> None:
    kept = spool.put(b"")
    assert kept == (hashlib.sha256().hexdigest(), 0, True)
    assert spool.path(kept.sha256).read_bytes() == b""


def test_a_kept_file_is_nobodys_to_write_and_strangers_cannot_read_it(spool: Spool) -> None:
    path = spool.path(spool.put(b"x").sha256)
    assert path.stat().st_mode & 0o777 == 0o440
    for folder in (spool.root, path.parent, path.parent.parent):
        assert folder.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "0" * 64])
def test_a_name_that_is_no_kept_digest_finds_nothing(spool: Spool, name: str) -> None:
    with pytest.raises(NotInSpool):
        spool.path(name)


def test_changed_bytes_are_noticed_and_healed_by_sending_the_file_again(spool: Spool) -> None:
    kept = spool.put(b"original")
    path = spool.path(kept.sha256)
    path.chmod(0o640)
    path.write_bytes(b"originaL")
    with pytest.raises(SpoolDamaged, match="backup"):
        spool.check(kept.sha256)
    spool.put(b"original")
    spool.check(kept.sha256)


def test_a_disk_that_would_run_short_refuses_before_it_writes(tmp_path: Path) -> None:
    free_bytes = shutil.disk_usage(tmp_path).free
    spool = Spool(tmp_path / "spool", keep_free_bytes=2 * free_bytes)
    with pytest.raises(DiskShort, match="send the file again") as caught:
        spool.put(b"x")
    assert caught.value.needed_bytes == 2 * free_bytes + 1
    assert files(spool) == []


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files is the one refusal that also holds for root.
    program = PUT + (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: spool.put(bytes(100_000))\n"
        "except Exception as error: print(error.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "spool"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == SpoolUnwritable.code
    assert files(Spool(tmp_path / "spool")) == []


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(SpoolUnwritable):
        Spool(tmp_path / "spool")


def test_the_same_bytes_from_many_threads_are_kept_once(spool: Spool) -> None:
    contents = [bytes([number % 3]) * 500_000 for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(spool.put, contents))
    assert len({one.sha256 for one in kept}) == 3
    assert len(files(spool)) == 3
    for one in kept:
        spool.check(one.sha256)


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    source = tmp_path / "slow"
    os.mkfifo(source)
    root = tmp_path / "spool"
    command: list[str | Path] = [sys.executable, "-c", PUT + "spool.put(Path(sys.argv[2]))", root, source]
    with subprocess.Popen(command) as process, source.open("wb") as writer:
        writer.write(os.urandom(2_000_000))
        while not (left := [path for path in (root / "incoming").iterdir() if path.stat().st_size]):
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert len(left) == 1
    Spool(root)
    assert left[0].exists()  # too fresh to be sure
    aged = left[0].stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(left[0], (aged, aged))
    assert files(Spool(root)) == []


def test_a_file_that_is_still_arriving_is_left_alone_however_old(tmp_path: Path) -> None:
    source = tmp_path / "slow"
    os.mkfifo(source)
    root = tmp_path / "spool"
    command: list[str | Path] = [sys.executable, "-c", PUT + "spool.put(Path(sys.argv[2]))", root, source]
    # Opening a pipe waits for the other side, which has by then made and locked its file.
    with subprocess.Popen(command) as process, source.open("wb", buffering=0) as writer:
        writer.write(b"first half, ")
        (arriving,) = (root / "incoming").iterdir()
        os.utime(arriving, (1, 1))
        Spool(root)
        assert arriving.exists()
        writer.write(b"second half")
        writer.close()
        assert process.wait() == 0
    Spool(root).check(hashlib.sha256(b"first half, second half").hexdigest())


def test_every_acknowledged_file_survives_kill_9(tmp_path: Path) -> None:
    rng = random.Random(17)
    program = PUT + "[print(spool.put(i.to_bytes(4) * 50_000).sha256, flush=True) for i in range(10**6)]"
    root = tmp_path / "spool"
    acknowledged: set[str] = set()
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", program, root], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for _ in range(rng.randrange(1, 60)):
                acknowledged.add(process.stdout.readline().strip())
            process.kill()
            acknowledged |= {line.strip() for line in process.stdout if line.endswith("\n")}
    spool = Spool(root)
    assert acknowledged
    for digest in acknowledged:
        spool.check(digest)
    for path in files(spool):
        if path.parent.name != "incoming":
            spool.check(path.name)  # nothing half written has a name
