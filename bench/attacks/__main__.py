"""Attacks of one hostile peer on a cluster: the memory and the honest clients' time that they take.

    python -m bench.attacks [--quick] [--json] [--attacks "unread answers,endless message"] [--nice 19]

Each attack has its own controller, worker, gateway and attacker. Four honest clients send requests without a
pause and check every answer: over ZeroMQ with tensors in the message and in shared memory, over HTTP and over
gRPC. A row says by how much the attacked process exceeded its memory before the attack at its peak (VmHWM of
the kernel), the p99 of each transport before and during the attack, its longest wait, and how the attack
ended.
"""

from bench import report
from bench.attacks.measure import ATTACKS, measure, short
from bench.attacks.site import SEED


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--attacks", default="", help="names, with commas between them  [default: all]")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        metavar="N",
        help="the attacker's niceness; 19: nearly no competition for processors",
    )
    arguments = parser.parse_args()
    names = arguments.attacks.split(",") if arguments.attacks else list(ATTACKS)
    if unknown := [name for name in names if name not in ATTACKS]:
        parser.error(f"no attack {unknown[0]!r}; there are {', '.join(ATTACKS)}")
    rows = measure(names, arguments.quick, not arguments.quick, arguments.nice)
    shown = rows if arguments.json else [short(row) for row in rows]
    report.show("hostile peers", SEED, shown, {}, arguments.json)


if __name__ == "__main__":
    main()
