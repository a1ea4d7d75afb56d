"""Writing program packages: the public names of clockwork.formats.program."""

from clockwork.formats.program import Program, parse_program, read_program, write_checks, write_program

__all__ = ["Program", "parse_program", "read_program", "write_checks", "write_program"]
