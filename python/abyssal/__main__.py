"""``python -m abyssal`` is the command ``abyssal``."""

from abyssal.cli.app import main

if __name__ == "__main__":
    main()
