"""One access unit as RTP payloads.

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
    """The payloads of one access unit, in order; the last one is the picture's end (marker bit).

    Shape: 1..n payloads of at most `limit_bytes`. Small NAL units that follow each other (SPS, PPS) share one packet;
    what does not fit is cut into equal fragments, so that they can leave in one system call. Access unit delimiters are
    left out: the marker says it.
    Raises: BadBitstream: no Annex-B. ValueError: nothing to send, or a limit too small for a fragment.
    """
    if limit_bytes <= _FU_HEADER_BYTES:
        raise ValueError(f"a payload of {limit_bytes} bytes carries nothing")
    payloads: list[bytes] = []
    small: list[bytes] = []
    small_bytes = _STAP_HEADER_BYTES
    for nal in split_annexb(access_unit):
        if nal_type(nal) == NAL_AUD:
            continue
        wanted = _SIZE_BYTES + len(nal)
        if small and small_bytes + wanted > limit_bytes:
            payloads.append(_together(small))
            small, small_bytes = [], _STAP_HEADER_BYTES
        if len(nal) > limit_bytes:
            payloads += _fragments(nal, limit_bytes)
        else:
            small.append(nal)
            small_bytes += wanted
    if small:
        payloads.append(_together(small))
    if not payloads:
        raise ValueError("an access unit without a NAL unit to send")
    return payloads


def _together(nals: list[bytes]) -> bytes:
    if len(nals) == 1:
        return nals[0]
    # The most important one's importance, and the forbidden bit if any has it.
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
