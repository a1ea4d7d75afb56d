"""Reads the files of `clockwork telemetry`, and draws the distribution of latency and the devices' timeline.

    python examples/read_telemetry.py FOLDER picture.png

Needs pyarrow and matplotlib: pip install 'clockwork-serving[telemetry,plots]'. docs/telemetry.md describes
the columns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a screen

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from clockwork.observe.palette import ANSWERED, EXECUTING, LOADING

MS = 1e6
SHOWN_NS = 1e9  # length of the timeline, which ends with the last result


def main(folder: Path, picture: Path) -> None:
    """Read all complete files of a folder."""
    # A folder with thousands of files is read as a table, of which only the requested columns are read.
    requests = ds.dataset([str(path) for path in sorted(folder.glob("requests-*.parquet"))]).to_table(
        columns=["outcome", "latency_ns", "deadline_met", "is_coldstart", "model"]
    )
    actions = ds.dataset([str(path) for path in sorted(folder.glob("actions-*.parquet"))]).to_table(
        columns=[
            "action_type",
            "worker",
            "device",
            "begin_ns",
            "end_ns",
            "expected_exec_ns",
            "exec_ns",
            "status",
        ],
        filter=pc.is_valid(ds.field("begin_ns")),
    )
    if not requests.num_rows:
        sys.exit(f"{folder}: no request is in its files")

    outcomes = requests["outcome"].value_counts().to_pylist()
    print("requests:", ", ".join(f"{row['counts']} {row['values']}" for row in outcomes))
    met = requests.filter(requests["deadline_met"])
    latency = np.sort(met["latency_ns"].drop_null().to_numpy()) / MS
    if latency.size:
        for part in (50, 99, 99.9):
            print(f"latency p{part}: {np.percentile(latency, part):.2f} ms")
    print(f"cold starts: {pc.sum(met['is_coldstart']).as_py() or 0}")

    executed = actions.filter(
        pc.and_(pc.equal(actions["action_type"], "infer"), pc.equal(actions["status"], "OK"))
    )
    error = np.abs(executed["exec_ns"].to_numpy() - executed["expected_exec_ns"].to_numpy()) / 1e3
    if error.size:
        print(
            f"executions were predicted to {np.percentile(error, 50):.0f} us (p50), {np.percentile(error, 99):.0f} us (p99)"
        )

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 7), layout="constrained")
    upper.plot(latency, np.arange(1, latency.size + 1) / max(1, latency.size), color=ANSWERED.color)
    upper.set(xlabel="latency, ms", ylabel="part of the requests in time", ylim=(0, 1), title="Latency")
    upper.grid(alpha=0.3)

    begin, end = actions["begin_ns"].to_numpy(), actions["end_ns"].to_numpy()
    last = end.max(initial=0)
    place = np.char.add(
        np.char.add(actions["worker"].to_numpy().astype(str), "/"), actions["device"].to_numpy().astype(str)
    )
    names = sorted(set(place))
    kinds = np.array(actions["action_type"].to_pylist())
    for row, name in enumerate(names):
        for kind, look, height in (("infer", EXECUTING, 0.6), ("load", LOADING, 0.25)):
            shown = (place == name) & (kinds == kind) & (end > last - SHOWN_NS)
            bars = list(zip((begin[shown] - last) / MS, (end - begin)[shown] / MS))
            lower.broken_barh(
                bars, (row - height / 2, height), color=look.color, label=look.word if row == 0 else ""
            )
    lower.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="ms before the last result",
        title="Devices",
        xlim=(-SHOWN_NS / MS, 0),
    )
    lower.legend(loc="upper left")
    figure.savefig(picture, dpi=120)
    print(f"drawn: {picture}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
