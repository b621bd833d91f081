"""The contract of Jetcron: names, messages and identifiers, as data.

No input or output happens here, no clock is read and nothing of NATS is imported: whoever holds these
modules can check by hand what the actors say to each other. The same facts are written for other
languages in docs/protocol.md.
"""
