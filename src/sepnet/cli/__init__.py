"""The command line: one file a command, parsing and printing only.

A command is a module of this folder whose name does not begin with an underscore; it enters itself with
``sepnet.cli._registry.command``. Its file imports nothing slow at its head: ``sepnet --help`` reads every command's file.
"""

from sepnet.cli._app import app, main

__all__ = ["app", "main"]
