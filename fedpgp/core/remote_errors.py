"""Explain failures of remote storage behind `pyarrow.fs`: what is wrong, what to do, and whether it can pass."""

import re
from typing import NamedTuple

from fedpgp.core.text import one_line

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of this machine",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of this machine",
    "abfs": "AZURE_STORAGE_ACCOUNT_KEY in the URI, or an identity of this machine",
}
"""Where credentials come from, by the scheme of a URI or the name of a file system."""
LASTING = {
    r"NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket '?[^ ]*'? (was )?(not found|does not exist)": (
        "no such bucket; create it, or correct the URI"
    ),
    r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|EXPIRED|Expired|"
    r"CLIENT_TOKEN|AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|INVALID_SIGNATURE": (
        "the credentials are wrong or have expired; set {credentials}"
    ),
    r"QuotaExceeded|QUOTA_EXCEEDED|StorageFull|HTTP status 507": (
        "the bucket is full or over its quota; remove objects, or raise the quota"
    ),
    r"PermanentRedirect|HTTP status 301|AuthorizationHeaderMalformed": (
        "the bucket is in another region; give region=REGION in the query of the URI"
    ),
    r"ACCESS_DENIED|AccessDenied|HTTP status 40[013]|FORBIDDEN|Forbidden|[Pp]ermission": (
        "access denied: the credentials are missing or wrong, or do not permit it; set {credentials}"
    ),
}
"""Failures that another attempt does not help, by what pyarrow says, and what to do. The first one that fits counts."""
PASSING = {
    r"NETWORK_CONNECTION": "; check the network, and the endpoint in the URI",
    r"SLOW_DOWN|HTTP status 5\d\d|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT": "",
}
"""Failures that another attempt may help, and what is added to the message."""


class RemoteFailure(NamedTuple):
    """What is wrong and what to do, in one line, and whether it lasts until somebody mends it."""

    what: str
    lasting: bool


def remote_failure(error: Exception, kind: str) -> RemoteFailure | None:
    """Explain an error of a file system of this kind (`s3`, `gcs`, `abfs`); None: no known failure of the service."""
    text = one_line(error)
    if kind not in CREDENTIALS:
        return None
    for pattern, what in LASTING.items():
        if re.search(pattern, text):
            return RemoteFailure(what.format(credentials=CREDENTIALS[kind]), True)
    advice = next((advice for pattern, advice in PASSING.items() if re.search(pattern, text)), None)
    return None if advice is None else RemoteFailure(f"{text}{advice}", False)
