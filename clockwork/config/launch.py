"""Bounds of the programs that start a cluster."""

from __future__ import annotations

# ----- launch/local.py -------------------------------------------------------------------------

DRAIN_NS = 1_000_000_000  # Time for which stopping workers continue their actions

STOP_WORKERS_NS = 1_150_000_000
"""Time limit for workers to end; after it, the controller is told to end in any case."""

STOP_NS = 1_500_000_000
"""Time limit for all processes to end in order; the others are then killed. The end takes two seconds at
most."""

READY_NS = 120 * 1_000_000_000  # Time that the cluster may take to become ready
FOUND_SHOWN = 8  # Models from earlier starts that the greeting of `clockwork up` names
HELD_PORT_ATTEMPTS = 100  # Ports tried until one is free in both families
LAST_LINES = 20  # Lines of a child's output that are shown when it dies

# ----- launch/cores.py -------------------------------------------------------------------------

CORES_ASKED_NS = 1_000_000_000  # Interval at which the controller is asked for the loads of its models

DIVISION_JUDGED_NS = 10_000_000_000
"""Interval at which the division of the cores is judged anew, and the requests of models are sampled."""

RATE_SAMPLES_MAX = 7  # Samples of requests: rates are those of a minute
RATE_LEAST_NS = 20_000_000_000  # Time over which requests are counted at least for a rate

DIVISION_SETTLED_NS = 60_000_000_000
"""Time for which another division must be better before the workers are divided anew, unless a model waits
for it: a change costs a start of workers."""

DIVISION_REFUSED_NS = 600_000_000_000
"""Time for which a division is not tried again whose workers could not be started."""

DIVISION_JOINED_NS = 120_000_000_000
"""Time that the workers of a division may take to join. Then, or when one of them is given up, the workers
before stay."""

DIVISION_WHOLE_NS = 600_000_000_000
"""Time that they may take to have every model, before the workers that they replace end all the same."""

WORKER_LEAVES_NS = 30_000_000_000  # Time for a worker that is replaced to end, before it is killed

# ----- launch/many.py --------------------------------------------------------------------------

REGISTRATIONS_AT_ONCE = 16
"""Registrations under way: enough that their disk writes overlap, far below a controller's bound."""

# ----- launch/profiles.py ----------------------------------------------------------------------

COPIES_MAX = 100_000

# ----- launch/ray.py ---------------------------------------------------------------------------

POLL_NS = 300_000_000  # Interval at which each actor is asked for the state of its child process
END_S = 2.0  # Time that an actor may take to clean up after its child process has ended

# ----- launch/demo.py --------------------------------------------------------------------------

DEMO_ARENA = "1GiB"
"""Memory of each device: less than the models take, so that models have to be loaded while others are served.
"""

DEMO_INPUT_BYTES = 2_000
"""Bytes of a request. The models' own inputs of 0.6 MB are too large to be moved a thousand times a second.
"""

DEMO_SLO_S = 0.1
DEMO_LOAD_S = 3_600  # Time after which the demo's load begins again

# ----- launch/restarts.py ----------------------------------------------------------------------

RESTART_PAUSE_NS = 250_000_000
"""Pause before the second restart in a row of a process that ended, doubled each time; the first restart is
immediate."""

RESTART_PAUSE_MAX_NS = 16_000_000_000  # Longest pause before a restart

RESTART_SETTLED_NS = 60_000_000_000
"""Running time after which a process that ends counts as failing for the first time."""

RESTARTS_MAX = 8  # Restarts in a row after which a process is given up: half a minute of pauses
