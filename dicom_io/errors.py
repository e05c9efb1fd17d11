"""What can go wrong with a file, an archive of files, or the process that decodes them.

    DicomError                          dicom
    ├── FileUnreadable                  dicom.file-unreadable
    ├── NotDicom                        dicom.not-dicom
    ├── TooLarge                        dicom.too-large
    ├── Malformed                       dicom.malformed
    │   ├── Truncated                   dicom.truncated
    │   ├── NestingTooDeep              dicom.nesting-too-deep
    │   ├── MissingUid                  dicom.missing-uid
    │   ├── BadUid                      dicom.bad-uid
    │   └── BadAttribute                dicom.bad-attribute
    ├── NotRead                         dicom.not-read
    │   ├── TransferSyntaxMissing       dicom.transfer-syntax-missing
    │   ├── TransferSyntaxNotRead       dicom.transfer-syntax-not-read
    │   ├── PixelsNotRead               dicom.pixels-not-read
    │   ├── NoPixels                    dicom.no-pixels
    │   ├── PixelsMissing               dicom.pixels-missing
    │   ├── NoSuchFrame                 dicom.no-such-frame
    │   ├── NoSuchValue                 dicom.no-such-value
    │   └── IsDirectory                 dicom.is-directory
    ├── CannotDecode                    dicom.cannot-decode
    ├── ZipRefused                      dicom.zip-refused
    │   └── ZipMemberRefused            dicom.zip-member-refused
    ├── ReferenceRefused                dicom.reference-refused
    ├── NotReported                     dicom.not-reported
    │   ├── NothingToReport             dicom.nothing-to-report
    │   ├── EvidenceMixed               dicom.evidence-mixed
    │   ├── EvidenceMissing             dicom.evidence-missing
    │   ├── HeatMapUnfit                dicom.heat-map-unfit
    │   └── HeatMapUnplaced             dicom.heat-map-unplaced
    ├── NotAVolume                      dicom.not-a-volume
    ├── PeerError                       dicom.peer
    │   ├── PeerUnreachable             dicom.peer-unreachable
    │   ├── PeerRefused                 dicom.peer-refused
    │   ├── PeerHasNot                  dicom.peer-has-not
    │   ├── PeerGaveLess                dicom.peer-gave-less
    │   └── PeerAnswerInvalid           dicom.peer-answer-invalid
    └── SandboxError                    dicom.sandbox
        ├── SandboxCrashed              dicom.sandbox-crashed
        ├── SandboxTimedOut             dicom.sandbox-timed-out
        ├── SandboxOutOfMemory          dicom.sandbox-out-of-memory
        ├── SandboxAnswerRefused        dicom.sandbox-answer-refused
        └── SandboxUnavailable          dicom.sandbox-unavailable

Messages name tags, keywords and numbers. They never carry text from the patient's or the study's fields.
"""


class DicomError(Exception):
    """Anything this package refuses; `code` is stable, the message says what is wrong."""

    code = "dicom"


class FileUnreadable(DicomError):
    """The file is not there, may not be opened, or is a link, a pipe or a device."""

    code = "dicom.file-unreadable"


class NotDicom(DicomError):
    """The bytes are neither a Part 10 file nor a bare DICOM data set."""

    code = "dicom.not-dicom"


class TooLarge(DicomError):
    """The file, what it inflates to, or one of its frames is over the configured limit."""

    code = "dicom.too-large"


class Malformed(DicomError):
    """It is DICOM, and it is broken."""

    code = "dicom.malformed"


class Truncated(Malformed):
    """The file ends before an element, a fragment or a frame does."""

    code = "dicom.truncated"


class NestingTooDeep(Malformed):
    """Sequences lie inside sequences deeper than any real object needs."""

    code = "dicom.nesting-too-deep"


class MissingUid(Malformed):
    """A UID without which the instance cannot be told from others is absent or empty."""

    code = "dicom.missing-uid"


class BadUid(Malformed):
    """A UID is longer than 64 characters or holds something other than digits and dots."""

    code = "dicom.bad-uid"


class BadAttribute(Malformed):
    """An attribute that the pixels cannot be read without is absent or has a value that is not allowed."""

    code = "dicom.bad-attribute"


class NotRead(DicomError):
    """Valid as far as it goes; there is nothing in it that this reader reads."""

    code = "dicom.not-read"


class TransferSyntaxMissing(NotRead):
    """No transfer syntax is stated and the bytes do not settle it."""

    code = "dicom.transfer-syntax-missing"


class TransferSyntaxNotRead(NotRead):
    """The transfer syntax is not one that this reader decodes; see `dicom_io.uids`."""

    code = "dicom.transfer-syntax-not-read"


