"""Work that threads do ahead of who takes it."""

from collections import deque

from utils.errors import HarnessError


def ahead(pool, function, items, limit):
    """Yield `function(item)` in order; with a `pool`, at most `limit` calls run ahead of what is taken.

    When `items` fails, the calls under way are finished and yielded before the exception goes on.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > limit:
                yield waiting.popleft().result()
    except HarnessError:
        while waiting:
            yield waiting.popleft().result()
        raise
    while waiting:
        yield waiting.popleft().result()
