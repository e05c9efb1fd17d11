"""What can go wrong at the web's edge, and every error's HTTP status and sentence for a clinician.

WebError                 web
├── HostRefused          web.host-refused
├── OriginRefused        web.origin-refused
├── LoginNeeded          web.login-needed
├── UploadTooLarge       web.upload-too-large
├── UploadCut            web.upload-cut
├── RequestInvalid       web.request-invalid
├── NotAllowed           web.not-allowed
├── NotAcceptable        web.not-acceptable
├── MediaNotTaken        web.media-not-taken
├── MultipartBroken      web.multipart-broken
├── NotOffered           web.not-offered
└── SampleMissing        web.sample-missing
"""

import logging
import uuid
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError

from app.errors import DatabaseUnavailable, HilumError
from dicom_io.errors import DicomError
from vision_model.errors import VisionModelError

logger = logging.getLogger(__name__)

DOMAIN_ERRORS = (HilumError, DicomError, VisionModelError)


class WebError(HilumError):
    """A request that is refused before any use case sees it."""

    code = "web"


class HostRefused(WebError):
    """The request names a host that is not ours: DNS rebinding, or a proxy that is not configured."""

    code = "web.host-refused"


class OriginRefused(WebError):
    """Another site's page asked for a change."""

    code = "web.origin-refused"


class LoginNeeded(WebError):
    """No name and password, or wrong ones."""

    code = "web.login-needed"


class UploadTooLarge(WebError):
    """The body is over `web.max_upload_bytes`."""

    code = "web.upload-too-large"


class UploadCut(WebError):
    """The body ended before its announced length."""

    code = "web.upload-cut"


class RequestInvalid(WebError):
    """A parameter is absent or cannot be used."""

    code = "web.request-invalid"


class NotAllowed(WebError):
    """Whoever asks lacks the role."""

    code = "web.not-allowed"


class NotAcceptable(WebError):
    """The answer exists, in no form that the request accepts."""

    code = "web.not-acceptable"


class MediaNotTaken(WebError):
    """The body is of a kind that this route does not take."""

    code = "web.media-not-taken"


class MultipartBroken(WebError):
    """The body does not have the parts that it announces (RFC 2046 5.1)."""

    code = "web.multipart-broken"


class NotOffered(WebError):
    """A part of DICOMweb that Hilum does not have."""

    code = "web.not-offered"


class SampleMissing(WebError):
    """No sample of this name, or the installed pydicom does not carry its file."""

    code = "web.sample-missing"


@dataclass(frozen=True, slots=True)
class Wording:
    """How one kind of error is answered."""

    status: int
    sentence: str


_ADMINISTRATOR = "Tell your administrator; the details are in the server's log."

