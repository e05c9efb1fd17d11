"""Feed the reader what is broken and what is meant to do harm: `python -m tests.bench.hostile`.

    mutations     seeded mutants of real files, for each transfer syntax: every one is read or refused with a code
    bombs         seconds and memory until each kind of bomb is refused

Each prints JSON, and ends with 1 where a goal is missed. Mutants that were answered with no code are kept.
"""

import argparse
import json
import shutil
import struct
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydicom import dcmread, uid
from tqdm import tqdm

from dicom_io.errors import DicomError
from dicom_io.limits import MIB, Limits
from dicom_io.read import Refused, Sandbox, expand, frames, read_instance
from dicom_io.uids import TRANSFER_SYNTAXES
from tests.dicom_io import build
from tests.dicom_io.conftest import packaged
from tests.dicom_io.test_frames_of_many import encapsulated_file, raw_fragments
from tests.dicom_io.test_hostile_files import SMALL, data_set_start, deflate_bomb, deflated, nested, process_memory

PIXEL_DATA = b"\xe0\x7f\x10\x00"
FRAMES_MOST = 3  # of each mutant; a header may claim billions
REFUSED_WITHIN_S, REFUSED_WITHIN_MB = 1.0, 200.0
ENCAPSULATED, DEFLATED_FRAME = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def main() -> int:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("mutations", "bombs"))
    parser.add_argument("--count", type=int, default=10_000, help="mutants of each transfer syntax (default: 10000)")
    parser.add_argument("--seed", type=int, default=7, help="default: 7")
    parser.add_argument("--syntax", help="only this transfer syntax, by its name below")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="mutate these, not our own small ones")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    parser.add_argument("--kept", type=Path, default=Path("hostile"), help="folder for what was answered with no code")
    args = parser.parse_args()
    found: object
    if args.part == "bombs":
        refusals = found = bombs()
        good = all(one.seconds < REFUSED_WITHIN_S and one.megabytes < REFUSED_WITHIN_MB for one in refusals.values())
    else:
        wholes = {path.name: _with_uids(path) for path in args.files} or seeds()
        answers = found = {
            name: mutations(name, whole, count=args.count, seed=args.seed, workers=args.workers, kept=args.kept)
            for name, whole in wholes.items()
            if args.syntax in (None, name)
        }
        good = not any(row["without a code"] for row in answers.values())
    print(json.dumps(found, indent=1, default=vars))  # noqa: T201  # what was asked for
    return 0 if good else 1


# What is broken.


def seeds() -> dict[str, bytes]:
    """A small whole file of each transfer syntax whose pixels are read, by the syntax's name.

    High-throughput JPEG 2000, the progressive JPEGs and JPEG Lossless with other predictors share their decoders with
    those here; no package carries small files of them, so they come by --files.
    """
    grey = build.data_set(np.random.default_rng(1).integers(0, 4096, (24, 20), dtype=np.uint16), WindowCenter=40)
    plain = build.part10(grey)
    files = {
        uid.ImplicitVRLittleEndian: build.part10(grey, transfer_syntax=uid.ImplicitVRLittleEndian),
        uid.ExplicitVRLittleEndian: plain,
        uid.ExplicitVRBigEndian: packaged("SC_rgb_small_odd_big_endian.dcm").read_bytes(),
        ENCAPSULATED: encapsulated_file(1, raw_fragments(bytes(range(4))), transfer_syntax=ENCAPSULATED),
        uid.DeflatedExplicitVRLittleEndian: deflated(plain[data_set_start(plain) :]),
        uid.JPEGBaseline8Bit: packaged("SC_rgb_small_odd_jpeg.dcm").read_bytes(),
        uid.JPEGExtended12Bit: packaged("JPGExtended.dcm").read_bytes(),
        uid.JPEGLosslessSV1: packaged("SC_rgb_jpeg_gdcm.dcm").read_bytes(),
        uid.JPEGLSLossless: packaged("MR_small_jpeg_ls_lossless.dcm").read_bytes(),
        uid.JPEGLSNearLossless: _with_uids(packaged("JPEGLSNearLossless_08.dcm")),
        uid.JPEG2000Lossless: packaged("MR_small_jp2klossless.dcm").read_bytes(),
        uid.JPEG2000: packaged("693_J2KI.dcm").read_bytes(),
        uid.RLELossless: packaged("SC_rgb_rle_2frame.dcm").read_bytes(),
        DEFLATED_FRAME: encapsulated_file(1, raw_fragments(_packed(bytes(range(4)))), transfer_syntax=DEFLATED_FRAME),
    }
    return {TRANSFER_SYNTAXES[str(syntax)].name: content for syntax, content in files.items()}


