"""Sources of the dashboard's steps: a recording at its original pace, or a controller's recorder."""

from __future__ import annotations

from collections.abc import Callable

from clockwork.config import LISTED_MODELS_PAGE
from clockwork.config import dashboard as bounds
from clockwork.config.observe import TOP_PAGE_S
from clockwork.errors import ConfigError
from clockwork.observe.dashboard.follower import FollowedSteps
from clockwork.observe.live import Ask, ClusterDescription
from clockwork.scheduler.recording import Readable, Step, Stream, decode


class RecordingSource:
    """A recording from ``from_ns`` after its first event on, played at its original pace."""

    def __init__(self, file: Readable, clock: Callable[[], int], from_ns: int = 0) -> None:
        """clock: nanoseconds of a monotonic clock. Raises ConfigError unless the file is a recording."""
        header, steps = decode(file)
        self._held = header.held  # models resident at the begin of a dump that begins in the middle
        self._steps = steps
        self._clock = clock
        self._from_ns = from_ns
        self._next: Step | None = next(steps, None)
        self._damage: ConfigError | None = None  # error of the first step that cannot be read
        self._zero_ns = 0  # time of the recording at which the clock is 0
        self._has_begun = False

    def look(self, has_rested: bool = False) -> FollowedSteps:
        """Return the steps that are due. Raises ConfigError, on each call, where the recording is damaged."""
        now_ns = self._clock()
        if not self._has_begun:
            self._has_begun = True
            begun_ns = self._next.events[0].now_ns if self._next is not None else 0
            self._zero_ns = begun_ns + self._from_ns - now_ns
        until_ns = self._zero_ns + now_ns
        found: list[Step] = []
        while self._next is not None and self._next.events[0].now_ns <= until_ns:
            if len(found) == bounds.DASHBOARD_STEPS_MAX:
                break
            found.append(self._next)
            try:
                self._next = next(self._steps, None)
            except ConfigError as error:
                self._next, self._damage = None, error
        if not found and self._damage is not None:
            raise self._damage
        held, self._held = self._held, ()
        return FollowedSteps(0, found, held=held, is_behind=len(found) == bounds.DASHBOARD_STEPS_MAX)


class Live:
    """A controller's flight recorder, read from its newest steps on.

    A look reads at most DASHBOARD_LOOK_BYTES. If the controller writes faster, and DASHBOARD_BACKLOG_BYTES
    would be unread, the look skips to the newest steps. So the dashboard always shows the present.
    """

    def __init__(
        self, ask: Ask, describe: Callable[[], ClusterDescription], clock: Callable[[], int]
    ) -> None:
        """describe: asks for the cluster. clock: nanoseconds of a monotonic clock."""
        self._ask = ask
        self._describe = describe
        self._clock = clock
        self._stream: Stream | None = None
        self._described_ns = 0  # time of the last description of the cluster; 0: a description is due
        self._interval_ns = 0
        self._end = 0  # end of the recorder at the last look; 0: there was none
        self._looked_ns = 0
        self._per_ns = 0.0  # bytes per nanosecond that the controller wrote between the last two looks
        self._unread = 0  # bytes that the last look did not read
        self._is_gap = False  # whether steps were read and lost, as the controller stopped answering

    def look(self, has_rested: bool = False) -> FollowedSteps:
        """See Source.look()."""
        now_ns = self._clock()
        if has_rested:
            self._described_ns = 0  # the cluster may have changed meanwhile
        cluster = self._description(now_ns)
        if self._stream is None:
            self._stream, self._end = Stream(f"-{bounds.DASHBOARD_BEGIN_NS}"), 0
            self._per_ns, self._unread = 0.0, 0
        stream, is_gap, read = self._stream, self._is_gap, 0
        since_ns = max(now_ns - self._looked_ns, 1)
        if self._unread + self._per_ns * since_ns > bounds.DASHBOARD_BACKLOG_BYTES and self._per_ns:
            # Skip to the newest steps that fit half of DASHBOARD_LOOK_BYTES, by the rate of the last looks.
            stream.argument = f"-{round(bounds.DASHBOARD_LOOK_BYTES / 2 / self._per_ns)}"
        steps: list[Step] = []
        while True:
            self._is_gap = is_gap or bool(steps)  # if the next request fails, these steps are lost
            answer = self._ask(stream.argument)
            if stream.epoch and answer.get("epoch") != stream.epoch:  # the controller was restarted
                self._stream, self._described_ns, self._interval_ns, self._is_gap = None, 0, 0, False
                return self.look()
            was = stream.place
            if answer["place"] < was:  # the rate has risen: nothing has to be skipped
                stream.argument = f"#{was}"
                continue
            is_gap = is_gap or bool(was and answer["place"] != was)
            steps += stream.take(answer)
            read += len(answer["bytes"])
            if stream.is_at_end or read >= bounds.DASHBOARD_LOOK_BYTES:
                break
        unread = answer["end"] - stream.place
        share, behind_ns = 1.0, 0
        written = answer["end"] - self._end if self._end else 0
        self._per_ns, self._unread = written / since_ns, unread
        if written:
            behind_ns = round(unread / self._per_ns)
            if not has_rested:  # steps that no page wanted do not count as missing
                share = min(1.0, read / written)
        self._end, self._looked_ns, self._is_gap = answer["end"], now_ns, False
        return FollowedSteps(
            stream.epoch, steps, is_gap, share, cluster=cluster, behind_ns=behind_ns, unread=unread
        )

    def _description(self, now_ns: int) -> ClusterDescription | None:
        """Return the controller's description of the cluster, or None if the last is recent enough.

        The interval is short at first, while workers join and models become ready. It grows with the number
        of models.
        """
        if self._described_ns and now_ns - self._described_ns < self._interval_ns:
            return None
        found = self._describe()
        self._described_ns = now_ns
        pages = -(-len(found.models) // LISTED_MODELS_PAGE)
        largest_ns = max(
            bounds.DASHBOARD_DESCRIBE_NS, round(pages * TOP_PAGE_S / bounds.DASHBOARD_DESCRIBE_PART * 1e9)
        )
        self._interval_ns = min(largest_ns, max(bounds.DASHBOARD_DESCRIBE_NS // 32, 2 * self._interval_ns))
        return found
