"""Candidates of a feed: files in a folder, downloads, a Zarr store. Nothing here opens a field."""

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
from fieldcast.pipeline.live.feed.index import NO_VERSION, Candidate, Version
from fieldcast.pipeline.live.feed.limits import FeedRules
from fieldcast.pipeline.sources.decoder import SlowError
from fieldcast.pipeline.sources.decoder import within as decoding_within
from fieldcast.pipeline.sources.files import is_url, listed, one_line
from fieldcast.pipeline.sources.gridded import PATTERNS, is_zarr
from fieldcast.pipeline.sources.radar.composites import FORMATS

REQUEST_SECONDS = 10.0  # without an answer
BLOCK_BYTES = 1 << 20
CODES = re.compile(r"%([YymdHMSj])")
DATE_CODES = re.compile(r"%[YymHMSj]")  # %d alone may be the escape of a byte
VALIDATORS = {"If-None-Match": "ETag", "If-Modified-Since": "Last-Modified"}

T = TypeVar("T")


class UnavailableError(Exception):
    """A file or server that cannot be reached now."""


class TooLargeError(Exception):
    """A file that alone has more bytes than one look may download."""


@dataclass
class Poll:
    """All that a feed has, and what it should have but does not."""

    candidates: list[Candidate] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    too_large: list[Candidate] = field(default_factory=list)  # refused for their bytes
    gone: list[str] = field(default_factory=list)  # keys of files that are no longer there


class Feed:
    """The feed of a source's `path`; downloads go to `incoming`, and are looked for in `kept` first."""

    def __init__(
        self, options: RadarOptions | GriddedOptions, kept: Path, incoming: Path, clock: Clock, rules: FeedRules
    ) -> None:
        self._options, self._kept, self._incoming, self._clock, self._rules = options, kept, incoming, clock, rules
        self._third = rules.max_seconds / 3  # for requests, for files, and for the last file
        self._requests_end = clock.monotonic() + self._third
        self._files_end: float | None = None  # from the first file on
        self._bytes = 0  # downloaded

    def poll(self, known: Mapping[str, Candidate], wanted: Sequence[datetime]) -> Poll:
        """Return what the feed has; `wanted` are the times that the store lacks. Raise `InputError` for bad options."""
        path = self._options.path
        if isinstance(self._options, GriddedOptions) and is_zarr(self._options):
            key = public(path)
            return Poll([Candidate(key, NO_VERSION, path=path, previous=known.get(key))])
        if not is_url(path):
            return self._files(known)
        require_no_user(path)
        poll = Poll()
        if not has_codes(path):
            self._ask(poll, path, known.get(public(path)), None)
            return poll
        for moment in sorted(wanted, reverse=True):  # the newest first, should time run out
            url = address(path, moment)
            previous = known.get(public(url))
            if previous is None or moment not in previous.dropped:
                self._ask(poll, url, previous, moment)
        return poll

    def read(self, candidate: Candidate, work: Callable[[], T], *, opening: bool = False) -> T:
        """Return the result of `work`, which reads a candidate.

        Raise `UnavailableError` for a slow server or when this look has no time left for another file, `InputError` for
        a local file that takes long to decode.
        """
        limit = f"{self._third:g} s"
        if is_url(candidate.path):
            seconds = self._seconds()
        else:
            seconds, now = self._third, self._clock.monotonic()
            self._files_end = self._files_end or now + self._third
            if now > self._files_end - opening * self._third / 2:  # what is opened shall be read too
                raise UnavailableError(f"not read, other files took {limit} (live.feed.max_seconds): left for later")
        try:
            with decoding_within(seconds):
                return work()
        except SlowError:
            if is_url(candidate.path):
                raise UnavailableError(f"no answer in {seconds:.0f} s: left for later") from None
            fix = "take the file out of the feed"
            raise InputError(f"not decoded in {limit}, a third of live.feed.max_seconds: {fix}") from None

    def _files(self, known: Mapping[str, Candidate]) -> Poll:
        path, poll = self._options.path, Poll()
        try:
            names = listed(path, FORMATS[self._options.format].patterns if self._options.kind == "radar" else PATTERNS)
        except OSError as error:
            return Poll(waiting=[f"{path}: {_reason(error)}: left for later"])
        for name in names:
            try:
                status = Path(name).stat()
            except OSError as error:  # a link that leads nowhere, a file that has just gone
                poll.waiting.append(f"{name}: {_reason(error)}: left for later")
                continue
            if stat.S_ISREG(status.st_mode):
                poll.candidates.append(Candidate(name, version_of(status), path=name, previous=known.get(name)))
        if not names:
            poll.waiting.append(f"source.path is '{path}': nothing there yet")
        else:
            poll.gone = sorted(known.keys() - set(names))
        return poll

    def _ask(self, poll: Poll, url: str, previous: Candidate | None, expected: datetime | None) -> None:
        """Add the file of an address, downloaded unless it was before and has not changed."""
        key = public(url)
        kept, target = (folder / local_name(key) for folder in (self._kept, self._incoming))
        intact = previous is not None and kept.is_file() and version_of(kept.stat())[:2] == previous.version[:2]
        validators = None
        if not (previous and intact and previous.state != "waiting" and expected in previous.times):
            try:
                validators = self._download(url, target, previous.validators if previous and intact else {})
            except TooLargeError as error:
                times = (expected,) if expected is not None else ()
                version = (self._rules.max_bytes, 0, 0)  # it has no file
                message, never = f"{key}: {error}", frozenset(times)
                poll.too_large.append(Candidate(key, version, "refused", message, 0, times, never, previous=previous))
                return
            except UnavailableError as error:
                poll.waiting.append(f"{key}: {error}")
                if expected is not None or not intact:
                    return  # otherwise the copy may still hold frames that are wanted now
        if validators is not None:
            version, path = version_of(target.stat()), target
        elif previous:
            version, path, validators = previous.version, kept, previous.validators
        else:
            return
        candidate = Candidate(key, version, validators=validators, path=str(path), expected=expected, previous=previous)
        poll.candidates.append(candidate)

    def _download(self, url: str, target: Path, validators: Mapping[str, str]) -> Mapping[str, str] | None:
        """Write the content of `url` to `target`; return its new validators, None where it has not changed."""
        fetched = _over_http if url.startswith(("http://", "https://")) else self._over_fsspec
        with fetched(url, validators, self._seconds) as answer:
            if answer is None:
                return None
            self._require_small(answer.length or 0, answer.length or 0)
            with replacing(target) as partial, partial.open("wb") as file:
                for block in answer.blocks:
                    self._bytes += len(block)
                    self._require_small(file.tell() + len(block), 0)
                    file.write(block)
            return answer.validators

    def _require_small(self, of_file: int, to_come: int) -> None:
        """Raise `TooLargeError` for a file too large for one look, `UnavailableError` where others took the bytes."""
        most = self._rules.max_bytes
        limit = f"{most / 1e6:g} MB (live.feed.max_megabytes)"
        if of_file > most:
            raise TooLargeError(f"{of_file} bytes or more, expected {limit} at most: correct live.source or raise that")
        if self._bytes + to_come > most:
            raise UnavailableError(f"not fetched, one look downloads {limit}: left for later")

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
        version = {"version": str(_remote(lambda: system.ukey(path), seconds))}
        if version == validators:
            yield None
            return
        stream = _remote(lambda: system.open(path, "rb"), seconds)
        try:
            yield _Answer(_blocks(lambda: _remote(lambda: stream.read(BLOCK_BYTES), seconds)), version)
        finally:
            stream.close()

    def _seconds(self) -> float:
        """Return the seconds for the next request; raise `UnavailableError` when the time of this poll is over."""
        left = self._requests_end - self._clock.monotonic()
        if left <= 0:
            raise UnavailableError(f"not asked, all requests took {self._third:g} s: left for later")
        return min(left, REQUEST_SECONDS)


