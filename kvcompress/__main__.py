"""The `kvcompress` command, and `python -m kvcompress`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends it as it does later."""
    try:
        from kvcompress.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted. Nothing is half-written.\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
