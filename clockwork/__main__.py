"""``python -m clockwork``."""

from clockwork.cli import main

main()
