"""The command line: parses arguments, calls the package, prints where the results are. No logic of its own.

One file a command or group of commands; what a command needs is imported when it runs, so that help is there at once.

Exit status: 0 done (gate: passed); 1 gate failed, and nothing else; 2 an error that the user can mend, an audit that is
not complete (a model failed), or a gate that could not be decided; 70 a defect of this program; 129 hung up,
130 interrupted, 143 terminated.
"""

from audit.cli.entry import app, main

__all__ = ["app", "main"]
