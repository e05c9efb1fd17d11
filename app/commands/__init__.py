"""The commands of the shell: each a module with `add_arguments(parser)` and `run(args) -> int`.

A module is imported when its command is run or its help asked for, and imports what is heavy inside `run`.
"""
