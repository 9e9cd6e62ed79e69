"""How many requests a served ticket answers: `python -m benchmarks.serving ADDRESS`, in the ticket's folder.

Connections that stay open send test images of the folder's data set, as many at once as they draw, and the next request
as soon as one is answered. Every answer is compared with what the ticket's file gives by numpy alone.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

import lottery.ticket
from lottery.files.data import load_test

BATCHES = (1, 2, 5, 10, 20, 50, 100)  # images at once
PATIENCE = 60  # seconds until a request counts as lost


@dataclass(frozen=True)
class Answered:
    """What came of a load of which no request was lost."""

    seconds: float
    images: int
    times: Sequence[float]  # of each request, in seconds

    def __str__(self) -> str:
        median, late = (1000 * value for value in np.quantile(self.times, (0.5, 0.99)))
        requests, images = (number / self.seconds for number in (len(self.times), self.images))
        return (
            f"{len(self.times):,} requests in {self.seconds:.0f} s, none lost: {requests:.0f} requests and "
            f"{images:.0f} images a second; half of them within {median:.1f} ms, 99 % within {late:.1f} ms, "
            f"the slowest {1000 * max(self.times):.0f} ms"
        )


def load(
    address: str, images: NDArray[np.uint8], classes: NDArray[np.int64], seconds: float, connections: int, seed: int = 0
) -> Answered:
    """Send images [N, ...] for some seconds. Raises RuntimeError where an answer does not come or is not theirs."""
    texts = [json.dumps(image.tolist(), separators=(",", ":")) for image in images]
    url, end = urlsplit(address), time.monotonic() + seconds

    def send(number: int) -> tuple[int, list[float]]:
        draws, times, sent = np.random.default_rng([seed, number]), [], 0
        connection = HTTPConnection(url.hostname or "", url.port, timeout=PATIENCE)
        while time.monotonic() < end:
            chosen = draws.integers(len(images), size=draws.choice(BATCHES))
            body = f'{{"inputs":[{",".join(texts[each] for each in chosen)}]}}'
            started = time.monotonic()
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            times.append(time.monotonic() - started)
            sent += len(chosen)
            if answer.status != 200 or json.loads(text)["predictions"]["class"] != classes[chosen].tolist():
                raise RuntimeError(f"request {len(times)} of connection {number}: {answer.status} {text[:200]!r}")
        connection.close()
        return sent, times

    started = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        sent, times = zip(*pool.map(send, range(connections)), strict=True)
    return Answered(time.monotonic() - started, sum(sent), [each for some in times for each in some])


def main() -> None:
    """Print how many requests a second were answered, and how fast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="such as http://127.0.0.1:5001")
    parser.add_argument("--seconds", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--connections", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is sent; default: %(default)s")
    arguments = parser.parse_args()
    ticket = lottery.ticket.load("tickets/ticket.safetensors")
    pixels = load_test(Path("data") / f"{ticket.facts.data}.safetensors").pixels
    images = pixels.reshape(-1, *ticket.facts.image).numpy()
    classes = ticket.logits(images).argmax(1)
    print(load(arguments.address, images, classes, arguments.seconds, arguments.connections, arguments.seed))


if __name__ == "__main__":
    main()
