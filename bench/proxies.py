"""Failures and delays behind HAProxy and nginx when one of two gateways is killed, or drained.

    python -m bench.proxies [--quick] [--json] [--rounds 5] [--proxies haproxy,nginx] [--callers 4]
        [--pause 0.01] [--bytes 200000]

A controller, a worker, two gateways (`--notice` of 3 s), and a proxy with the configuration of deploy/, in
which only the ports are others. Callers ask by HTTP on kept-alive connections, and by gRPC on a channel each,
one request after the other, and compare each answer with ONNX Runtime's; half of those by HTTP pad their JSON
to --bytes. In each round the first gateway is killed (SIGKILL) and started again, then drained (SIGTERM) and
started again. ``failed`` counts calls that did not get the answer, from the signal to the gateway's return;
``gap`` is the longest time without any answer, ``worst`` the longest that a call took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import Cluster
from bench.gateway import ROOT, started
from bench.reference import Plain, relative_error
from clockwork.launch.local import held_ports
from clockwork.models import zoo
from clockwork.system.clock import MS, SECOND, now_ns

SEED = 5
NOTICE_S = 3.0
CALL_S = 10.0
READY_S = 30.0
LOOK_S = 0.05
AFTER_KILL_S = 3.0  # observed after a kill, before the gateway is started again
SETTLE_S = 2.0  # of load, once the proxy can know that the gateway is back
TOLERANCE = 1e-4  # of an answer against ONNX Runtime's, relative to its largest value
PROGRAMS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin"
"""Folders of the proxies, also where an ordinary user's PATH has no sbin."""

FILES = {"haproxy": Path("haproxy/haproxy.cfg"), "nginx": Path("nginx/nginx.conf")}
PORTS = ("8080", "8081", "8000", "8001", "8010", "8011")
"""The ports of the configurations: the proxy's for HTTP and gRPC, and the same of each gateway."""


@dataclasses.dataclass(frozen=True)
class Ports:
    """The ports of a site, named as those of the configurations."""

    http: int
    grpc: int
    first: tuple[int, int]
    second: tuple[int, int]


class Gateway:
    """A gateway of the cluster that can be killed, drained and started again at the same ports."""

    def __init__(self, endpoint: str, ports: tuple[int, int]) -> None:
        self._endpoint = endpoint
        self._ports = ports
        self.start()

    def start(self) -> None:
        """Start it, and return once it serves."""
        http_port, grpc_port = map(str, self._ports)
        self.process, *_ = started(
            self._endpoint,
            "--http-port",
            http_port,
            "--grpc-port",
            grpc_port,
            "--behind-proxy",
            "--notice",
            f"{NOTICE_S:g}s",
        )

    def end(self, number: int) -> None:
        """Send a signal, and return once it has ended."""
        self.process.send_signal(number)
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


def configuration(proxy: str, ports: Ports, folder: Path) -> Path:
    """Write the proxy's configuration of deploy/ with these ports; return the file."""
    given = (ports.http, ports.grpc, *ports.first, *ports.second)
    text = (ROOT / "deploy" / FILES[proxy]).read_text()
    mapped = dict(zip(PORTS, map(str, given)))
    text, count = re.subn(r"(?<=127\.0\.0\.1:)\d+|(?<= port )\d+", lambda found: mapped[found[0]], text)
    if count < len(PORTS):
        raise ValueError(f"{FILES[proxy]} names {count} ports, {len(PORTS)} at least are expected")
    if proxy == "nginx":  # its defaults belong to root
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        text = text.replace("http {\n", "http {\n" + temporary, 1)
    file = folder / FILES[proxy].name
    file.write_text(text)
    return file


@contextlib.contextmanager
def running_proxy(proxy: str, ports: Ports, folder: Path) -> Iterator[None]:
    """The proxy, while the block runs, before gateways that serve."""
    file = configuration(proxy, ports, folder)
    program = shutil.which(proxy, path=PROGRAMS)
    if program is None:
        raise FileNotFoundError(f"{proxy} is not installed")
    folder.chmod(0o755)  # nginx's own user has to get to it
    command = {
        "haproxy": [program, "-db", "-f", str(file)],
        "nginx": [program, "-p", str(folder), "-e", "stderr", "-c", str(file), "-g", f"daemon off; pid {folder}/pid;"],
    }[proxy]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline_ns = now_ns() + int(READY_S * SECOND)
        pause = threading.Event()
        while not _is_ready(ports.http):
            if process.poll() is not None or now_ns() > deadline_ns:
                raise RuntimeError(f"{proxy} does not serve:\n{(folder / 'log').read_text()}")
            pause.wait(LOOK_S)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclasses.dataclass(slots=True)
class Called:
    """A call. outcome: "": it got the right answer, else what it got."""

    begun_ns: int
    ended_ns: int
    outcome: str


