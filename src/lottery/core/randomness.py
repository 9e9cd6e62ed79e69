"""Every random draw of the project starts here; nothing draws from a global state."""

import hashlib
from collections.abc import Sequence

import torch


def generator(purpose: str, seed: int = 0, path: Sequence[float] = (), epoch: int = 0) -> torch.Generator:
    """A generator of its own for one purpose, derived from what its draws may depend on.

    ``path`` is a level's path of sparsities from dense, never its name: renaming a level changes nothing.
    """
    words = [purpose, str(seed), *(repr(float(sparsity)) for sparsity in path), str(epoch)]
    digest = hashlib.sha256("/".join(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
