"""Runs the command line as `python -m ganserve`."""

from ganserve.cli import main

main()