class Callers:
    """Threads that call through the proxy, each one request after the other, until stop()."""

    def __init__(self, ports: Ports, count: int, pause_s: float, padded_bytes: int) -> None:
        self.calls: dict[str, list[Called]] = {"http": [], "grpc": []}
        self._stopped = threading.Event()
        self._pause_s = pause_s
        self._pixels = np.random.default_rng(SEED).random((1, 1, 8, 8), np.float32)
        (expected,) = Plain(zoo.digits()).run({"image": self._pixels})
        self._expected = expected.ravel()
        self._threads = [
            threading.Thread(target=self._http, args=(ports.http, padded_bytes if number % 2 else 0))
            for number in range(count)
        ] + [threading.Thread(target=self._grpc, args=(ports.grpc,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the calls, and wait for those under way."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _call(self, protocol: str, ask: Callable[[], str]) -> None:
        """Call again and again. ask: makes a call, and returns its outcome."""
        while not self._stopped.wait(self._pause_s):
            begun_ns = now_ns()
            outcome = ask()
            self.calls[protocol].append(Called(begun_ns, now_ns(), outcome))

    def _judge(self, scores: Any) -> str:
        return "" if relative_error(scores, self._expected) < TOLERANCE else "wrong"

    def _http(self, port: int, padded_bytes: int) -> None:
        tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32"}
        body = json.dumps({"inputs": [tensor | {"data": self._pixels.ravel().tolist()}]})
        data = body.ljust(padded_bytes).encode()
        headers = {"Content-Type": "application/json"}

        def ask() -> str:
            try:
                connection.request("POST", "/v2/models/digits/infer", data, headers)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # the next request opens it again
                return type(error).__name__
            if response.status != 200:
                return str(response.status)
            return self._judge(json.loads(answer)["outputs"][0]["data"])

        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_S)) as connection:
            self._call("http", ask)

    def _grpc(self, port: int) -> None:
        import grpc

        from clockwork.protocol import inference_pb2 as pb

        request: Any = pb.ModelInferRequest(model_name="digits", raw_input_contents=[self._pixels.tobytes()])
        request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
        data = request.SerializeToString()

        def ask() -> str:
            try:
                answer = pb.ModelInferResponse.FromString(infer(data, timeout=CALL_S))
            except grpc.RpcError as error:
                return str(error.code().name)
            return self._judge(np.frombuffer(answer.raw_output_contents[0], np.float32))

        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            self._call("grpc", ask)


def noticed(calls: list[Called], begin_ns: int, end_ns: int) -> dict[str, Any]:
    """Calls between two times, those that failed, and the delays."""
    within = [call for call in calls if call.ended_ns >= begin_ns and call.begun_ns < end_ns]
    answers = sorted(call.ended_ns for call in within if not call.outcome)
    marks = [begin_ns, *(at for at in answers if begin_ns <= at <= end_ns), end_ns]
    return {
        "calls": len(within),
        "outcomes": Counter(call.outcome for call in within if call.outcome),
        "gap_ns": max(after - before for before, after in itertools.pairwise(marks)),
        "worst_ns": max((call.ended_ns - call.begun_ns for call in within), default=0),
    }


def measure_one(proxy: str, rounds: int, callers: int, pause_s: float, size: int) -> list[dict[str, Any]]:
    """A row for each protocol and way for a gateway to end, behind that proxy."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clockwork-bench-")))
        numbers = stack.enter_context(held_ports(len(PORTS)))
        ports = Ports(numbers[0], numbers[1], (numbers[2], numbers[3]), (numbers[4], numbers[5]))
        cluster = stack.enter_context(Cluster())
        with cluster.client() as client:
            client.register("digits", zoo.digits())
        gateways = [Gateway(cluster.endpoint, own) for own in (ports.first, ports.second)]
        for gateway in gateways:
            stack.callback(lambda ending=gateway: ending.end(signal.SIGKILL))
        stack.enter_context(running_proxy(proxy, ports, folder))
        load = Callers(ports, callers, pause_s, size)
        stack.callback(load.stop)
        pause = threading.Event()
        pause.wait(SETTLE_S)
        for _ in range(rounds):
            for how, number in (("killed", signal.SIGKILL), ("drained", signal.SIGTERM)):
                begin_ns = now_ns()
                gateways[0].end(number)
                pause.wait(AFTER_KILL_S if number == signal.SIGKILL else SETTLE_S)
                end_ns = now_ns()
                gateways[0].start()
                pause.wait(SETTLE_S)
                for protocol, calls in load.calls.items():
                    found.setdefault((protocol, how), []).append(noticed(calls, begin_ns, end_ns))
    return [
        {
            "proxy": proxy,
            "protocol": protocol,
            "a gateway is": how,
            "calls": sum(event["calls"] for event in each),
            "failed": sum(sum(event["outcomes"].values()) for event in each),
            "as": dict(sum((event["outcomes"] for event in each), Counter())) or "",
            "gap, ms": round(statistics.median(event["gap_ns"] for event in each) / MS, 1),
            "worst gap, ms": round(max(event["gap_ns"] for event in each) / MS, 1),
            "worst call, ms": round(max(event["worst_ns"] for event in each) / MS, 1),
        }
        for (protocol, how), each in found.items()
    ]


def measure(proxies: list[str], rounds: int, callers: int, pause_s: float, size: int) -> list[dict[str, Any]]:
    """The rows of all proxies."""
    return [row for proxy in proxies for row in measure_one(proxy, rounds, callers, pause_s, size)]


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--proxies", default=",".join(FILES))
    parser.add_argument("--callers", type=int, default=4, help="callers of each protocol")
    parser.add_argument("--pause", type=float, default=0.01, help="of a caller between two calls, in seconds")
    parser.add_argument("--bytes", type=int, default=200_000, help="of half of the requests by HTTP")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    rows = measure(arguments.proxies.split(","), rounds, arguments.callers, arguments.pause, arguments.bytes)
    facts = {"rounds": rounds, "callers of each protocol": arguments.callers}
    report.show("a gateway of two ends behind a proxy", SEED, rows, facts, arguments.json)


if __name__ == "__main__":
    main()
