"""`python -m runner` is the command `runner`."""

from runner.cli.main import run

if __name__ == "__main__":  # a spawned process imports this file again
    run()
