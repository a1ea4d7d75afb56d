"""All answers about the state of a controller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from clockwork.controller.context import Context
from clockwork.controller.effects import Effect
from clockwork.controller.peers.seats import SeatCounts
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.versions import Versions
from clockwork.controller.standing import ControllerStanding
from clockwork.controller.storage.repairs import Repairs
from clockwork.controller.views.metrics import MetricsQuery
from clockwork.controller.views.queries import Queries
from clockwork.controller.views.source_reports import SourceReports
from clockwork.scheduler.types import Scheduler


class Views:
    """The views of a controller. policy: the name of the scheduler's policy. standing: who is active, and who
    stands by."""

    def __init__(
        self,
        context: Context,
        effects: deque[Effect],
        scheduler: Scheduler,
        table: ModelTable,
        versions: Versions,
        repairs: Repairs,
        policy: str,
        seats: SeatCounts,
        standing: Callable[[], ControllerStanding],
    ) -> None:
        started_ns = context.now_ns
        self.reports = SourceReports(effects)
        self.metrics = MetricsQuery(context, scheduler, table, versions, policy, started_ns, standing)
        self.queries = Queries(
            context, scheduler, table, versions, repairs, policy, started_ns, seats, standing
        )
