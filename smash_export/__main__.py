"""``python -m smash_export``: the command without an installed script."""

from smash_export.cli import main

if __name__ == "__main__":
    main()