# A row whose key ends in a dot holds for all codes that begin with it.
WORDINGS: dict[str, Wording] = {
    "web.host-refused": Wording(421, "This address is not one that Hilum answers to. Open it by its configured name."),
    "web.origin-refused": Wording(403, "Another site tried to act in your name, and was refused. Open Hilum directly."),
    "web.login-needed": Wording(401, "Sign in with your name and password."),
    "web.upload-too-large": Wording(413, "This file is larger than the limit of this server. Send the study in parts."),
    "web.upload-cut": Wording(400, "The upload was cut off and nothing of it was kept. Send the file again."),
    "web.request-invalid": Wording(400, "The page sent a request that cannot be used. Reload the page and try again."),
    "web.not-allowed": Wording(403, "You may not do this here. Ask your administrator for the role that it takes."),
    "web.not-acceptable": Wording(
        406, "What you ask for exists, in another form than your program accepts. Have it accept the stored one."
    ),
    "web.media-not-taken": Wording(415, "Your program sent something in a form that is not taken here."),
    "web.multipart-broken": Wording(400, "The message is broken and not all of it was kept. Send it again."),
    "web.not-offered": Wording(501, "Hilum does not offer this part of DICOMweb."),
    "web.sample-missing": Wording(404, "This sample is not installed here. Use an image of your own."),
    "config.": Wording(500, f"Hilum's settings cannot be used. {_ADMINISTRATOR}"),
    "spool.disk-short": Wording(
        507, "The server's disk is nearly full and the file was not kept. Tell your administrator."
    ),
    "spool.unwritable": Wording(
        507, "The server cannot write to its disk and the file was not kept. Tell your administrator."
    ),
    "spool.missing": Wording(500, f"The stored image file is gone from the server's disk. {_ADMINISTRATOR}"),
    "spool.damaged": Wording(500, f"The stored image file has changed on disk and is not used. {_ADMINISTRATOR}"),
    "database.": Wording(
        503, "The database does not answer. Nothing was lost that was shown as stored; try again soon."
    ),
    "audit.": Wording(500, f"The audit trail could not be written or checked, so nothing was done. {_ADMINISTRATOR}"),
    "receive.conflicting-instance": Wording(
        409,
        "Another image is already stored under this identifier. The first one stays and this one is set aside; "
        "ask the sender which of the two is right.",
    ),
    "receive.conflicting-series": Wording(
        409,
        "This image's series already belongs to another study. What is stored stays and this one is set aside; "
        "ask the sender which is right.",
    ),
    "receive.another-instance": Wording(
        409, "The file is another image than the one that was announced, and was not kept. Send it again."
    ),
    "receive.another-study": Wording(
        409, "The file belongs to another study than the one that was announced, and was not kept."
    ),
    "receive.file-changed": Wording(409, "The file changed while it was being read and was not kept. Send it again."),
    "record.not-found": Wording(404, "This is not here, or you may not see it. Choose a study from the list."),
    "record.not-reproduced": Wording(
        409, "The model or the image has changed since this prediction was made. Diagnose again to see a heat map."
    ),
    "worklist.transaction-missing": Wording(400, "The program did not say under which claim it works."),
    "worklist.transaction-wrong": Wording(400, "Another program holds this work, or your program's claim has run out."),
    "worklist.not-claimed": Wording(409, "Nobody has taken this work yet, so it cannot be ended."),
    "worklist.already-claimed": Wording(409, "Another program was faster and does this work already."),
    "worklist.already-ended": Wording(409, "This work has ended and stays as it is."),
    "worklist.unfinished": Wording(409, "The program has not said yet what it did and where its results are."),
    "worklist.performer-unreachable": Wording(409, "The program that does this work cannot be told to stop."),
    "dicom.file-unreadable": Wording(422, "The file could not be opened. Copy it to your disk and send it again."),
    "dicom.not-dicom": Wording(415, "This is not a DICOM file. Export the images as DICOM and send those."),
    "dicom.too-large": Wording(413, "The file, or what it unpacks to, is larger than the limit of this server."),
    "dicom.truncated": Wording(422, "The file is cut off. Export or copy it again and send it anew."),
    "dicom.nesting-too-deep": Wording(422, "The file's structure is broken (nested too deeply). Export it again."),
    "dicom.missing-uid": Wording(
        422, "The file lacks an identifier that every DICOM image must have. Export it again."
    ),
    "dicom.bad-uid": Wording(422, "The file has an identifier that DICOM does not allow. Export it again."),
    "dicom.bad-attribute": Wording(422, "A value in the file contradicts the DICOM standard. Export it again."),
    "dicom.transfer-syntax-missing": Wording(422, "The file does not say how it is encoded. Export it again."),
    "dicom.transfer-syntax-not-read": Wording(
        415, "The file is compressed in a way that Hilum does not read. Export it uncompressed or as JPEG 2000."
    ),
    "dicom.pixels-not-read": Wording(415, "Hilum does not read this kind of picture data."),
    "dicom.no-pixels": Wording(415, "This DICOM object carries no picture (a report or a plan, for example)."),
    "dicom.pixels-missing": Wording(
        422, "The file is an image without its pixels; it may have been cut off. Send it again."
    ),
    "dicom.peer-unreachable": Wording(504, "The archive does not answer. Try again later, or tell your administrator."),
    "dicom.peer-refused": Wording(502, "The archive answered and refused. Tell your administrator."),
    "dicom.no-such-frame": Wording(404, "The file has no image of this number."),
    "dicom.no-such-value": Wording(404, "The file has no such value."),
    "dicom.is-directory": Wording(415, "This DICOMDIR is only an index. Send the folder or disc that it belongs to."),
    "dicom.cannot-decode": Wording(422, "The picture in this file is damaged and cannot be decoded. Export it again."),
    "dicom.zip-refused": Wording(
        422, "The zip is damaged, encrypted or too large, and was not unpacked. Pack it again."
    ),
    "dicom.zip-member-refused": Wording(422, "A file in the zip is not safe to unpack and was left out."),
    "dicom.reference-refused": Wording(422, "The DICOMDIR points to a file that is not in its own folder."),
    "dicom.nothing-to-report": Wording(422, "There is no finding of this study that could be reported."),
    "dicom.evidence-mixed": Wording(422, "The images are of more than one study, and each has its own report."),
    "dicom.evidence-missing": Wording(422, "A finding speaks of an image that is not at hand, so it is not reported."),
    "dicom.peer-has-not": Wording(404, "The archive has nothing that matches."),
    "dicom.peer-gave-less": Wording(502, "The archive did not give all of the images. Ask again for the rest."),
    "dicom.peer-answer-invalid": Wording(502, "The archive answered in a way that cannot be understood."),
    "dicom.not-a-volume": Wording(422, "The slices of this series do not make one volume. Each can be read alone."),
    "dicom.heat-map-unfit": Wording(422, "A heat map does not fit its image, so it is not written."),
    "dicom.heat-map-unplaced": Wording(
        422, "The image does not say how it lies in the patient, so its heat map is written as a picture only."
    ),
    "dicom.sandbox-crashed": Wording(
        422, "Reading this file failed badly, in a process set apart for that. Export it again."
    ),
    "dicom.sandbox-timed-out": Wording(422, "Reading this file took too long and was stopped. Export it uncompressed."),
    "dicom.sandbox-out-of-memory": Wording(422, "Reading this file needs more memory than is allowed."),
    "dicom.sandbox-answer-refused": Wording(422, "Reading this file gave an answer that cannot be trusted."),
    "dicom.sandbox-unavailable": Wording(503, f"Hilum cannot start the process that reads images. {_ADMINISTRATOR}"),
    "model.not-found": Wording(503, f"No model is installed. {_ADMINISTRATOR}"),
    "model.manifest-invalid": Wording(503, f"The installed model cannot be used. {_ADMINISTRATOR}"),
    "model.digest-mismatch": Wording(
        503, f"The installed model is not the one it says it is, and is not used. {_ADMINISTRATOR}"
    ),
    "model.graph-invalid": Wording(503, f"The installed model cannot be used. {_ADMINISTRATOR}"),
    "model.provider-unavailable": Wording(
        503, f"The configured processor (such as a GPU) is not available. {_ADMINISTRATOR}"
    ),
    "model.precision-unavailable": Wording(
        503, f"The installed model cannot compute with the configured precision. {_ADMINISTRATOR}"
    ),
    "model.knowledge-invalid": Wording(503, f"The installed list of findings cannot be used. {_ADMINISTRATOR}"),
    "model.no-text-encoder": Wording(503, "The installed model cannot compare pictures with words."),
    "model.image-invalid": Wording(
        422, "The model cannot use this picture: it is empty or its values are not numbers."
    ),
    "model.unknown-task": Wording(404, "The installed model does not answer this question."),
    "model.unknown-label": Wording(404, "The installed model does not know this finding."),
    "model.unknown-route": Wording(422, "It is not clear which kind of examination the picture shows."),
    "model.prompts-invalid": Wording(422, "There are no words to compare the picture with. Enter a few."),
    "model.support-invalid": Wording(
        422, "These images and labels cannot be learnt from together. Each label needs images, and there must be two."
    ),
    "model.alpha-invalid": Wording(422, "The share of errors to allow must lie between 0 and 1."),
    "model.head-not-fitted": Wording(409, "This classifier has not learnt anything yet. Give it labelled images."),
    "model.head-invalid": Wording(422, "This file is not a saved classifier, or comes from another version."),
    "model.head-of-another-encoder": Wording(
        409, "This classifier was made with another model and is not used with this one. Make it again."
    ),
    "model.extra-missing": Wording(503, f"A part of Hilum that this needs is not installed. {_ADMINISTRATOR}"),
}

