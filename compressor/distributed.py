"""Training in several processes, of which one leads.

`torchrun` and `accelerate launch` start the same command several times. Process 0 leads: it alone
carries the command out. The others follow: they wait until it trains, take part in that with what
it sends them, and leave with its exit code. What is said of a command elsewhere thus holds for the
leader, and only what trains has to know of the others.

Imports no torch until a training starts, or a command that was started several times ends.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from compressor import interruption
from compressor.errors import DivergenceError, PassError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["check_batch", "follow", "is_follower", "leading", "rank", "size", "together"]

Result = TypeVar("Result")
_Order = tuple[Callable[..., Any], tuple[str, ...]]

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher sets in the environment."""
_TRAIN = "train"
_FAILED = "failed"
_FOREVER = timedelta(days=365)  # a follower waits while the leader exports, measures, and so on
_GRACE = timedelta(seconds=5)
"""How long the leader has to say how it ends, once a follower has failed."""

_orders = itertools.count()


def size() -> int:
    """How many processes train together; 1 where no launcher started this one."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHED) else 1


def rank() -> int:
    """The number of this process, from 0, which leads."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_follower() -> bool:
    """Whether another process leads this one."""
    return rank() > 0


def check_batch(batch_size: int) -> None:
    """Check that the processes can share a batch.

    Args:
        batch_size: Rows of one step, over all processes.

    Raises:
        PassError: They cannot share it evenly.
    """
    processes = size()
    if batch_size % processes:
        lower = batch_size - batch_size % processes
        multiples = [each for each in (lower, lower + processes) if each]
        raise PassError(
            "the processes cannot share a batch evenly",
            where="batch_size",
            given=f"{batch_size} rows for {processes} processes",
            fix=f"set batch_size to {' or '.join(map(str, multiples))}, "
            "or start a number of processes that divides it",
        )


@contextmanager
def leading() -> Iterator[None]:
    """Within, this process carries the command out; the others leave when it does, as it does."""
    code = 1
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    finally:
        if size() > 1:
            _order(str(code))


def together(make: Callable[..., Result], **listeners: Callable[..., None]) -> Result:
    """Call a function in all processes at once.

    Args:
        make: Trains; called with the listeners by name. It is sent to the others with all that it
            holds: a partial of a function of a module.
        listeners: What is told of the training, such as ``progress``; the others tell nobody.

    Returns:
        What it gave here; what it gave elsewhere is thrown away.

    Raises:
        PassError: It failed in another process, or that ended.
    """
    if size() == 1:
        return make(**listeners)
    _order(_TRAIN)
    try:
        _broadcast((make, tuple(listeners)))
        result = make(**listeners)
        _wait_for_all()  # the others may still read files that go with the end of the training
    except BaseException as error:
        failure = _failure() or _lost_connection(error)
        if failure is None:
            raise
        # The launcher ends this process because the other one has ended: that is no wish to leave.
        interruption.forget()
        raise failure from error
    return result


def follow(*, debug: bool = False) -> NoReturn:
    """Take part in what the leader trains, until it leaves.

    Args:
        debug: Print the traceback of an error here; else the leader alone tells of it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the leader answers it
    for number in itertools.count():
        order = _ordered(number, _FOREVER)
        if order != _TRAIN:
            sys.exit(int(order))
        try:
            make, names = _broadcast(None)
            make(**dict.fromkeys(names, _tell_nobody))
            _wait_for_all()
        except DivergenceError:
            continue  # as in all others: the leader tells of it, and may try something else
        except Exception as error:
            if debug:
                traceback.print_exc()
            _tell_failure(error)
            sys.exit(_last_order(number + 1))
    raise AssertionError  # the count has no end


@functools.cache
def _store() -> Store:
    """What all processes read and write; it also works where one of them hangs or has ended."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return PrefixStore("compressor", store)


def _order(text: str) -> None:
    _store().set(f"order {next(_orders)}", text)


def _ordered(number: int, patience: timedelta) -> str:
    _store().wait([f"order {number}"], patience)
    return _store().get(f"order {number}").decode()


def _last_order(number: int) -> int:
    """The leader's exit code, or that of a failed pass where the leader does not leave."""
    from torch.distributed import DistError

    try:
        return int(_ordered(number, _GRACE))
    except DistError:
        return PassError.exit_code


def _tell_nobody(*_: object) -> None:
    """Take the place of a listener."""


def _broadcast(made: _Order | None) -> _Order:
    """Send the leader's function to the others; pickled, between processes of one user."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())  # opens the connections between the processes
    sent: list[Any] = broadcast_object_list([made])
    received: _Order = sent[0]
    return received


def _wait_for_all() -> None:
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def _tell_failure(error: Exception) -> None:
    """Leave word of an error to the leader, if it is one of this process and the first."""
    if _lost_connection(error) is not None:
        return
    if not isinstance(error, PassError):
        error = PassError(
            f"a process of the training failed: {type(error).__name__}: {error}",
            where=f"process {rank()} of {size()}, counted from 0",
            fix="run again with --debug to see where; the same command resumes from the last "
            "checkpoint",
        )
    told = json.dumps([error.what, error.where, error.given, error.fix])
    _store().compare_set(_FAILED, "", told)


def _lost_connection(error: BaseException) -> PassError | None:
    """What to say of an error that means that another process has ended, or None."""
    from torch.distributed import DistError

    # The errors of gloo have no type of their own.
    if not isinstance(error, DistError) and "/gloo/" not in str(error):
        return None
    return PassError(
        "another process of the training ended",
        where=f"process {rank()} of {size()}, counted from 0",
        given=str(error).splitlines()[0],
        fix="see the output of the launcher for how it ended, such as signal 9 when memory ran "
        "out; the same command resumes from the last checkpoint",
    )


def _failure() -> PassError | None:
    """The error of a follower, if one failed."""
    if not _store().check([_FAILED]):
        return None
    what, where, given, fix = json.loads(_store().get(_FAILED))
    return PassError(what, where=where, given=given, fix=fix)
