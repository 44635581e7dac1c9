"""`python -m tenth`: the same as the command `tenth`."""

from tenth.commands import main

main()
