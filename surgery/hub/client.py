"""Talking to the Hub: which one, with whose token, when to try again, and what its errors mean.

The client has three families of errors: its own, those of its HTTP library, and, from Xet, a plain ConnectionError
or RuntimeError with nothing but a text. All of them leave here as a HubError, with the original as its cause. A
token is known by where it is from; its value is in no message.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies

from ..errors import HubConflict, HubError, HubUnreachable, NotAllowed, NotOnHub, SurgeryError, public
from ..version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

TRIES = 6
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 8.0  # seconds, doubled from try to try: the client's own
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
LOGIN = "log in with `hf auth login`, or set HF_TOKEN; tokens are made at {endpoint}/settings/tokens"


@dataclass(frozen=True, slots=True)
class Access:
    """Which Hub is asked, and where the token is from; "" where there is none."""

    endpoint: str
    token: str

    def __str__(self) -> str:
        return f"asked {self.endpoint} with {f'the token of {self.token}' if self.token else 'no token'}"


def access() -> Access:
    """Which Hub the client asks now, and whose token it sends. The order is the client's own."""
    from huggingface_hub import constants

    return Access(constants.ENDPOINT, _source())


def _source() -> str:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return ""
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "the exchange that HF_OIDC_RESOURCE asks for"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"the environment variable {name}"
    if not get_token():
        return ""
    return (
        f"the file {constants.HF_TOKEN_PATH}" if os.path.isfile(constants.HF_TOKEN_PATH) else "the notebook's secrets"
    )


def api() -> HfApi:
    """The client. Raises NotAllowed where the token is none that could be sent."""
    from huggingface_hub import HfApi, constants, get_token

    with translated("ask the Hub"):
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):  # the HTTP library would quote it in its error
        raise NotAllowed(
            "the token holds characters that no token has",
            where=[str(access())],
            help="copy it again; it begins with hf_ and is one word",
        )
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_hide_in)
    return HfApi(library_name="surgery", library_version=__version__)


@contextmanager
def translated(doing: str, where: Sequence[str] = ()) -> Iterator[None]:
    """What fails inside for the Hub's sake is raised as a HubError: "cannot `doing`: …"."""
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:
        ours = as_ours(error, doing, where)
        if ours is None:
            raise
        raise ours from error


def _hide(error: BaseException | None) -> None:
    """No text of the error, or of those that led to it, holds a secret: an answer may quote what was sent."""
    while error is not None:
        error.args = tuple(_hidden(arg) if isinstance(arg, str) else arg for arg in error.args)
        if said := getattr(error, "server_message", None):
            error.server_message = _hidden(said)  # type: ignore[attr-defined]
        error = error.__cause__ or error.__context__


def _hidden(text: str) -> str:
    """The text without any secret."""
    text = public(text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    return text


def _hide_in(record: logging.LogRecord) -> bool:
    """A filter: what the client logs holds no secret, at its most talkative, either."""
    record.msg, record.args = _hidden(record.getMessage()), ()
    return True


def _secrets() -> Iterator[str]:
    """The token, and the passwords of the Hub's address and of proxies, each as it is sent and as it is written."""
    from huggingface_hub import constants, get_token

    held = {get_token() or ""}
    for url in (constants.ENDPOINT, *getproxies().values()):
        parts = urlsplit(url)
        name, password = unquote(parts.username or ""), unquote(parts.password or "")
        if password:
            held |= {password, parts.password or "", b64encode(f"{name}:{password}".encode()).decode()}
    yield from {form for one in held if one for form in (one, quote(one, safe=""), json.dumps(one)[1:-1])}


def retried(call: Callable[[], T], doing: str, where: Sequence[str] = ()) -> T:
    """What `call` returns, after up to TRIES tries with pauses between them. For requests that may be made twice.

    Tried again is what may pass: no connection, a lost one, 408, 429, 5xx. Raises HubError.
    """
    for attempt in range(TRIES):
        try:
            with translated(doing, where):
                return call()
        except HubError as error:
            if attempt == TRIES - 1 or not is_transient(error.__cause__):
                raise
            rest(error.__cause__, attempt)
    raise AssertionError("unreachable")


def rest(error: BaseException | None, attempt: int) -> None:
    """Wait for as long as `pause` says."""
    time.sleep(pause(error, attempt))


def pause(error: BaseException | None, attempt: int) -> float:
    """Seconds to wait after the try number `attempt`, counted from 0: what the Hub asked for, or twice the last."""
    response = getattr(error, "response", None)
    asked = None if response is None else _asked(response.headers)
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) if asked is None else asked + 1.0


def _asked(headers: Mapping[str, str]) -> int | None:
    """Seconds that an answer asks to wait; None where it does not."""
    from huggingface_hub.utils import parse_ratelimit_headers

    after, limit = headers.get("retry-after", ""), parse_ratelimit_headers(headers)
    if after.isdigit():
        return int(after)
    return limit.reset_in_seconds if limit is not None and limit.remaining == 0 else None


