"""Growth of the work with its input, as a ratio within one run."""

import gc
import time
from collections.abc import Callable


def is_linear(act: Callable[[int], object], size: int) -> bool:
    """Return True when four times the size takes less than eight times as long, where work in the
    square of the size would take sixteen; in one of four tries, for the machine may be busy."""

    def seconds(amount: int) -> float:
        gc.disable()  # it looks at all that the other tests have left
        try:
            began = time.process_time()
            act(amount)
            return time.process_time() - began
        finally:
            gc.enable()

    return any(seconds(4 * size) < 8 * max(seconds(size), 1e-3) for _ in range(4))
