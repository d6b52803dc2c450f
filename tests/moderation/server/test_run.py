"""The socket that the server listens at."""

import socket

from equipoise.moderation.server.run import bind


def test_an_answer_is_not_held_back() -> None:
    """Head and body are written one after the other; the body must not wait until the head has arrived."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
