"""`python -m repquant`, the form that torchrun needs, and `repquant`. A Ctrl-C while all is imported is expected."""

import sys


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        from repquant import signals

        signals.listen()
        try:
            from repquant.cli.main import main as run

            return run()
        except Exception as error:
            raise signals.asked() or error from None
    except KeyboardInterrupt:
        print("repquant: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
