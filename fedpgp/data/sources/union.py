"""Several data sets as one: reads each image from its part."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from fedpgp.data.sources.base import Reader

SEPARATOR = "/"
"""Between the title of a part and the name of a file in it; titles have none."""


class Union:
    """Reads rows whose files are `TITLE/FILE` with the readers of the parts, by title."""

    def __init__(self, parts: Mapping[str, Reader]) -> None:
        self._parts = parts

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """See `Source.read`."""
        split = pc.split_pattern(rows["file"], SEPARATOR, max_splits=1).combine_chunks()
        titles, files = pc.list_element(split, 0), pc.list_element(split, 1)
        rows = rows.set_column(rows.schema.get_field_index("file"), "file", files)
        codes = titles.dictionary_encode()
        numbers = codes.indices.to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)] if len(numbers) else [0]
        for start, end in pairwise(bounds):
            yield from self._parts[codes.dictionary[int(numbers[start])].as_py()].read(rows.slice(start, end - start))
