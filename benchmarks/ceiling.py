"""What `gpu_server` can serve at most, so that it is known not to be the limit of what is measured against it.

    python -m benchmarks.ceiling

The client is as bare as can be (sockets, ready-made requests, replies not parsed), and shares the machine with it.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

import orjson

from benchmarks.gpu_server import Model
from benchmarks.harness import Part, Table, Value, endpoint, write

SECONDS = 3.0
CONNECTIONS = 16
UNLIMITED = Model(documents_per_s=1e7, slots=64, base_s=1e-6)


async def _ask(port: int, body: bytes, until: float) -> int:
    """One connection's requests, one after the other; how many were answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answered = 0
    while perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
        answered += 1
    writer.close()
    await writer.wait_closed()
    return answered


async def run() -> None:
    rows: list[dict[str, Value]] = []
    for batch in (1, 8, 32, 128):
        with endpoint(UNLIMITED) as control:
            port = int(control.url.rpartition(":")[2])
            bodies = [
                orjson.dumps({"inputs": [f"{connection} {text} ".ljust(255, "x") for text in range(batch)]})
                for connection in range(CONNECTIONS)
            ]
            until = perf_counter() + SECONDS
            answered = sum(await asyncio.gather(*(_ask(port, body, until) for body in bodies)))
        rows.append({"texts a request": batch, "requests/s": answered / SECONDS, "texts/s": batch * answered / SECONDS})
    what = f"Texts of 64 tokens, {CONNECTIONS} connections, {SECONDS:g} s each."
    table = Table("What the endpoint can serve at most", what, rows)
    print(table.markdown())
    for path in write("ceiling", {"ceiling": Part([table])}):
        print(f"wrote {path}")


if __name__ == "__main__":
    asyncio.run(run())
