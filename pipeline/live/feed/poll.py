"""What a feed has to offer: files in a folder, files behind addresses, a Zarr store. Nothing here opens a field."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]

from fieldcast.pipeline.config.sources import GriddedOptions, RadarOptions
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.clock import Clock
from fieldcast.pipeline.live.feed.index import NO_STATE, Seen, State
from fieldcast.pipeline.sources.files import is_url, listed, one_line
from fieldcast.pipeline.sources.gridded import PATTERNS, is_zarr
from fieldcast.pipeline.sources.radar.composites import FORMATS

REQUEST_SECONDS = 10.0  # without an answer
SCAN_SECONDS = 30.0  # for all requests of one look at the feed
BLOCK_BYTES = 1 << 20
CODES = re.compile(r"%([YymdHMSj])")
DATE_CODES = re.compile(r"%[YymHMSj]")  # %d alone may be the escape of a byte
VALIDATORS = {"If-None-Match": "ETag", "If-Modified-Since": "Last-Modified"}

T = TypeVar("T")


class UnavailableError(Exception):
    """What was asked for is not to be had now."""


@dataclass(frozen=True)
class Offer:
    """Something that a source can open and that may hold new frames."""

    key: str  # its name in the index and in messages
    path: str  # what the source opens
    state: State  # of the file; `NO_STATE` for a Zarr store, whose files say nothing
    validators: Mapping[str, str] = field(default_factory=dict)
    expected: datetime | None = None  # the time that its address was made for


@dataclass
class Offers:
    """All that a feed has, and what it should have but does not."""

    found: list[Offer] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)  # keys of files that were there once


class Feed:
    """The feed of a source's `path`; downloads go to `incoming`, and are looked for in `kept` first."""

    def __init__(self, options: RadarOptions | GriddedOptions, kept: Path, incoming: Path, clock: Clock) -> None:
        self._options, self._kept, self._incoming, self._clock = options, kept, incoming, clock
        self._end = clock.monotonic() + SCAN_SECONDS

    def offers(self, seen: Mapping[str, Seen], wanted: Sequence[datetime]) -> Offers:
        """Return what the feed has; `wanted` are the times that the store lacks. Raise `InputError` for bad options."""
        path = self._options.path
        if isinstance(self._options, GriddedOptions) and is_zarr(self._options):
            return Offers([Offer(public(path), path, NO_STATE)])
        if not is_url(path):
            return self._files(seen)
        require_no_user(path)
        offers = Offers()
        if not has_codes(path):
            self._ask(offers, path, public(path), seen.get(public(path)), None)
            return offers
        for moment in sorted(wanted, reverse=True):  # the newest first, should time run out
            url = address(path, moment)
            known = seen.get(public(url))
            if known is None or moment not in known.dropped:
                self._ask(offers, url, public(url), known, moment)
        return offers

    def read(self, offer: Offer, work: Callable[[], T]) -> T:
        """Return what `work` reads of an offer; raise `UnavailableError` where a store far away takes too long."""
        return within(self._seconds(), work) if is_url(offer.path) else work()

    def _files(self, seen: Mapping[str, Seen]) -> Offers:
        path, offers = self._options.path, Offers()
        try:
            names = listed(path, FORMATS[self._options.format].patterns if self._options.kind == "radar" else PATTERNS)
        except OSError as error:
            return Offers(waiting=[f"{path}: {_reason(error)}: left for later"])
        for name in names:
            try:
                status = Path(name).stat()
            except OSError as error:  # a link that leads nowhere, a file that has just gone
                offers.waiting.append(f"{name}: {_reason(error)}: left for later")
                continue
            if stat.S_ISREG(status.st_mode):
                offers.found.append(Offer(name, name, state_of(status)))
        if not names:
            offers.waiting.append(f"source.path is '{path}': nothing there yet")
        else:
            offers.gone = sorted(seen.keys() - set(names))
        return offers

    def _ask(self, offers: Offers, url: str, key: str, known: Seen | None, expected: datetime | None) -> None:
        """Add what an address gives, fetched unless it was before and has not changed."""
        name = local_name(key)
        here = self._kept / name
        whole = known is not None and here.is_file() and state_of(here.stat())[:2] == known.state[:2]
        if known and whole and known.verdict != "waiting" and expected in known.times:
            offers.found.append(Offer(key, str(here), known.state, known.validators, expected))
            return
        try:
            validators = self._fetch(url, self._incoming / name, known.validators if known and whole else {})
        except UnavailableError as error:
            offers.waiting.append(f"{key}: {error}")
            if expected is not None or not whole:
                return
            validators = None  # the copy may still hold frames that are wanted now
        if validators is not None:
            here = self._incoming / name
            offers.found.append(Offer(key, str(here), state_of(here.stat()), validators, expected))
        elif known:
            offers.found.append(Offer(key, str(here), known.state, known.validators, expected))

    def _fetch(self, url: str, target: Path, validators: Mapping[str, str]) -> Mapping[str, str] | None:
        """Put what `url` gives in the place of `target`; return its new validators, None where it has not changed."""
        fetched = _over_http if url.startswith(("http://", "https://")) else self._over_fsspec
        with fetched(url, validators, self._seconds) as answer:
            if answer is None:
                return None
            with replacing(target) as partial, partial.open("wb") as file:
                for block in answer.blocks:
                    file.write(block)
            return answer.validators

    @contextmanager
    def _over_fsspec(
        self, url: str, validators: Mapping[str, str], seconds: Callable[[], float]
    ) -> Iterator[_Answer | None]:
        storage = self._options.storage_options if isinstance(self._options, GriddedOptions) else {}
        try:
            system, path = fsspec.core.url_to_fs(url, **storage)
        except (ImportError, ValueError) as error:
            raise InputError(f"source.path is '{public(url)}': {one_line(error)}: correct it") from error
        system.invalidate_cache()
        version = {"version": str(_ready(lambda: system.ukey(path), seconds))}
        if version == validators:
            yield None
            return
        stream = _ready(lambda: system.open(path, "rb"), seconds)
        try:
            yield _Answer(_blocks(lambda: _ready(lambda: stream.read(BLOCK_BYTES), seconds)), version)
        finally:
            stream.close()

    def _seconds(self) -> float:
        """Return how long the next request may take; raise `UnavailableError` when the time of this look is over."""
        left = self._end - self._clock.monotonic()
        if left <= 0:
            raise UnavailableError(f"not asked, all requests took {SCAN_SECONDS:g} s: left for later")
        return min(left, REQUEST_SECONDS)


