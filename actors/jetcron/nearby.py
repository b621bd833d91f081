"""The server of the `jetcron dev` that runs in this folder: verbs and programs find it without being told.

Owns nothing: `jetcron dev` writes where its server listens, and takes that away when it ends. What it left when it was
killed is believed only if somebody answers there.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

STORE = Path(".jetcron")
"""Where `jetcron dev` keeps everything, unless told otherwise."""
_ANSWERS_WITHIN = 0.5


def nearby_url() -> str | None:
    """Where it listens, if it runs and NATS_URL names no other server."""
    return None if os.environ.get("NATS_URL") else dev_url()


def dev_url(store: Path = STORE) -> str | None:
    """Where the `jetcron dev` with this store listens, if it runs."""
    try:
        url = (store / "url").read_text().strip()
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_ANSWERS_WITHIN):
            return url
    except (OSError, ValueError):
        return None
