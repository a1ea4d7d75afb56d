"""Real processes under real load, in which something fails by a seed's schedule, and an oracle that judges what the
clients saw.

``python -m tests.chaos --seeds 20`` (`make chaos SEEDS=20`) looks through many seeds, ``python -m tests.chaos.soak``
(`make soak HOURS=1`) looks for what grows. docs/chaos.md says what is done to the cluster, and what it owes then.
"""
