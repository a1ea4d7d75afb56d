"""Where the dashboard's steps come from: a recording, at the pace at which it happened, or a controller's recorder."""

from __future__ import annotations

from collections.abc import Callable

from clockwork.config import LISTED_MODELS_PAGE
from clockwork.config.dashboard import (
    DASHBOARD_BACKLOG_BYTES,
    DASHBOARD_BEGIN_NS,
    DASHBOARD_DESCRIBE_NS,
    DASHBOARD_DESCRIBE_PART,
    DASHBOARD_LOOK_BYTES,
    DASHBOARD_STEPS_MAX,
)
from clockwork.config.observe import TOP_PAGE_S
from clockwork.errors import ConfigError
from clockwork.observe.dashboard.follower import Look
from clockwork.observe.live import Ask, Cluster
from clockwork.scheduler.recording import Readable, Step, Stream, decode


class Recorded:
    """A recording, from ``from_ns`` after its first event on, as if it happened now."""

    def __init__(self, file: Readable, clock: Callable[[], int], from_ns: int = 0) -> None:
        """clock: nanoseconds of a clock that does not jump. Raises ConfigError unless the file is a recording."""
        header, steps = decode(file)
        self._held = header.held  # of a dump that begins in the middle
        self._steps = steps
        self._clock = clock
        self._from_ns = from_ns
        self._next: Step | None = next(steps, None)
        self._damage: ConfigError | None = None  # what comes after the last step that can be read
        self._zero_ns = 0  # of the recording, when the clock is 0
        self._has_begun = False

    def look(self, has_rested: bool = False) -> Look:
        """See Source. Raises ConfigError again and again where the recording is damaged."""
        now_ns = self._clock()
        if not self._has_begun:
            self._has_begun = True
            begun_ns = self._next.events[0].now_ns if self._next is not None else 0
            self._zero_ns = begun_ns + self._from_ns - now_ns
        until_ns = self._zero_ns + now_ns
        found: list[Step] = []
        while self._next is not None and self._next.events[0].now_ns <= until_ns:
            if len(found) == DASHBOARD_STEPS_MAX:
                break
            found.append(self._next)
            try:
                self._next = next(self._steps, None)
            except ConfigError as error:
                self._next, self._damage = None, error
        if not found and self._damage is not None:
            raise self._damage
        held, self._held = self._held, ()
        return Look(0, found, held=held, is_behind=len(found) == DASHBOARD_STEPS_MAX)


class Live:
    """A controller's flight recorder, read from its newest steps on.

    A look reads no more than DASHBOARD_LOOK_BYTES. Where a controller writes more than that, for longer than
    DASHBOARD_BACKLOG_BYTES last, what lies between is passed over, so that what is shown is always of now.
    """

    def __init__(self, ask: Ask, describe: Callable[[], Cluster], clock: Callable[[], int]) -> None:
        """describe: asks for the cluster. clock: nanoseconds of a clock that does not jump."""
        self._ask = ask
        self._describe = describe
        self._clock = clock
        self._stream: Stream | None = None
        self._described_ns = 0  # when the cluster was described last; 0: it has to be
        self._interval_ns = 0
        self._end = 0  # of the recorder, at the last look; 0: there was none
        self._looked_ns = 0
        self._per_ns = 0.0  # bytes that the controller wrote between the last two looks
        self._unread = 0  # bytes that the last look left
        self._is_gap = False  # steps were read, and lost because the controller did not answer any more

    def look(self, has_rested: bool = False) -> Look:
        """See Source."""
        now_ns = self._clock()
        if has_rested:
            self._described_ns = 0  # much may have come and gone meanwhile
        cluster = self._description(now_ns)
        if self._stream is None:
            self._stream, self._end = Stream(f"-{DASHBOARD_BEGIN_NS}"), 0
            self._per_ns, self._unread = 0.0, 0
        stream, is_gap, read = self._stream, self._is_gap, 0
        since_ns = max(now_ns - self._looked_ns, 1)
        if self._unread + self._per_ns * since_ns > DASHBOARD_BACKLOG_BYTES and self._per_ns:
            # As much of the newest as this look may read, by how fast steps were written before.
            stream.argument = f"-{round(DASHBOARD_LOOK_BYTES / 2 / self._per_ns)}"
        steps: list[Step] = []
        while True:
            self._is_gap = is_gap or bool(steps)  # unless they are handed over
            answer = self._ask(stream.argument)
            if stream.epoch and answer.get("epoch") != stream.epoch:  # another start of the controller
                self._stream, self._described_ns, self._interval_ns, self._is_gap = None, 0, 0, False
                return self.look()
            was = stream.place
            if answer["place"] < was:  # it is written faster now: nothing has to be passed over
                stream.argument = f"#{was}"
                continue
            is_gap = is_gap or bool(was and answer["place"] != was)
            steps += stream.take(answer)
            read += len(answer["bytes"])
            if stream.is_at_end or read >= DASHBOARD_LOOK_BYTES:
                break
        unread = answer["end"] - stream.place
        share, behind_ns = 1.0, 0
        written = answer["end"] - self._end if self._end else 0
        self._per_ns, self._unread = written / since_ns, unread
        if written:
            behind_ns = round(unread / self._per_ns)
            if not has_rested:  # what nobody wanted to see is not missing
                share = min(1.0, read / written)
        self._end, self._looked_ns, self._is_gap = answer["end"], now_ns, False
        return Look(stream.epoch, steps, is_gap, share, cluster=cluster, behind_ns=behind_ns, unread=unread)

    def _description(self, now_ns: int) -> Cluster | None:
        """The cluster as its controller describes it, now and then: soon again at first, while workers join and models become
        ready, and less often the more models there are."""
        if self._described_ns and now_ns - self._described_ns < self._interval_ns:
            return None
        found = self._describe()
        self._described_ns = now_ns
        pages = -(-len(found.models) // LISTED_MODELS_PAGE)
        largest_ns = max(DASHBOARD_DESCRIBE_NS, round(pages * TOP_PAGE_S / DASHBOARD_DESCRIBE_PART * 1e9))
        self._interval_ns = min(largest_ns, max(DASHBOARD_DESCRIBE_NS // 32, 2 * self._interval_ns))
        return found
