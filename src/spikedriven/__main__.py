"""`python -m spikedriven` is the command."""

from spikedriven.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
