"""Counts of clients that train on their own: a block whose models did not change is not tested again."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import numpy as np

from fedpgp.federation.client_rows import ClientRows
from fedpgp.federation.messages import Counts


class Tested:
    """The counts of each block in the last evaluation, by its clients and their parameters, bit for bit.

    It is made anew when a run is resumed; the counts are the same. Blocks stay whole, as the last bits of a client's
    logits may depend on the others in its batch.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, list[Counts]] = {}

    def counts(
        self,
        parts: Sequence[np.ndarray],
        personal: ClientRows,
        evaluate: Callable[[list[np.ndarray]], Iterable[list[Counts]]],
    ) -> list[list[Counts]]:
        """The counts of each block, of which `evaluate` gets those that have changed."""
        keys = [_digest(part, personal) for part in parts]
        changed = [index for index, key in enumerate(keys) if key not in self._known]
        found = evaluate([parts[index] for index in changed]) if changed else ()
        known = self._known | dict(zip((keys[index] for index in changed), found, strict=True))
        self._known = {key: known[key] for key in keys}
        return list(self._known.values())


def _digest(clients: np.ndarray, personal: ClientRows) -> bytes:
    """What the models of a block depend on."""
    digest = blake2b(clients.tobytes(), digest_size=16)
    for key, rows in sorted(personal.of(clients).items()):
        digest.update(key.encode())
        digest.update(rows.tobytes())
    return digest.digest()