@dataclass
class _Answer:
    """What a server sends, and by which it will know later that this is unchanged."""

    blocks: Iterator[bytes]
    validators: Mapping[str, str]


@contextmanager
def _over_http(url: str, validators: Mapping[str, str], seconds: Callable[[], float]) -> Iterator[_Answer | None]:
    answer = _open_http(urllib.request.Request(url, headers={"User-Agent": "fieldcast", **validators}), seconds())
    if answer is None:
        yield None
        return
    with closing(answer):
        length = answer.headers.get("Content-Length")
        sure = length is not None or answer.headers.get("Transfer-Encoding") == "chunked"  # that all of it came
        new = {ours: answer.headers[theirs] for ours, theirs in VALIDATORS.items() if theirs in answer.headers}
        yield _Answer(_http_blocks(answer, int(length or 0), seconds), new if sure else {})


def _open_http(request: urllib.request.Request, seconds: float) -> http.client.HTTPResponse | None:
    """Return the answer, None where the server says that nothing has changed."""
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.NOT_MODIFIED:
            return None
        raise UnavailableError(f"HTTP {error.code} {error.reason}: left for later") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnavailableError(f"no answer ({_reason(error)}): left for later") from error
    return answer


def _http_blocks(answer: http.client.HTTPResponse, length: int, seconds: Callable[[], float]) -> Iterator[bytes]:
    """Yield the body; raise `UnavailableError` where it ends before its `length` or takes too long."""
    count = 0

    def read() -> bytes:
        seconds()  # is there time left?
        try:
            return answer.read1(BLOCK_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UnavailableError(f"broke off ({_reason(error)}): left for later") from error

    for block in _blocks(read):
        count += len(block)
        yield block
    if count < length:
        raise UnavailableError(f"broke off after {count} of {length} bytes: left for later")


def _blocks(read: Callable[[], bytes]) -> Iterator[bytes]:
    while block := read():
        yield block


def _ready(work: Callable[[], T], seconds: Callable[[], float]) -> T:
    """Return what `work` reads from afar; raise `UnavailableError` for what goes wrong there."""
    try:
        return within(seconds(), work)
    except UnavailableError:
        raise
    except FileNotFoundError as error:
        raise UnavailableError("not there: left for later") from error
    except Exception as error:  # each file system raises its own kinds
        raise UnavailableError(f"no answer ({_reason(error)}): left for later") from error


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns; raise `UnavailableError` after so many seconds, when it goes on unheeded."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise UnavailableError(f"no answer in {seconds:.0f} s: left for later")
    return results[0]


def has_codes(url: str) -> bool:
    """Return whether an address has strftime codes, one for each frame, and is not that of a single file."""
    return bool(DATE_CODES.search(url))


def address(url: str, moment: datetime) -> str:
    """Return the address of the frame of `moment`."""
    return CODES.sub(lambda code: moment.strftime(code[0]), url)


def public(path: str) -> str:
    """Return a path or address without its secrets: user and query, which a digest stands for."""
    if not is_url(path):
        return path
    parts = urlsplit(path)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return bare if bare == path else f"{bare}#{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def require_no_user(url: str) -> None:
    """Raise `InputError` for a user or password in a web address: `urllib` takes none, and messages would show them."""
    if url.startswith(("http://", "https://")) and "@" in urlsplit(url).netloc:
        raise InputError(f"source.path is '{public(url)}' with a user name, expected an address without: leave it out")


def state_of(status: os.stat_result) -> State:
    """Return what changes when a file changes."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def local_name(key: str) -> str:
    """Return the name of the download that has this key in the index."""
    name = key.partition("#")[0].rstrip("/").rsplit("/", 1)[-1]
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name[-100:]}"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text[:1].lower() + text[1:]