class PixelsNotRead(NotRead):
    """The photometric interpretation or the sample layout is not one that this reader decodes."""

    code = "dicom.pixels-not-read"


class NoPixels(NotRead):
    """The object carries no pixel data: a report, a plan, a waveform."""

    code = "dicom.no-pixels"


class PixelsMissing(NotRead):
    """An image without its pixel data: the file was cut off between two elements, or its pixels were taken out."""

    code = "dicom.pixels-missing"


class NoSuchFrame(NotRead):
    """A frame number outside 1 to the number of frames was asked for."""

    code = "dicom.no-such-frame"


class NoSuchValue(NotRead):
    """A value was asked for that the data set does not have."""

    code = "dicom.no-such-value"


class IsDirectory(NotRead):
    """A DICOMDIR lists images and holds none; expand it to read the files that it names."""

    code = "dicom.is-directory"


class CannotDecode(DicomError):
    """The decoder refused the compressed frame, or what it gave does not fit the header."""

    code = "dicom.cannot-decode"


class ZipRefused(DicomError):
    """The zip archive as a whole is refused; nothing of it was unpacked."""

    code = "dicom.zip-refused"


class ZipMemberRefused(ZipRefused):
    """One member of a zip archive is refused; the others are read."""

    code = "dicom.zip-member-refused"


class ReferenceRefused(DicomError):
    """A DICOMDIR names a file outside its own folder, or one that is not there."""

    code = "dicom.reference-refused"


class NotReported(DicomError):
    """No report can be made of these findings and images."""

    code = "dicom.not-reported"


class NothingToReport(NotReported):
    """There is neither an answer nor a reason for giving none, or no positive finding to point at."""

    code = "dicom.nothing-to-report"


class EvidenceMixed(NotReported):
    """The images are of more than one study or patient."""

    code = "dicom.evidence-mixed"


class EvidenceMissing(NotReported):
    """A finding or a heat map speaks of something that is not among the images or findings given."""

    code = "dicom.evidence-missing"


class HeatMapUnfit(NotReported):
    """A heat map does not fit the frame that it is to be laid over."""

    code = "dicom.heat-map-unfit"


class HeatMapUnplaced(NotReported):
    """The image does not say how it lies in the patient, which a parametric map must."""

    code = "dicom.heat-map-unplaced"


class NotAVolume(DicomError):
    """The slices of a series do not make one regular volume; the message says why. Each can still be read alone."""

    code = "dicom.not-a-volume"


class PeerError(DicomError):
    """Another application on the network did not do what was asked."""

    code = "dicom.peer"


class PeerUnreachable(PeerError):
    """No connection, no association, or no answer. Trying again later may help."""

    code = "dicom.peer-unreachable"

    def __init__(self, ae_title: str) -> None:
        super().__init__(f"{ae_title} cannot be reached, or takes no association from us; check address and AE titles")


class PeerRefused(PeerError):
    """The other application answered, and said no. Trying again will not help."""

    code = "dicom.peer-refused"

    def __init__(self, operation: str, status: str) -> None:
        super().__init__(f"{operation} was refused ({status})")


class PeerHasNot(PeerError):
    """Nothing there matches what was asked for."""

    code = "dicom.peer-has-not"


class PeerGaveLess(PeerError):
    """Of the instances that were asked for some did not come. Those that did are kept; asking again gets the rest."""

    code = "dicom.peer-gave-less"


class PeerAnswerInvalid(PeerError):
    """The other application answered with something that the protocol does not allow."""

    code = "dicom.peer-answer-invalid"


class SandboxError(DicomError):
    """The decoding process did not give a usable answer. The file is to be treated as hostile."""

    code = "dicom.sandbox"


class SandboxCrashed(SandboxError):
    """The decoding process died on this file; another has taken its place."""

    code = "dicom.sandbox-crashed"


class SandboxTimedOut(SandboxError):
    """The file took more time than allowed, and the decoding process was ended."""

    code = "dicom.sandbox-timed-out"


class SandboxOutOfMemory(SandboxError):
    """The file asked for more memory than the decoding process may have."""

    code = "dicom.sandbox-out-of-memory"


class SandboxAnswerRefused(SandboxError):
    """The decoding process answered outside the protocol, so it was ended."""

    code = "dicom.sandbox-answer-refused"


class SandboxUnavailable(SandboxError):
    """The decoding process cannot be started, or the pool is closed."""

    code = "dicom.sandbox-unavailable"


def tree(root: type[DicomError] = DicomError) -> dict[str, type[DicomError]]:
    """Every error of the tree by its code; the edges hold their tables against this."""
    found = {root.code: root}
    for leaf in root.__subclasses__():
        found.update(tree(leaf))
    return found
