"""utils/worker/channel.py: messages are JSON, images shared memory of a size that stays."""

import os
import socket
import sys

import pytest
import torch

from utils.worker.channel import Channel, shared_memory_fds


@pytest.fixture
def ends():
    sockets, memory = socket.socketpair(), shared_memory_fds()
    yield [Channel(end.detach(), *memory) for end in sockets]
    for fd in memory:
        os.close(fd)


def test_message_arrives_as_it_was_sent(ends):
    ends[0].send({"do": "forward", "height": 3, "name": "ü"})
    assert ends[1].receive() == {"do": "forward", "height": 3, "name": "ü"}


def test_image_written_at_one_end_is_read_at_the_other(ends):
    image = torch.rand(1, 3, 5, 7)
    ends[0].lr(5, 7).copy_(image)
    assert torch.equal(ends[1].lr(5, 7), image)
    ends[1].sr(5, 7).fill_(0.25)
    assert ends[0].sr(5, 7).shape == (1, 3, 20, 28)
    assert (ends[0].sr(5, 7) == 0.25).all()


@pytest.mark.parametrize("garbage", [b"no json", b"[1, 2]", b"\xff\xfe"])
def test_what_is_no_message_is_refused(ends, garbage):
    ends[0].connection.send_bytes(garbage)
    with pytest.raises(ValueError, match=r"not an object|Expecting|decode"):
        ends[1].receive()


def test_endless_message_is_refused(ends):
    ends[0].connection._send(b"\x7f\xff\xff\xff")  # the length that it claims
    with pytest.raises(OSError, match="bad message length"):
        ends[1].receive()


@pytest.mark.skipif(sys.platform != "linux", reason="seals are Linux's")
def test_memory_cannot_be_cut_off():
    for fd in shared_memory_fds():
        with pytest.raises(PermissionError):
            os.truncate(fd, 0)
        os.close(fd)
