"""Errors of remote storage: which last, which may pass, and which are none of the service."""

from __future__ import annotations

import pytest

from fedpgp.core.remote_errors import remote_failure


@pytest.mark.parametrize(
    ("kind", "text", "told", "lasting"),
    [
        ("s3", "AWS Error ACCESS_DENIED during HeadBucket operation: No response body.", "AWS_ACCESS_KEY_ID", True),
        ("gcs", "google::cloud::Status(PERMISSION_DENIED: Permission denied)", "GOOGLE_APPLICATION_CREDENTIALS", True),
        ("abfs", "HTTP status 403", "AZURE_STORAGE_ACCOUNT_KEY", True),
        (
            "s3",
            "HTTP status 400: Unable to parse ExceptionName: XMinioAdminBucketQuotaExceeded",
            "raise the quota",
            True,
        ),
        ("s3", "HTTP status 400: Unable to parse ExceptionName: AuthorizationHeaderMalformed", "region=REGION", True),
        ("s3", "AWS Error NETWORK_CONNECTION during GetObject operation", "check the network, and the endpoint", False),
        ("s3", "AWS Error SLOW_DOWN during PutObject operation: SlowDown", "SlowDown", False),
    ],
)
def test_what_is_known_is_explained_in_one_line(kind, text, told, lasting):
    failure = remote_failure(OSError(f"When doing it:\n{text}"), kind)
    assert failure.lasting == lasting
    assert told in failure.what
    assert "\n" not in failure.what


@pytest.mark.parametrize(("kind", "text"), [("s3", "Corrupt snappy compressed data."), ("local", "Permission denied")])
def test_what_is_no_failure_of_the_service_is_not(kind, text):
    assert remote_failure(OSError(text), kind) is None
