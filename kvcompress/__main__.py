"""`python -m kvcompress`: the same as the `kvcompress` command."""

from kvcompress.cli.app import main

if __name__ == "__main__":
    main()
