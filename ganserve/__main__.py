"""Runs the command line, as `ganserve` or `python -m ganserve`."""

import sys


def main() -> None:
    """Run the command line of this process and exit; Ctrl-C is no traceback from its start on."""
    try:
        from ganserve.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
