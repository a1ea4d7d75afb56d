"""The public names of clockwork.formats.program, which writes program packages."""

from clockwork.formats.program import Program, parse_program, read_program, write_checks, write_program

__all__ = ["Program", "parse_program", "read_program", "write_checks", "write_program"]
