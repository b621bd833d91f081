"""`python -m jetcron`: the same as the command `jetcron`."""

from jetcron.cli import main

if __name__ == "__main__":
    main()
