"""Runs the command line as `python -m gantrain`."""

from gantrain.cli import main

main()
