"""`python -m repquant`, the form that torchrun needs, and `repquant`."""

import sys

from repquant import signals


def main() -> int:
    """Run the command line; a Ctrl-C while it is still being imported is no traceback either."""
    signals.listen()
    try:
        from repquant.cli.main import main as run

        return run()
    except (Exception, KeyboardInterrupt):
        if not isinstance(signals.asked(), KeyboardInterrupt):
            raise
        print("repquant: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
