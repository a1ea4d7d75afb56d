"""What can one hostile peer take from a cluster: its memory, and the time of honest clients?

    python -m bench.attacks [--quick] [--json] [--attacks "unread answers,endless message"] [--nice 19]

For each attack a controller, a worker, a gateway and an attacker of their own, four honest clients that ask without an
end (ZeroMQ with tensors sent and in shared memory, HTTP, gRPC; every answer checked), and then the attack. Printed is how
much more memory the attacked process had at its peak than before (the kernel's VmHWM, which misses nothing), of each
transport p99 before and during the attack and the longest wait, and what became of the attacker.
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