def is_transient(error: BaseException | None) -> bool:
    """Whether the same request may succeed later."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    match error:
        case HfHubHTTPError():
            return error.response.status_code in TRANSIENT
        case OfflineModeIsEnabled():
            return False
        case httpx.TransportError():
            return not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
        case json.JSONDecodeError():
            return True  # not the Hub's own answer
        case ConnectionError():
            return _status_in(str(error)) in (None, *TRANSIENT)
        case RuntimeError():
            return error.__cause__ is not None and is_transient(error.__cause__)
    return False


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that the Hub answered with; None where there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def as_ours(error: BaseException, doing: str, where: Sequence[str] = ()) -> SurgeryError | None:
    """The error as one of ours; None where it has nothing to do with the Hub."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    _hide(error)
    match error:
        case HfHubHTTPError():
            return _answered(error, doing, where)
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            tip = "unset HF_HUB_OFFLINE, or download what is needed before: hf download"
            return HubUnreachable(f"cannot {doing}: the client is offline", where=where, help=tip)
        case json.JSONDecodeError():
            tip = "run again later; a proxy on the way may answer in the Hub's place"
            return HubUnreachable(f"cannot {doing}: the answer is not JSON", where=[*where, str(access())], help=tip)
        case httpx.HTTPError() | httpx.InvalidURL():
            return _silent(error, doing, where)
        case HFValidationError():
            return HubError(
                f"cannot {doing}: {_first_line(error)}", where=where, help="a repository is called org/name"
            )
        case RuntimeError() if (
            error.__cause__ is not None
        ):  # "Error while uploading 'path' …": what happened is its cause
            rows = [*where, *re.findall(r"'(.+)'", str(error))]
            return as_ours(error.__cause__, doing, rows) or _of_disk(error.__cause__, doing, rows)
        case ConnectionError() | RuntimeError() if type(error) in (ConnectionError, RuntimeError) and _of_xet(error):
            return _of_status(_status_in(str(error)), _first_line(error), doing, where)
    return None


def _answered(error: Any, doing: str, where: Sequence[str]) -> HubError:
    """An answer with a status that says no."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = access()
    rows = [*where, str(at)]
    said = (error.server_message or "").strip().replace("\n", "; ")
    match error:
        case GatedRepoError():
            tip = f"ask for access on its page at {at.endpoint}" + (
                "" if at.token else ", then " + LOGIN.format(endpoint=at.endpoint)
            )
            return NotAllowed(f"cannot {doing}: access to this repository has to be granted", where=rows, help=tip)
        case RepositoryNotFoundError():
            tip = "check the name; " + (
                "a private repository is not shown to a token without access to it"
                if at.token
                else "a private repository is shown to those alone who may see it: "
                + LOGIN.format(endpoint=at.endpoint)
            )
            return NotOnHub(f"cannot {doing}: there is no such repository, or it is private", where=rows, help=tip)
        case RevisionNotFoundError():
            return NotOnHub(
                f"cannot {doing}: there is no such revision", where=rows, help="pass a branch, a tag or a commit"
            )
        case RemoteEntryNotFoundError():
            return NotOnHub(f"cannot {doing}: there is no such file", where=rows)
    return _of_status(error.response.status_code, said, doing, where, error.response)


def _of_status(status: int | None, said: str, doing: str, where: Sequence[str], response: Any = None) -> HubError:
    at = access()
    rows = [*where, str(at)]
    says = f": {said}" if said else ""
    match status:
        case 401:
            what = (
                f"cannot {doing}: the Hub does not accept the token"
                if at.token
                else f"cannot {doing}: the Hub wants to know who asks"
            )
            return NotAllowed(f"{what}{says}", where=rows, help=LOGIN.format(endpoint=at.endpoint))
        case 403:
            tip = f"use a token that may write there: {LOGIN.format(endpoint=at.endpoint)}"
            return NotAllowed(f"cannot {doing}: the token does not permit it{says}", where=rows, help=tip)
        case 404:
            return NotOnHub(f"cannot {doing}: the Hub has no such thing{says}", where=rows)
        case 409 | 412:
            return HubConflict(
                f"cannot {doing}: the repository has changed meanwhile{says}",
                where=rows,
                help="look at it, and run again",
            )
        case 429:
            wait = None if response is None else _asked(response.headers)
            tip = f"run again in {wait} seconds" if wait else "run again later"
            return HubUnreachable(
                f"cannot {doing}: too many requests{says}", where=rows, help=f"{tip}: what was sent is not sent again"
            )
        case None | 408 | 500 | 502 | 503 | 504:
            answer = f"it answers {status}" if status else "the connection failed"
            return HubUnreachable(
                f"cannot {doing}: {answer}, after all tries{says}", where=rows, help="run again later"
            )
    tip = "mend what it says; where that is nothing here, run the same command again: it looks first"
    return HubError(f"cannot {doing}: the Hub answers {status}{says}", where=rows, help=tip)


def _of_disk(error: BaseException, doing: str, where: Sequence[str]) -> SurgeryError | None:
    """A file here could not be read while it was sent."""
    if not isinstance(error, OSError):
        return None
    tip = "mend that, and run the same command again: what was sent already is not sent again"
    return SurgeryError(f"cannot {doing}: {error.strerror or error}", where=where, help=tip)


def _silent(error: BaseException, doing: str, where: Sequence[str]) -> HubUnreachable:
    """No answer at all."""
    at = access()
    return HubUnreachable(
        f"cannot {doing}: no answer from {at.endpoint}: {_first_line(error) or type(error).__name__}",
        where=where,
        help="check the connection, and HF_ENDPOINT if it is set; then run again",
    )


def _of_xet(error: BaseException) -> bool:
    """Whether Xet said it: its errors have no class of their own, and no other module of ours raises these two."""
    return not isinstance(error, OSError) or error.errno is None


def _status_in(text: str) -> int | None:
    """The HTTP status in a text of Xet's."""
    found = re.search(r"\b(?:status(?: code)?:? ?|HTTP status (?:client|server) error \()(\d{3})\b", text)
    return int(found[1]) if found else None


def _first_line(error: BaseException) -> str:
    """What it says, on one line."""
    return str(error).strip().split("\n")[0]