@dataclass
class _Answer:
    """The content that a server sends, and validators by which it will know that this is unchanged."""

    blocks: Iterator[bytes]
    validators: Mapping[str, str]
    length: int | None = None  # as far as the server tells


@contextmanager
def _over_http(url: str, validators: Mapping[str, str], seconds: Callable[[], float]) -> Iterator[_Answer | None]:
    answer = _open_http(urllib.request.Request(url, headers={"User-Agent": "fieldcast", **validators}), seconds())
    if answer is None:
        yield None
        return
    with closing(answer):
        length = answer.headers.get("Content-Length")
        complete = length is not None or answer.headers.get("Transfer-Encoding") == "chunked"  # that it is complete
        new = {ours: answer.headers[theirs] for ours, theirs in VALIDATORS.items() if theirs in answer.headers}
        declared = int(length) if length is not None else None
        yield _Answer(_http_blocks(answer, declared or 0, seconds), new if complete else {}, declared)


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


def _remote(work: Callable[[], T], seconds: Callable[[], float]) -> T:
    """Return the result of `work`, which reads a remote file; raise `UnavailableError` for any error there."""
    try:
        return within(seconds(), work)
    except UnavailableError:
        raise
    except FileNotFoundError as error:
        raise UnavailableError("not there: left for later") from error
    except Exception as error:  # each file system raises its own kinds
        raise UnavailableError(f"no answer ({_reason(error)}): left for later") from error


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`; raise `UnavailableError` after so many seconds, and let it go on by itself."""
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
    """Return a path or address without its secrets: a digest replaces user and query."""
    if not is_url(path):
        return path
    parts = urlsplit(path)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return bare if bare == path else f"{bare}#{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def require_no_user(url: str) -> None:
    """Raise `InputError` for a user or password in a web address: `urllib` takes none, and messages would show them."""
    if url.startswith(("http://", "https://")) and "@" in urlsplit(url).netloc:
        raise InputError(f"source.path is '{public(url)}' with a user name, expected an address without: leave it out")


def version_of(status: os.stat_result) -> Version:
    """Return size and times of a file, which change when it does."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def local_name(key: str) -> str:
    """Return the name of the download that has this key in the index."""
    name = key.partition("#")[0].rstrip("/").rsplit("/", 1)[-1]
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name[-100:]}"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text[:1].lower() + text[1:]
