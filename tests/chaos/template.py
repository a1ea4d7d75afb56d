"""The template of every seed: a controller's data and two workers' stores with the models prepared, made once
for a run."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import onnx

from clockwork.models import zoo
from tests.process.cluster import Reference, running_cluster

WORKERS = 2
INPUTS = 16
"""Number of inputs of each model whose answers are known."""

WIDTHS = {"m0": 512, "m1": 512, "m2": 320, "m3": 320}
CHURNED = ("c0", "c1", "c2")
"""Models that the load registers and removes; each seed begins without them."""


@dataclasses.dataclass(slots=True, frozen=True)
class Template:
    root: Path

    @property
    def answers(self) -> Path:
        return self.root / "answers.npz"

    @property
    def models(self) -> list[str]:
        return list(WIDTHS)

    @property
    def churn(self) -> dict[str, str]:
        return {name: str(self.root / f"{name}.onnx") for name in CHURNED}

    def copy_as_one(self, target: Path) -> None:
        """Return a single directory for controller and workers, as `clockwork up` uses it."""
        for source in ("controller", "worker"):
            shutil.copytree(self.root / source, target, copy_function=_link, dirs_exist_ok=True)

    def copy(self, target: Path) -> None:
        """Copy a controller's directory and a directory for each worker.

        Files are hard links, but for those of the catalogue: no process writes into another existing file.
        """
        for name, source in [
            ("controller", "controller"),
            *((f"worker-{n}", "worker") for n in range(WORKERS)),
        ]:
            shutil.copytree(self.root / source, target / name, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    if os.path.exists(target):
        return  # a package that both workers have
    # A lock belongs to the file, whatever its names; a database is written in place.
    if source.endswith("lock") or os.path.basename(source).startswith("catalog."):
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)  # the target is on another file system


def _model(name: str) -> onnx.ModelProto:
    number = int(name[1:])
    if name in CHURNED:
        return zoo.fine_tune(zoo.build("mlp", width=192), 10 + number)
    base = zoo.build("mlp", width=WIDTHS[name])
    return zoo.fine_tune(base, number) if number % 2 else base


def make(root: Path) -> Template:
    """Prepare all models in a cluster with a single worker, whose store both workers get.

    Preparation itself is not under test here, and a seed shall be short.
    """
    template = Template(root)
    rng = np.random.default_rng(0)
    arrays = {}
    with running_cluster(root / "cluster") as cluster, cluster.client() as client:
        for name in [*WIDTHS, *CHURNED]:
            model = _model(name)
            reference = Reference(model)
            inputs = [rng.standard_normal((1 + index % 3, 64)).astype(np.float32) for index in range(INPUTS)]
            for index, x in enumerate(inputs):
                arrays[f"{name}/inputs/{index}"] = x
                arrays[f"{name}/outputs/{index}"] = reference(x)
            onnx.save(model, root / f"{name}.onnx")
            client.register(name, model, slo=30.0)
        for name in CHURNED:
            client.unregister(name)
    np.savez(template.answers, **arrays)
    for name in ("controller", "worker"):
        os.rename(root / "cluster" / name, root / name)
    shutil.rmtree(root / "cluster")
    return template
