"""`python -m spikedriven` is the command."""

from spikedriven.cli.main import entry

if __name__ == "__main__":
    entry()
