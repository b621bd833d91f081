"""The command line: thin verbs over the actors, the client and `dev`."""

from jetcron.cli.root import app, main

__all__ = ["app", "main"]
