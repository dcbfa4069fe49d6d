"""`python -m surgery_cli`."""

from .ending import main

if __name__ == "__main__":
    main()
