"""Whom a client believes to be the server that it called: the system's authorities, or those of a file."""

from __future__ import annotations

import ssl
from pathlib import Path

from heliograph.core.errors import InvalidRequest


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Blocks. Raises InvalidRequest when the file cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise InvalidRequest(f"the CA file {ca_file} holds no certificate in PEM") from None
    except OSError as error:
        raise InvalidRequest(f"the CA file {ca_file} cannot be read: {error.strerror}") from None


def distrust(error: BaseException | None) -> str:
    """What was wrong with a server's certificate, if that is at the bottom of `error`; otherwise nothing."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({error.verify_message}); name the authority that signed it with ca_file (in the command "
                "line --ca-file or HELIOGRAPH_CA_FILE), or check the address"
            )
        error = error.__cause__ or error.__context__
    return ""
