"""How large a file may be that is read whole: configs, indices, manifests, tokenizers. Asked before it is read, so that
a file costs no more than what it may be.
"""

from __future__ import annotations

from ..errors import FormatError

MOST = 100_000_000  # bytes, as many as the header of a safetensors file may have
MOST_OF_NAMES = 500_000_000  # of what names each tensor of a checkpoint, of which there may be millions


def check_small(path: str, size: int) -> None:
    """Raise FormatError for a file of so many bytes that is to be read whole."""
    name = path.rpartition("/")[2]
    most = MOST_OF_NAMES if name.endswith(".metadata") or ".index" in name else MOST
    if size > most:
        raise FormatError(
            f"the file is too large to be read whole: {size} bytes, and {name} may have {most}",
            where=[path],
            help="it is not what it is called: fetch it again, or move it away",
        )