# Errors of making a model, which no request can meet.
NEVER_SERVED = frozenset(
    {
        "model.recipe-invalid",
        "model.source-invalid",
        "model.source-not-fetched",
        "model.weights-invalid",
        "model.evaluation-invalid",
        "model.loss-not-finite",
        "model.parity-failed",
        "model.quantisation-failed",
    }
)


def wording(code: str) -> Wording | None:
    """The row for a code, or the one for its family; None if the table has neither."""
    return WORDINGS.get(code) or WORDINGS.get(code.partition(".")[0] + ".")


def told(code: str, message: str) -> dict[str, object]:
    """An error as the page gets it: a sentence for the clinician, and what an administrator needs to look further."""
    row = wording(code)
    return {"code": code, "sentence": row.sentence if row else message, "message": message}


def answer(error: Exception) -> tuple[int, dict[str, object]]:
    """HTTP status and body of an error; one that nobody foresaw is logged under a number that the body names."""
    if isinstance(error, OperationalError):  # the database went away, wherever it was asked
        error = DatabaseUnavailable(str(error.orig).partition("\n")[0])
    if isinstance(error, DOMAIN_ERRORS):
        row = wording(error.code)
        return (row.status if row else 500), {"error": told(error.code, str(error))}
    incident = uuid.uuid4().hex[:8]
    logger.error("incident %s: %s", incident, type(error).__name__)  # the server logs where it came from
    sentence = f"Something went wrong in Hilum itself. Tell your administrator this number: {incident}."
    return 500, {"error": {"code": "hilum.unforeseen", "sentence": sentence, "message": f"incident {incident}"}}
