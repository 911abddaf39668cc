"""How a server behaves: where it listens, whom it lets in, how much of each thing it takes.

Owns the settings and which of them cannot go together. Knows no request and no engine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from genrec.errors import RecipeError, join_problems
from genrec.serve.keys import KeyRing

_MAY_BE_ZERO = ("port", "linger_seconds", "gather_seconds", "prefix_cache_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What `genrec serve` was told.

    Attributes:
        host: the address to listen on.
        port: 0 takes a free one.
        model_name: what answers, as people know it.
        keys: who may ask; without any key, everyone who reaches the port.
        insecure_public: listen beyond this machine although there is no key.
        allowed_hosts: names that a request's Host may have; none allows all.
        cors_origins: web pages of these origins may ask from a browser.
        domains: the adapter of each domain, by the domain's name.
        max_body_bytes: of one request.
        max_stream_bytes: of a request to the stream.
        max_streams: streams at once.
        max_history: items of one history.
        max_text_chars: of one text.
        max_k: answers of one request.
        max_width: beams of one request.
        max_filter_ids: ids that one filter names.
        max_evaluations: prefixes that one exact search may ask the model about.
        max_batch: requests of one batch.
        max_new_tokens: of one written text.
        max_texts: texts that are written, or wait to be, at once.
        look_ahead: requests of one batch or stream that are worked on at once.
        max_connections: beyond this, connections are answered with 503.
        max_queue: jobs that wait for the engine; beyond this, 429.
        max_wait_seconds: a request that would wait longer than this is answered with 429.
        batch_jobs: users that the engine runs together.
        batch_tokens: prompt tokens that the engine runs together.
        prefix_cache_bytes: of prompts' beginnings that are kept for later ones; 0 keeps none.
        gather_seconds: how long an idle engine waits for company to a job.
        deadline_seconds: a request that takes longer is answered with 504.
        drain_seconds: how long running requests have to finish after SIGTERM.
        linger_seconds: how long /readyz says 503 after SIGTERM before the port closes.
        head_seconds: a client has so long to send a request's head,
        body_seconds: so long for its body,
        write_seconds: and so long to take a piece of the answer.
        keep_alive_seconds: an idle connection is kept so long.
        wait_for_start: the application starts only when its engine is up.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "model"
    keys: KeyRing = field(default_factory=KeyRing)
    insecure_public: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    domains: Mapping[str, str] = field(default_factory=dict)
    max_body_bytes: int = 1 << 20
    max_stream_bytes: int = 32 << 20
    max_streams: int = 8
    max_history: int = 500
    max_text_chars: int = 4000
    max_k: int = 200
    max_width: int = 1000
    max_filter_ids: int = 10_000
    max_evaluations: int = 10_000
    max_batch: int = 256
    max_new_tokens: int = 512
    max_texts: int = 64
    look_ahead: int = 32
    max_connections: int = 1000
    max_queue: int = 256
    max_wait_seconds: float = 30.0
    batch_jobs: int = 32
    batch_tokens: int = 8192
    prefix_cache_bytes: int = 256 << 20
    gather_seconds: float = 0.0
    deadline_seconds: float = 30.0
    drain_seconds: float = 30.0
    linger_seconds: float = 0.0
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    keep_alive_seconds: int = 30
    wait_for_start: bool = True

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, and a public port without a key.

        Raises:
            RecipeError: it lists all that is wrong.
        """
        problems = [
            f"{name}={value}; use a number above 0" + (", or 0" if name in _MAY_BE_ZERO else "")
            for name, value in self._list_numbers()
            if not value >= 0 or (value == 0 and name not in _MAY_BE_ZERO)  # nan is not, either
        ]
        if self.port > 65535:  # noqa: PLR2004  (the ports that there are)
            problems.append(f"port={self.port}; use 1 to 65535, or 0 for any that is free")
        if problems:
            raise RecipeError(join_problems("the server's settings", problems))
        if not (self.is_local or self.keys or self.insecure_public):
            raise RecipeError(
                f"host {self.host!r} can be reached from other machines, and there is no API key; "
                f"make one (`genrec serve-key keys.txt`) and pass --api-key-file keys.txt, listen "
                f"on 127.0.0.1, or pass --insecure-public if something else guards the port"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the port."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def _list_numbers(self) -> list[tuple[str, float]]:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [
            (name, value)
            for name, value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
