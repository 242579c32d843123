"""A search engine in three functions: index a directory, search it, forget it.

    bin/exesys submit index_directory '{"path": "docs", "glob": "**/*.md"}'
    bin/exesys submit search '"free software"'

What is counted is kept in Redis, the documents themselves in MongoDB:

    text:<index>:term:<term>   sorted set   document -> how often it has the term
    text:<index>:words         hash         document -> how many words it has
    text:<index>:terms         hash         document -> its digest, then its terms
    text:<index>:total         number       words of all documents together
    text:<index>:lock          lock         one job at a time changes an index
    text_documents             collection   _id, index, root, path, title, text, digest

A document's counts change in one transaction together with the list of its
terms, so they can always be taken out again; and a document is left alone
only while it has the same digest in both places. So indexing may be cut off
at any point: done again, it sets right what was half done.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import exesys
from exesys.context import Context

WORD = re.compile(r"[^\W_]+")
INDEX_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_WORD_CHARS = 64
MAX_FILE_BYTES = 4 << 20
MAX_TITLE_CHARS = 120
SNIPPET_CHARS = 200
LEAD_CHARS = 40
BATCH = 50
LOCK_S = 20.0
LOCK_WAIT_S = 25.0
# Okapi BM25, as in Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009):
# how soon more of the same word stops counting, and how far long documents are held back.
K1 = 1.2
B = 0.75


# --- the three commands ---------------------------------------------------


@exesys.function(timeout_s=600)
def index_directory(data: Any, ctx: Context) -> dict[str, Any]:
    """Index a directory's text files, so that the index holds them as they are now.

    The data is the directory's path, or a map: `path`, `glob` ("*.txt";
    "**/*.txt" goes into subdirectories) and `index` ("default"). Files that
    changed are indexed anew, those that are gone are taken out, and those
    that hold no text are skipped and listed.
    """
    asked = _asked(data, "path", {"glob": "*.txt", "index": "default"})
    root = _directory(asked["path"])
    paths = _matching(root, asked["glob"])
    index = _Index(asked["index"], ctx)
    skipped: list[dict[str, str]] = []
    indexed = kept = 0
    with index.locked() as lock:
        gone = index.documents_of(root)
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            documents = []
            for path in batch:
                lock.reacquire()  # ours for another LOCK_S; raises when it ran out
                try:
                    documents.append(_read(path, root, index.name))
                except _NoText as reason:
                    shown = path.encode(errors="backslashreplace").decode()
                    skipped.append({"path": shown, "reason": str(reason)})
                    ctx.log.warning("skipped %s: %s", shown, reason)
            changed = index.changed(documents)
            index.put(changed)
            indexed += len(changed)
            kept += len(documents) - len(changed)
            gone.difference_update(document.id for document in documents)
            done = start + len(batch)
            ctx.progress(done / len(paths), f"{done} of {len(paths)} files")
            if ctx.cancelled:
                raise RuntimeError(f"cancelled after {done} of {len(paths)} files")
        index.remove(sorted(gone))
        return {
            "index": index.name,
            "path": str(root),
            "documents": index.size(),
            "indexed": indexed,
            "unchanged": kept,
            "removed": len(gone),
            "skipped": skipped,
        }


def search(data: Any, ctx: Context) -> dict[str, Any]:
    """Find the documents that fit a query best.

    The data is the query, or a map: `query`, `limit` (10) and `index`
    ("default"). A document with any of the words is found; rare words, and
    many of them in a short document, put it higher.
    """
    asked = _asked(data, "query", {"limit": 10, "index": "default"})
    terms = sorted(set(_terms(asked["query"])))
    if not terms:
        raise ValueError(f"`query` is {asked['query']!r:.100}, which holds no word to search for.")
    if not 1 <= asked["limit"] <= 100:
        raise ValueError(f"`limit` is {asked['limit']}; give 1 to 100.")
    index = _Index(asked["index"], ctx)
    scores = index.scores(terms)
    best = sorted(scores, key=lambda document: (-scores[document], document))[: asked["limit"]]
    hits = [
        {
            "title": document["title"],
            "path": document["path"],
            "score": round(scores[document["_id"]], 4),
            "snippet": _snippet(document["text"], terms),
        }
        for document in index.fetch(best)
    ]
    return {"query": asked["query"], "index": index.name, "found": len(scores), "hits": hits}


def forget(data: Any, ctx: Context) -> dict[str, Any]:
    """Remove an index with all its documents. The data is its name, or a map with `index`."""
    index = _Index(_asked(data, "index", {})["index"], ctx)
    with index.locked():
        return {"index": index.name, "removed": index.clear()}


# --- the index ------------------------------------------------------------


class _Document(NamedTuple):
    """A file as it was read. `digest` changes with its text and its root."""

    id: str
    root: str
    path: str
    title: str
    text: str
    digest: str


class _Counted(NamedTuple):
    """What Redis holds of a document."""

    digest: str
    terms: list[str]
    words: int


class _Index:
    """One index. Nothing else here names a key or the collection."""

    def __init__(self, name: str, ctx: Context) -> None:
        if not INDEX_NAME.fullmatch(name):
            raise ValueError(f"`index` is {name!r:.80}; use 1 to 64 of the characters A-Z a-z 0-9 _ -")
        self.name = name
        self._redis: Any = ctx.redis
        self._documents = ctx.mongo["text_documents"]

    def _key(self, *parts: str) -> str:
        return ":".join(("text", self.name, *parts))

    @contextmanager
    def locked(self) -> Iterator[Any]:
        """Keep other jobs from changing the index. The lock of a job that was killed runs out."""
        lock = self._redis.lock(self._key("lock"), timeout=LOCK_S, blocking_timeout=LOCK_WAIT_S)
        if not lock.acquire():
            raise RuntimeError(f"another job is changing the index {self.name!r}; try again when it has ended")
        try:
            yield lock
        finally:
            if lock.owned():
                lock.release()

    def size(self) -> int:
        """Return how many documents the index has."""
        return int(self._redis.hlen(self._key("words")))

    def documents_of(self, root: Path) -> set[str]:
        """Return the documents of a directory, and those counted whose text was lost."""
        self._documents.create_index("index")
        stored = {item["_id"]: item["root"] for item in self._documents.find({"index": self.name}, {"root": 1})}
        counted = {document.decode() for document in self._redis.hkeys(self._key("words"))}
        return {document for document in stored if stored[document] == str(root)} | (counted - stored.keys())

    def changed(self, documents: Sequence[_Document]) -> list[_Document]:
        """Return those that are not in both places as they are now."""
        ids = [document.id for document in documents]
        counted = self._counted(ids)
        found = self._documents.find({"_id": {"$in": ids}}, {"digest": 1})
        stored = {item["_id"]: item["digest"] for item in found}
        return [
            document
            for document in documents
            if not (
                document.id in counted and counted[document.id].digest == stored.get(document.id) == document.digest
            )
        ]

    def put(self, documents: Sequence[_Document]) -> None:
        """Add documents, or put them in the place of their older selves."""
        counted = self._counted([document.id for document in documents])
        pipe = self._redis.pipeline(transaction=True)
        for document in documents:
            if document.id in counted:
                self._take_out(pipe, document.id, counted[document.id])
            counts = Counter(_terms(document.text))
            for term, count in counts.items():
                pipe.zadd(self._key("term", term), {document.id: count})
            pipe.hset(self._key("terms"), document.id, " ".join([document.digest, *counts]))
            pipe.hset(self._key("words"), document.id, counts.total())
            pipe.incrby(self._key("total"), counts.total())
        pipe.execute()
        for document in documents:
            stored = {"index": self.name, **document._asdict()}
            del stored["id"]
            self._documents.replace_one({"_id": document.id}, stored, upsert=True)

    def remove(self, ids: Sequence[str]) -> None:
        """Take documents out."""
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            pipe = self._redis.pipeline(transaction=True)
            for document, counted in self._counted(batch).items():
                self._take_out(pipe, document, counted)
            pipe.execute()
            self._documents.delete_many({"_id": {"$in": batch}})

    def clear(self) -> int:
        """Remove the whole index. Returns how many documents it had."""
        ids = sorted(document.decode() for document in self._redis.hkeys(self._key("words")))
        self.remove(ids)
        self._redis.unlink(self._key("total"))
        self._documents.delete_many({"index": self.name})
        return len(ids)

    def scores(self, terms: Sequence[str]) -> dict[str, float]:
        """Return the score of each document that has any of the terms."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.hlen(self._key("words"))
        pipe.get(self._key("total"))
        for term in terms:
            pipe.zrange(self._key("term", term), 0, -1, withscores=True)
        size, total, *postings = pipe.execute()
        found = sorted({document for posting in postings for document, _ in posting})
        if not found:
            return {}
        words = dict(zip(found, self._redis.hmget(self._key("words"), found), strict=True))
        mean = int(total or 0) / size if size else 1.0
        scores: defaultdict[str, float] = defaultdict(float)
        for posting in postings:
            rarity = math.log(1 + (size - len(posting) + 0.5) / (len(posting) + 0.5)) if posting else 0.0
            for document, count in posting:
                length = int(words[document] or 0) / mean
                scores[document.decode()] += rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * length))
        return scores

    def fetch(self, ids: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return documents with their text, in the order of their ids."""
        found = {item["_id"]: item for item in self._documents.find({"_id": {"$in": list(ids)}})}
        return [found[document] for document in ids if document in found]

    def _counted(self, ids: Sequence[str]) -> dict[str, _Counted]:
        if not ids:
            return {}
        lines = self._redis.hmget(self._key("terms"), ids)
        words = self._redis.hmget(self._key("words"), ids)
        counted = {}
        for document, line, count in zip(ids, lines, words, strict=True):
            if line is not None:
                digest, *terms = line.decode().split(" ")
                counted[document] = _Counted(digest, terms, int(count))
        return counted

    def _take_out(self, pipe: Any, document: str, counted: _Counted) -> None:
        for term in counted.terms:
            pipe.zrem(self._key("term", term), document)
        pipe.hdel(self._key("terms"), document)
        pipe.hdel(self._key("words"), document)
        pipe.decrby(self._key("total"), counted.words)


# --- words and files ------------------------------------------------------


class _NoText(Exception):
    """Why a file is not indexed."""


def _terms(text: str) -> Iterator[str]:
    for word in WORD.findall(unicodedata.normalize("NFC", text)):
        if len(word) <= MAX_WORD_CHARS:
            yield word.casefold()


def _read(path: str, root: Path, index: str) -> _Document:
    """Read a file. Raises _NoText."""
    try:
        name = path.encode()
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _NoText("it is no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise _NoText(f"it has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        content = Path(path).read_bytes()
        if b"\0" in content:
            raise _NoText("it is binary")
        text = unicodedata.normalize("NFC", content.decode("utf-8-sig"))
    except UnicodeError:
        raise _NoText("its name or its text is not UTF-8") from None
    except OSError as error:
        raise _NoText(error.strerror or str(error)) from None
    lines = (line.strip(" \t#=*-") for line in text.splitlines())
    title = next((line for line in lines if WORD.search(line)), "") or Path(path).name
    return _Document(
        hashlib.blake2b(index.encode() + b"\0" + name, digest_size=8).hexdigest(),
        str(root),
        path,
        title[:MAX_TITLE_CHARS],
        text,
        hashlib.blake2b(str(root).encode() + b"\0" + content, digest_size=16).hexdigest(),
    )


def _snippet(text: str, terms: Iterable[str]) -> str:
    """Cut out the part of a text that holds most of the terms."""
    wanted = set(terms)
    hits = [(match.start(), term) for match in WORD.finditer(text) if (term := match[0].casefold()) in wanted]
    if not hits:
        return ""
    reach = SNIPPET_CHARS - LEAD_CHARS - MAX_WORD_CHARS
    variety = [len({term for at, term in hits[i : i + reach] if at < here + reach}) for i, (here, _) in enumerate(hits)]
    hit, term = hits[variety.index(max(variety))]
    start = max(hit - LEAD_CHARS, 0)
    end = start + SNIPPET_CHARS
    # Begin and end between words.
    space = re.search(r"\s", text[start:hit]) if start else None
    start += space.end() if space else 0
    if end < len(text):
        end = max(text.rfind(" ", hit, end), text.rfind("\n", hit, end), hit + len(term))
    piece = " ".join(text[start:end].split())
    return f"{'… ' if start else ''}{piece}{' …' if end < len(text) else ''}"


# --- what was asked -------------------------------------------------------


def _asked(data: Any, main: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read a command's data: the main value alone, or a map. Raises ValueError."""
    given = data if isinstance(data, dict) else {main: data}
    for key in given:
        if key != main and key not in defaults:
            raise ValueError(f"the key {key!r:.60} is unknown; known are {', '.join([main, *defaults])}.")
    asked = {main: None, **defaults, **given}
    for key, value in asked.items():
        kind = type(defaults.get(key, ""))
        if type(value) is not kind:
            wanted = "a whole number" if kind is int else "text"
            raise ValueError(f"`{key}` must be {wanted}, not {value!r:.60}.")
    return asked


def _directory(path: str) -> Path:
    if not os.path.isdir(path):
        raise ValueError(f"`path` is {path!r:.200}, which is no directory here.")
    return Path(os.path.realpath(path))


def _matching(root: Path, pattern: str) -> list[str]:
    """Return the files a pattern matches, each once."""
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError(f"`glob` is {pattern!r:.100}; give a pattern within the directory, such as **/*.txt")
    try:
        return sorted({os.path.realpath(path) for path in root.glob(pattern) if not os.path.isdir(path)})
    except ValueError as error:
        raise ValueError(f"`glob` is {pattern!r:.100}, which is no pattern: {error}.") from None
