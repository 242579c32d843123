"""Functions whose progress a test drives, step by step."""

from __future__ import annotations

from typing import Any

from exesys.context import Context

PATIENCE_S = 60


def act(data: dict[str, Any], ctx: Context) -> str:
    """Go on by one of `parts` for each word that is pushed to the Redis list stage:<run>; say so, and log the word."""
    for part in range(1, data["parts"] + 1):
        told = ctx.redis.blpop([f"stage:{data['run']}"], PATIENCE_S)
        if told is None:
            raise TimeoutError(f"nobody drove {data['run']}")
        word = told[1].decode()
        print(f"part {part}: {word}")
        ctx.progress(part / data["parts"], f"part {part} of {data['parts']}")
    return f"{data['parts']} parts"


def stumble(data: dict[str, Any], ctx: Context) -> str:
    """Fail until the key stage:mended:<run> is there."""
    print(f"attempt {ctx.job.attempt}")
    if not ctx.redis.exists(f"stage:mended:{data['run']}"):
        raise ValueError(f"{data['run']} stumbled")
    return "mended"
