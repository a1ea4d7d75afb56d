"""``clockwork demo``: an emulated cluster with the paper's models, a load that changes, and the dashboard."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from clockwork.config.launch import DEMO_ARENA, DEMO_INPUT_BYTES, DEMO_LOAD_S, DEMO_SLO_S
from clockwork.formats.profiles import ModelProfile, paper_varieties, save_profiles
from clockwork.launch.local import AnyChild, Child, ChildSlot, ProcessCluster, UpSettings, dialled, up

BURSTS_S = (3, 9)
"""Mean lengths in seconds of a model's bursts, and of the pauses between them, so that the total load
varies."""

ZIPF = 1.1  # Exponent of the models' popularity


@dataclasses.dataclass(slots=True)
class DemoSettings:
    """The settings of the demo. rate: requests per second. A port of 0 means any free port."""

    devices: int = 12
    rate: float = 800.0
    port: int = 0
    dashboard_port: int = 0
    verbose: bool = False


def demo(settings: DemoSettings, say: Callable[[str], None]) -> int:
    """Run the demo in the foreground until a signal. Returns the exit status. Its files are removed."""
    with tempfile.TemporaryDirectory(prefix="clockwork-demo-") as folder:
        profiles = Path(folder) / "profiles.json"
        save_profiles(
            profiles, [dataclasses.replace(profile, input_bytes=DEMO_INPUT_BYTES) for profile in _models()]
        )
        cluster = UpSettings(
            workers=1, port=settings.port, data=Path(folder), demo=False, profiles=str(profiles),
            gateway=False, verbose=settings.verbose,
            worker_arguments=("--device", "emulated", "--devices", str(settings.devices), "--arena", DEMO_ARENA,
                              "--emulate", "exec_noise=0.01", "--emulate", "load_noise=0.03"),
        )  # fmt: skip
        return up(cluster, say, functools.partial(_Demo, settings))


def _models() -> list[ModelProfile]:
    """Return the paper's models, slowest first. The most popular models are then slow, so that a burst
    exceeds the capacity."""
    return sorted(paper_varieties(), key=lambda profile: -profile.exec_ns[1])


class _Demo(ProcessCluster):
    """A cluster with two more children: the dashboard, and the load, which begins when the cluster is
    ready."""

    def __init__(
        self,
        of_demo: DemoSettings,
        settings: UpSettings,
        endpoints: tuple[str, str, str],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(settings, endpoints, say)
        self._of_demo = of_demo
        self._dashboard: ChildSlot | None = None

    def start(self) -> None:
        super().start()
        arguments = ["--endpoint", dialled(self._endpoints[0]), "--port", str(self._of_demo.dashboard_port)]
        with self._undisturbed():
            self._dashboard = self._spawn("dashboard", ["dashboard", *arguments])

    def wait_until_ready(self) -> None:
        super().wait_until_ready()
        dashboard = self._dashboard
        assert dashboard is not None
        self._wait(lambda: bool(dashboard.child.serves), self.started_ns + self.ready_ns, "the dashboard")

    def greet(self) -> None:
        of_demo = self._of_demo
        assert self._dashboard is not None
        names = [profile.name for profile in _models()]
        with self._undisturbed():
            self._spawn("load", [
                "load", *names, "--endpoint", dialled(self._endpoints[0]), "--rate", f"{of_demo.rate:g}",
                "--slo", f"{DEMO_SLO_S:g}", "--zipf", f"{ZIPF:g}", "--bursts", *map(str, BURSTS_S),
                "--duration", f"{DEMO_LOAD_S:g}", "--json",
            ])  # fmt: skip
        line = self._dashboard.child.serves
        self._say(
            f"\n{line.partition(' (')[0]}\n\n"
            f"{of_demo.devices} emulated V100s serve {len(names)} models, which are asked {of_demo.rate:g} times a second, in bursts, "
            f"each with an SLO of {DEMO_SLO_S * 1000:g} ms.\nCtrl-C ends it."
        )

    def _place(self, name: str, arguments: list[str]) -> AnyChild:
        if name != "load":
            return super()._place(name, arguments)
        child = Child(name, arguments, lambda line: None, self._settings.verbose)
        child.serves = name  # the load prints no line by which it could be recognized
        return child
