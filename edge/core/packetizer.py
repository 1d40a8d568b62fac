"""Split one access unit into RTP payloads.

Source: RFC 6184, 5.6 (single NAL unit), 5.7.1 (STAP-A), 5.8 (FU-A); packetization-mode 1.
"""

from __future__ import annotations

from edge.core.annexb import NAL_AUD, nal_type, split_annexb

_STAP_A = 24
_FU_A = 28
_NRI = 0x60
_F_NRI = 0xE0
_START, _END = 0x80, 0x40
_STAP_HEADER_BYTES = 1
_SIZE_BYTES = 2
_FU_HEADER_BYTES = 2


def packetize(access_unit: bytes, limit_bytes: int) -> list[bytes]:
    """Return the payloads of one access unit in order; the last one is sent with the marker bit.

    Shape: 1..n payloads of at most `limit_bytes`. Consecutive small NAL units (SPS, PPS) share a packet. Larger ones
    are split into fragments of equal size, so that one system call can send them. Access unit delimiters are left out,
    since the marker bit replaces them.
    Raises: BadBitstream: not Annex-B. ValueError: nothing to send, or a limit too small for a fragment.
    """
    if limit_bytes <= _FU_HEADER_BYTES:
        raise ValueError(f"a payload limit of {limit_bytes} bytes is too small")
    payloads: list[bytes] = []
    small: list[bytes] = []
    small_bytes = _STAP_HEADER_BYTES
    for nal in split_annexb(access_unit):
        if nal_type(nal) == NAL_AUD:
            continue
        size_bytes = _SIZE_BYTES + len(nal)
        if small and small_bytes + size_bytes > limit_bytes:
            payloads.append(_aggregate(small))
            small, small_bytes = [], _STAP_HEADER_BYTES
        if len(nal) > limit_bytes:
            payloads += _fragments(nal, limit_bytes)
        else:
            small.append(nal)
            small_bytes += size_bytes
    if small:
        payloads.append(_aggregate(small))
    if not payloads:
        raise ValueError("the access unit contains no NAL unit to send")
    return payloads


def _aggregate(nals: list[bytes]) -> bytes:
    if len(nals) == 1:
        return nals[0]
    # The highest NRI of them, and the forbidden bit if any NAL unit has it.
    header = max(nal[0] & _NRI for nal in nals) | (max(nal[0] for nal in nals) & 0x80) | _STAP_A
    return bytes([header]) + b"".join(len(nal).to_bytes(_SIZE_BYTES, "big") + nal for nal in nals)


def _fragments(nal: bytes, limit_bytes: int) -> list[bytes]:
    indicator, kind = nal[0] & _F_NRI | _FU_A, nal[0] & 0x1F
    first, middle, last = (bytes([indicator, kind | mark]) for mark in (_START, 0, _END))
    count = -(-(len(nal) - 1) // (limit_bytes - _FU_HEADER_BYTES))
    size = -(-(len(nal) - 1) // count)
    *starts, end = range(1, len(nal), size)
    fragments = [middle + nal[at : at + size] for at in starts]
    fragments[0] = first + fragments[0][_FU_HEADER_BYTES:]
    fragments.append(last + nal[end:])
    return fragments
