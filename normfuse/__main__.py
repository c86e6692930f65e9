"""The command `normfuse`, also as `python -m normfuse`."""

from normfuse.interrupts import end_at_once


def main() -> None:
    """Runs the command line."""
    end_at_once()  # before the imports, which take a while
    from normfuse.cli import main as program

    program()


if __name__ == "__main__":
    main()
