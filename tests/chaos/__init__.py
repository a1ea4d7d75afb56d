"""Real processes under real load, with faults that a seed schedules, and an oracle that judges the clients'
records.

``python -m tests.chaos --seeds 20`` (`make chaos SEEDS=20`) runs many seeds, ``python -m tests.chaos.soak``
(`make soak HOURS=1`) looks for resources that grow. docs/chaos.md describes the faults, and the guarantees of
a cluster under them.
"""
