"""What `bin/exesys new-module` writes: examples that work at once, with comments for who changes them."""

from __future__ import annotations

FUNCTION = '''\
"""NAME: say here what your functions are for.

Every public function of this file is a command of the same name; those whose
names begin with _ are yours alone. `bin/exesys reload` loads what you change,
`bin/exesys dev` does it by itself.
"""

import exesys


# Options for all jobs of this function; those of a command win. You may leave the decorator out.
@exesys.function(timeout_s=60, retries=2)
def NAME(data, ctx):
    """Greet each name of a list, and return the greetings."""
    # `data` is what the caller sent: here ["Ada", "Alan"], or one name.
    names = data if isinstance(data, list) else [data]
    greetings = []
    for number, name in enumerate(names, 1):
        # print() and ctx.log go to the job's log: bin/exesys logs --job JOB_ID
        ctx.log.info("greeting %s", name)
        greetings.append(_greeting(name, times=ctx.redis.incr(f"NAME:{name}")))
        # Shown by bin/exesys jobs JOB_ID while it runs.
        ctx.progress(number / len(names), f"{number} of {len(names)}")
    # What is returned is the result: numbers, texts, lists, dicts. What is raised is the job's error.
    return greetings


def _greeting(name, times):
    return f"Hello, {name}!" if times == 1 else f"Hello again, {name}!"
'''

RUNNER = '''\
"""NAME: say here what your runner is for.

A runner is a function that goes on until it is told to stop. It has a process
of its own, and is started again when that dies. docs/runners.md tells more.
"""


def NAME(data, ctx):
    """Count the seconds until it is stopped."""
    # bin/exesys runner logs NAME:UUID shows what it prints and logs.
    ctx.log.info("counting for %s", data)
    # Waits a second at a time; true as soon as it is to stop.
    while not ctx.wait_stop(1.0):
        # It begins anew after a crash: keep in Redis what must not be forgotten.
        ctx.redis.incr(f"NAME:{data}")
    ctx.log.info("stopped at %s", int(ctx.redis.get(f"NAME:{data}") or 0))


def start_NAME(data, ctx):
    """Start one for `data`; the job's result is its name. The same data twice start it once."""
    return ctx.start_runner(NAME, data, type="NAME", uuid=str(data))
'''

APP = '''\
"""NAME: say here what your application server is for.

An application server is an instance of a class in a process of its own. It
holds what is expensive to have at hand. docs/appservers.md tells more.
"""


class CLASS:
    """Its public methods can be called: by functions, programs, and over REST."""

    def __init__(self, ctx):
        # ctx.redis, ctx.mongo and ctx.log are those of a function's context.
        self._ctx = ctx
        self._counts = {}

    def start(self):
        """Prepare what takes long; calls wait until this returns."""
        self._ctx.log.info("NAME is ready")

    def count(self, word, by=1):
        """Count a word, and return how often it came."""
        self._counts[word] = self._counts.get(word, 0) + by
        return self._counts[word]


def NAME(data, ctx):
    """Count each word of a list by the application server; return the counts."""
    server = ctx.app("NAME")
    return {word: server.count(word) for word in data}
'''


def class_of(name: str) -> str:
    """Return the name of the class in NAME's module: `word_count` has `WordCount`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def written(sample: str, name: str) -> str:
    """Return one of the samples above as the module `name`."""
    return sample.replace("CLASS", class_of(name)).replace("NAME", name)
