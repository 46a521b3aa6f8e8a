"""The program: `numllama`, or `python -m numllama`."""

import numllama.quiet  # noqa: F401


def main() -> None:
    """Run the command that the arguments name, and exit."""
    from numllama.cli import main

    main()


if __name__ == "__main__":
    main()
