"""Measures both sides, and compares them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench.gpu_peers.beside import Fails
from bench.gpu_peers.ours import BESIDE, Site, Times, kernels
from bench.gpu_peers.theirs import Peer, Side, available

MARKS = (50, 99, 99.9, 99.99)

Row = dict[str, Any]


def measure(
    model: Path, onnx: Path, batches: Sequence[int], dtypes: Sequence[str], peers: Sequence[Peer], runs: int, listed: int,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[Row], list[Row], dict[str, Any]]:  # fmt: skip
    """A row for each batch, dtype, side and concurrent work; rows of kernels; facts.

    model: an ONNX file, or a package, which has a single dtype.
    """
    usable, lacking = available(peers)
    if not usable:
        raise SystemExit("; ".join(lacking))
    rows: list[Row] = []
    lists: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        reference = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
        for dtype in dtypes:
            tell(f"compiling for {dtype}")
            site = Site(scratch / dtype, model, max(batches), dtype)
            rivals = [peer for peer in usable if peer.dtype == dtype]
            for batch in batches:
                inputs = site.inputs(batch)
                names = [spec.name for spec in reference.get_inputs()]
                right = reference.run(None, dict(zip(names, inputs, strict=True)))
                best = dict.fromkeys(("event", "host"), float("inf"))
                for beside in BESIDE:
                    tell(f"batch {batch}, {dtype}, Clockwork, {beside}")
                    answers, times = site.run(site.directory, inputs, runs, beside)
                    rows.append(_row(batch, dtype, "Clockwork", beside, times, answers, right))
                ours = rows[-len(BESIDE)]
                for peer in rivals:
                    try:
                        side = Side(onnx, peer, scratch)
                        for beside in ("alone", "registrations"):
                            tell(f"batch {batch}, {dtype}, {peer.name}, {beside}")
                            answers, times = side.run(inputs, right, runs, beside)
                            rows.append(_row(batch, dtype, peer.name, beside, times, answers, right))
                            if beside == "alone":
                                best = {
                                    clock: min(us, rows[-1][f"{clock} p50_us"]) for clock, us in best.items()
                                }
                    except (
                        Fails
                    ) as error:  # such as a CUDA graph of a model with a node that stays on the processor
                        lacking.append(f"batch {batch}: {error}")
                if np.isfinite(best["event"]):
                    ours["times the best"] = ours["event p50_us"] / best["event"]
                    ours["times the best, host"] = ours["host p50_us"] / best["host"]
                if listed:
                    tell(f"batch {batch}, {dtype}, kernel by kernel")
                    few = max(min(runs, 1000) // 20, 5)
                    sides = [kernels(site, batch, few)]
                    for peer in rivals[:1]:
                        profile = Side(onnx, peer, scratch, scratch / f"profile-{dtype}-{batch}")
                        sides.append(profile.kernels(inputs, right, batch, few))
                    lists += [{"dtype": dtype, **row} for found in sides for row in found[:listed]]
        facts = {
            "card": f"{site.card.name}, driver {site.table.version}",
            "model": model.name,
            "launches": {
                variant.batch: len(variant.launches) for variant in site.program.of_target(site.target)
            },
            "runs": runs,
            "not measured": "; ".join(lacking) or "nothing",
        }
    return rows, lists, facts


def _wide(outputs: Sequence[Any]) -> list[Any]:
    """Outputs as float64, whose differences can be computed also for truth values and unsigned numbers."""
    return [np.asarray(output, np.float64) for output in outputs]


def _row(
    batch: int, dtype: str, side: str, beside: str, times: Times, answers: Sequence[Any], right: Sequence[Any]
) -> Row:
    """A row of percentiles. The times "event" are by the card's events, "host" by this machine's clock, from
    the first launch to the noticed end.
    """
    event, host = (np.percentile(values, MARKS) / 1e3 for values in (times.event, times.host))
    worst = max(
        float(np.max(np.abs(answer - expected)) / max(float(np.max(np.abs(expected))), 1e-30))
        for answer, expected in zip(_wide(answers), _wide(right), strict=True)
    )
    return {
        "batch": batch,
        "dtype": dtype,
        "side": side,
        "beside": beside,
        **{f"event p{mark:g}_us": float(value) for mark, value in zip(MARKS, event, strict=True)},
        "p99.99 over p50": float(event[-1] / event[0]),
        **{f"host p{mark:g}_us": float(value) for mark, value in zip(MARKS, host, strict=True)},
        "times the best": None,
        "times the best, host": None,
        "registered": len(times.registered_s) if beside == "registrations" else None,
        "apart by": worst,
    }
