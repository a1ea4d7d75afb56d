"""``python -m clockwork``."""

from clockwork.cli.root import main

main()