def _with_uids(path: Path) -> bytes:
    """A file with the UIDs without which nothing is read, and which some test files lack."""
    made = dcmread(path)
    if "StudyInstanceUID" in made:
        return path.read_bytes()
    made.StudyInstanceUID, made.SeriesInstanceUID = build.STUDY, build.SERIES
    return build.part10(made, transfer_syntax=made.file_meta.TransferSyntaxUID)


def mutants(whole: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Bits, runs, numbers, cuts and splices, half of them in the pixels; two files of three have one. Without end."""
    pixels = max(whole.find(PIXEL_DATA), 0) or len(whole) // 2
    while True:
        made = bytearray(whole)
        for _ in range(1 if rng.random() < 2 / 3 else int(rng.integers(2, 9))):
            low = pixels if rng.random() < 0.5 else 132
            at = int(rng.integers(min(low, len(made) - 1), len(made)))
            length = min(2 ** int(rng.integers(9)), len(made) - at)
            match rng.integers(6):
                case 0:
                    made[at] ^= 1 << int(rng.integers(8))
                case 1:
                    made[at : at + length] = rng.bytes(length)
                case 2:  # a length, a count, a size
                    number = NUMBERS[int(rng.integers(len(NUMBERS)))]
                    made[at : at + 4] = number.to_bytes(4, "little" if rng.random() < 0.5 else "big")
                case 3:
                    del made[at:]
                    made = made or bytearray(1)
                case 4:
                    del made[at : at + length]
                    made = made or bytearray(1)
                case _:
                    source = int(rng.integers(len(made)))
                    made[at:at] = made[source : source + length]
        yield bytes(made)


def mutations(name: str, whole: bytes, *, count: int, seed: int, workers: int, kept: Path) -> dict[str, object]:
    """How many mutants of one file got which answer; the sandbox is the one that the application has."""
    answers: Counter[str] = Counter()
    local = threading.local()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hilum-bench-") as folder, Sandbox(workers=workers, limits=Limits()) as box:

        def one(content: bytes) -> str:
            if not hasattr(local, "path"):
                local.path = Path(folder) / f"{threading.get_ident()}.dcm"
            local.path.write_bytes(content)
            answer = answer_to(local.path, box)
            if answer.startswith("without a code"):
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(local.path, kept / f"{name.split()[0]}-{zlib.crc32(content):08x}.dcm")
            return answer

        unchanged = build.write(Path(folder), whole, "whole.dcm")
        assert answer_to(unchanged, box) == "read", f"the whole file is {answer_to(unchanged, box)}"
        all_of_them = islice(mutants(whole, np.random.default_rng(seed)), count)
        with ThreadPoolExecutor(workers) as pool, tqdm(total=count, desc=name[:30], unit="file") as bar:
            while batch := list(islice(all_of_them, 1000)):
                for answer in pool.map(one, batch):
                    answers[answer] += 1
                    bar.update()
        assert answer_to(unchanged, box) == "read", "the whole file is not read after all of them"
    return {
        "mutants": count,
        "without a code": sum(n for answer, n in answers.items() if answer.startswith("without a code")),
        "answers": dict(answers.most_common()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def answer_to(path: Path, sandbox: Sandbox) -> str:
    """`read`, the stable code of a refusal, or what came through that has none."""
    try:
        for _ in islice(frames(read_instance(path, sandbox=sandbox), sandbox=sandbox), FRAMES_MOST):
            pass
    except DicomError as refusal:
        return refusal.code
    except Exception as problem:  # noqa: BLE001  # whatever it is, it is what is looked for
        return f"without a code: {type(problem).__name__}: {problem}"
    return "read"


# What is meant to do harm.


@dataclass(frozen=True)
class Refusal:
    """What a bomb was answered with, in how many seconds, and by how much memory rose meanwhile."""

    answer: str
    seconds: float
    megabytes: float


def bombs() -> dict[str, Refusal]:
    """The answer to each bomb.

    Memory is the most that the decoding process ever held resident (VmHWM) less what it holds after a small file; of a
    zip, which is opened outside it, that of the process that opens it.
    """
    found: dict[str, Refusal] = {}
    for name, content in _bomb_files().items():
        with tempfile.TemporaryDirectory(prefix="hilum-bench-") as folder, Sandbox(workers=1, limits=Limits()) as box:
            assert answer_to(build.write(Path(folder), build.part10(SMALL), "small.dcm"), box) == "read"
            path, before = build.write(Path(folder), content(), "bomb.dcm"), process_memory(box)
            started = time.perf_counter()
            answer = answer_to(path, box)
            seconds = time.perf_counter() - started
            found[name] = Refusal(answer, round(seconds, 3), _mb(process_memory(box) - before))
    for name, write in {"zip of 512 MiB of zeros": _zeros, "zip of 100,000 members": _many}.items():
        with tempfile.TemporaryDirectory(prefix="hilum-bench-") as folder:
            write(path := Path(folder) / "bomb.zip")
            before = _own_peak(reset=True)
            started = time.perf_counter()
            refused = [one for one in expand(path, limits=Limits(), scratch=Path(folder)) if isinstance(one, Refused)]
            seconds = time.perf_counter() - started
            answer = refused[0].error.code if len(refused) == 1 else f"{len(refused)} refusals"
            found[name] = Refusal(answer, round(seconds, 3), _mb(_own_peak() - before))
    return found


def _bomb_files() -> dict[str, Callable[[], bytes]]:
    return {
        "deflated data set of 512 MiB": deflate_bomb,
        "deflated frame of 256 MiB": lambda: encapsulated_file(
            1, raw_fragments(_packed(bytes(256 * MIB))), transfer_syntax=DEFLATED_FRAME
        ),
        "RLE frame of 400 MB": lambda: encapsulated_file(
            1, raw_fragments(struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 3_000_000)
        ),
        "sequences 5,000 deep, undefined lengths": lambda: nested(5_000),
        "sequences 5,000 deep, defined lengths": lambda: nested(5_000, undefined=False),
        "header of 65535 x 65535 x 1000 frames": lambda: build.part10(
            build.data_set(np.zeros((2, 2), np.uint16), Rows=65535, Columns=65535, NumberOfFrames=1000)
        ),
        "JPEG of 65535 x 65535 in a header of 64 x 64": lambda: _stated(
            "SC_rgb_jpeg_gdcm.dcm", b"\xff\xc3", 5, ">HH", 65535
        ),
        "JPEG 2000 of 2^31 x 2^31 in a header of 64 x 64": lambda: _stated(
            "MR_small_jp2klossless.dcm", b"\xff\x51", 6, ">II", 2**31 - 1
        ),
    }


def _stated(name: str, marker: bytes, after: int, form: str, side: int) -> bytes:
    """A package's file whose codestream states another size."""
    content = bytearray(packaged(name).read_bytes())
    at = content.index(marker, content.index(PIXEL_DATA))
    struct.pack_into(form, content, at + after, side, side)
    return bytes(content)


def _packed(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def _zeros(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(f"{number}.dcm", bytes(64 * MIB))


def _many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(100_000):
            archive.writestr(str(number), b"")


def _own_peak(*, reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) * 1024


def _mb(size_bytes: int) -> float:
    return round(size_bytes / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
