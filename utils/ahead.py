"""Run work in threads ahead of its consumer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

from utils.errors import HarnessError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    pool: Executor | None, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """Yield `function(item)` in order; with a `pool`, at most `limit` calls run ahead of the consumer.

    On a HarnessError from `items`, yield the results of the calls under way before raising it again. One from a call is
    raised in its turn, and no later result is yielded.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    remaining, failure = iter(items), None
    while True:
        try:
            item = next(remaining)
        except StopIteration:
            break
        except HarnessError as error:
            failure = error
            break
        waiting.append(pool.submit(function, item))
        if waiting[0].done() or len(waiting) > limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if failure:
        raise failure
