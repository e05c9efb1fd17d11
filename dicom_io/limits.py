"""How much of a file, an archive and a decoding process is tolerated."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps that hold before anything is parsed, inflated or allocated.

    The defaults let every real object through that was tried.
    """

    file_bytes: int = 2048 * MIB  # one Part 10 file as it lies on disk
    inflated_bytes: int = 256 * MIB  # a deflated data set or a deflated frame after inflating
    frame_bytes: int = 256 * MIB  # one frame as float32, the form in which it leaves the reader
    sequence_depth: int = 64  # sequences inside sequences
    element_count: int = 2_000_000  # elements before the pixels; an 8,800-frame enhanced MR has about 600,000
    archive_bytes: int = 8192 * MIB  # all members of one zip together, unpacked
    archive_members: int = 50_000  # members of one zip, entries of one DICOMDIR, files of one folder
    inflate_free_bytes: int = 64 * MIB  # what inflates to no more than this may do so at any ratio
    inflate_ratio: int = 100  # inflated to packed, for a deflated data set and for a zip as a whole
    memory_bytes: int = 2048 * MIB  # address space of one decoding process, its interpreter included
    cpu_seconds: int = 20  # processor time for one answer
    wall_seconds: float = 30.0  # time for one answer
    start_seconds: float = 60.0  # time for a decoding process to come up on a busy machine
