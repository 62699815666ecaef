"""The C interface of libslirp, QEMU's TCP/IP stack in user space, as far as emu.devices.user_network needs it.

Source: its header libslirp.h, version 4.7. Nothing here knows what the functions are good for.
"""

from __future__ import annotations

import ctypes
import socket
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint32, c_void_p

from emu.errors import BadInput

LIBRARY = "libslirp.so.0"
POLL_IN, POLL_OUT, POLL_PRI, POLL_ERR, POLL_HUP = 1, 2, 4, 8, 16
FOREVER = 0xFFFF_FFFF  # ms, as a timeout
CONFIG_VERSION = 1  # the fields below are all of this version

SendPacket = CFUNCTYPE(c_ssize_t, c_void_p, c_size_t, c_void_p)
GuestError = CFUNCTYPE(None, c_char_p, c_void_p)
ClockGet = CFUNCTYPE(c_int64, c_void_p)
TimerNew = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p)
TimerFree = CFUNCTYPE(None, c_void_p, c_void_p)
TimerModify = CFUNCTYPE(None, c_void_p, c_int64, c_void_p)
PollDescriptor = CFUNCTYPE(None, c_int, c_void_p)
Notify = CFUNCTYPE(None, c_void_p)
AddPoll = CFUNCTYPE(c_int, c_int, c_int, c_void_p)
GetEvents = CFUNCTYPE(c_int, c_int, c_void_p)


class In4(ctypes.Structure):
    """struct in_addr."""

    _fields_ = [("s_addr", c_uint32)]


class In6(ctypes.Structure):
    """struct in6_addr."""

    _fields_ = [("words", c_uint32 * 4)]


class Callbacks(ctypes.Structure):
    """SlirpCb; the last two are of configurations of version 4."""

    _fields_ = [
        ("send_packet", SendPacket), ("guest_error", GuestError), ("clock_get_ns", ClockGet), ("timer_new", TimerNew),
        ("timer_free", TimerFree), ("timer_mod", TimerModify), ("register_poll_fd", PollDescriptor),
        ("unregister_poll_fd", PollDescriptor), ("notify", Notify), ("init_completed", c_void_p),
        ("timer_new_opaque", c_void_p),
    ]  # fmt: skip


class Config(ctypes.Structure):
    """SlirpConfig of version 1."""

    _fields_ = [
        ("version", c_uint32), ("restricted", c_int), ("in_enabled", c_bool), ("vnetwork", In4), ("vnetmask", In4),
        ("vhost", In4), ("in6_enabled", c_bool), ("vprefix_addr6", In6), ("vprefix_len", ctypes.c_uint8),
        ("vhost6", In6), ("vhostname", c_char_p), ("tftp_server_name", c_char_p), ("tftp_path", c_char_p),
        ("bootfile", c_char_p), ("vdhcp_start", In4), ("vnameserver", In4), ("vnameserver6", In6),
        ("vdnssearch", c_void_p), ("vdomainname", c_char_p), ("if_mtu", c_size_t), ("if_mru", c_size_t),
        ("disable_host_loopback", c_bool), ("enable_emu", c_bool),
    ]  # fmt: skip


def address(text: str) -> In4:
    """A struct in_addr from dotted numbers."""
    return In4(int.from_bytes(socket.inet_aton(text), "little"))


def address6(text: str) -> In6:
    """A struct in6_addr."""
    return In6.from_buffer_copy(socket.inet_pton(socket.AF_INET6, text))


def load() -> ctypes.CDLL:
    """The library, with the types of its functions.

    Raises:
        BadInput: it is not installed, or too old.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
        functions = {
            "slirp_new": (c_void_p, [POINTER(Config), POINTER(Callbacks), c_void_p]),
            "slirp_cleanup": (None, [c_void_p]),
            "slirp_input": (None, [c_void_p, c_char_p, c_int]),
            "slirp_pollfds_fill": (None, [c_void_p, POINTER(c_uint32), AddPoll, c_void_p]),
            "slirp_pollfds_poll": (None, [c_void_p, c_int, GetEvents, c_void_p]),
            "slirp_add_hostfwd": (c_int, [c_void_p, c_int, In4, c_int, In4, c_int]),
        }
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        reason = f"user needs libslirp 4, Debian's package libslirp0 (apt-get install libslirp0): {error}"
        raise BadInput("--net", reason) from None
    return library
