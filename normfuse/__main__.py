"""`python -m normfuse` is the command `normfuse`."""

from normfuse.cli import main

main()
