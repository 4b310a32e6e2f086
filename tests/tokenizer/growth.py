"""How the time of an encoding grows with the text, on texts that invite more than linear work.

As a script: ``python -m tests.tokenizer.growth``. For each text the slope of the logarithm of the
processor's time over that of the length, from 10,000 to 1,280,000 characters; 1 is linear.
"""

import math
import time

from abyssal.tokenizer import Tokenizer

from . import families

#: Name -> what is repeated.
PATTERNS = {
    "one character": "a",
    "one long run of Han": "".join(chr(0x4E00 + 37 * i % 20_000) for i in range(997)),
    "spaces": " ",
    "digits": "1234567890",
    "combining marks": "\u0301\u0302\u0303",
    "emoji": "\U0001f600\U0001f44d\U0001f3fd",
    "alternating scripts": "a\u0434\u6df1\u0e01",
    "control characters": "\x00\x01\x02\x7f",
}
LENGTHS = [10_000 * 2**doubling for doubling in range(8)]


def repeated(pattern: str, length: int) -> str:
    return (pattern * (length // len(pattern) + 1))[:length]


def slope(points: list[tuple[float, float]]) -> float:
    """The slope of the line that lies nearest to the points' logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return over / sum((x - mean_x) ** 2 for x, _ in logs)


def main() -> None:
    for name, pattern in PATTERNS.items():
        points = []
        for length in LENGTHS:
            text = repeated(pattern, length)
            taken = []
            for _ in range(3):
                tokenizer = Tokenizer.from_file(families.PUBLISHED)
                tokenizer.encode_to_numpy("a")
                started = time.process_time()
                tokenizer.encode_to_numpy(text)
                taken.append(time.process_time() - started)
            points.append((length, min(taken)))
        rate = LENGTHS[-1] / points[-1][1] / 1e6
        print(f"{name:22} slope {slope(points):.2f}, {rate:.1f} million characters a second")


if __name__ == "__main__":
    main()
