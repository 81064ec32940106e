"""Killing runs at random moments: what the tests of training, experiments and tracking share."""

import os
import random
import signal
import subprocess
import time
import traceback
from contextlib import contextmanager

import pytest

# Kills of each; the long form is TORCHDFA_FAULTS=50.
KILLS = int(os.environ.get("TORCHDFA_FAULTS", 3))

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def child(do):
    """Run something in a process of its own, which has all that is imported here; return its number."""
    number = os.fork()
    if number == 0:
        status = 1
        try:
            do()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return number


def killed_until_done(do, length, chance):
    """Have processes do something, and kill each at a random moment, until one ends by itself.

    Args:
        do: Must go on where it was killed.
        length: Seconds that it takes undisturbed; moments are drawn from that.
        chance: random.Random.

    Returns:
        How many were killed.
    """
    kills = 0
    while True:
        number = child(do)
        # The more kills, the longer the wait: it must end, also where it makes no headway in a short time.
        end = time.monotonic() + chance.uniform(0, length * (1 + kills / 10))
        while time.monotonic() < end:
            done, status = os.waitpid(number, os.WNOHANG)
            if done:
                assert status == 0, "it ended with an error"
                return kills
            time.sleep(0.002)
        os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert status == 0, "it ended with an error"
            return kills


def kill_often(make, check, seed=0):
    """Run something in new folders, killed at random, until there were as many kills as asked for; check each result.

    Args:
        make: Given a number, returns what to do, which must go on where it was killed.
        check: Given the number, compares the result with that of an undisturbed run.
        seed: Of the moments.
    """
    chance = random.Random(seed)
    begun = time.monotonic()
    number = child(make(0))
    assert os.waitpid(number, 0)[1] == 0
    check(0)
    length, kills, runs = time.monotonic() - begun, 0, 0
    while kills < KILLS:
        runs += 1
        kills += killed_until_done(make(runs), length, chance)
        check(runs)
    print(f"{kills} kills in {runs} runs of {length:.2f} s")


@contextmanager
def small_disk(folder, size="400k"):
    """Mount a file system of a few kilobytes on a folder while the context lasts; skip where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
