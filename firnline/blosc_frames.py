"""A Blosc frame taken apart, to be decoded piece by piece in little memory.

c-blosc2 decodes a whole frame without the interpreter's lock, and a part of one only with it; so a
part is made a frame of its own. Layout, of frames of version 1 (README_CHUNK_FORMAT of c-blosc): a
header of 16 bytes (version, version of the codec, flags, size of a value; little-endian uint32
sizes before compression, of a block, and after), the offset of each block as int32, the blocks in
any order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

_HEADER = 16
_COPIED = 0x02  # flag: not compressed, no blocks
_EXTENDED = 0x05  # both flags of filters: a header as of Blosc 2


def parts(frame: memoryview, least: int) -> Iterator[tuple[bytes | memoryview, int]]:
    """Frames that together hold what one does, in order, and the bytes that each decodes to.

    Those are at least `least`, and one block more than that at most; all of it where it is not in
    blocks.

    Raises
    ------
    ValueError
        Its header or its offsets are not those of a frame.
    """
    sizes = np.frombuffer(frame[4:_HEADER], "<u4")
    size, block, end = (int(n) for n in sizes)
    if frame[2] & _COPIED or frame[2] & _EXTENDED == _EXTENDED or block >= size:
        yield frame, size
        return
    if not block or end != len(frame):
        raise ValueError("its header is damaged")
    count = -(-size // block)
    data = _HEADER + 4 * count
    if data > end:
        raise ValueError("it is too short for its blocks")
    starts = np.frombuffer(frame[_HEADER:data], "<i4").tolist()
    if min(starts) < data or max(starts) >= end:
        raise ValueError("its blocks lie outside of it")
    ends = [*sorted(starts), end]
    # the last block may be shorter, and is not one without another before it
    firsts = list(range(0, count - 1, -(-least // block)))
    for first, stop in zip(firsts, [*firsts[1:], count], strict=True):
        blocks = [frame[at : ends[bisect_right(ends, at)]] for at in starts[first:stop]]
        offsets = np.cumsum([_HEADER + 4 * len(blocks), *map(len, blocks)])
        length = min(size, stop * block) - first * block
        header = np.array([length, block, offsets[-1]], "<u4")
        yield (
            b"".join([frame[:4], header.tobytes(), offsets[:-1].astype("<i4").tobytes(), *blocks]),
            length,
        )
