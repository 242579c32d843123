"""A search engine: index a directory, search it, forget it; and the same indexing as a workflow.

    bin/exesys submit index_directory '{"path": "docs", "glob": "**/*.md"}'
    bin/exesys submit search '"free software"'

As a workflow its files are read in parallel. Three steps are sent, and `split`
adds one more for each part of the directory; where `split` goes, they go:

    split ───► split.1, split.2, … ───► merge ───► report

What is counted is kept in Redis, the documents themselves in MongoDB:

    text:<index>:term:<term>   sorted set   document -> how often it has the term
    text:<index>:words         hash         document -> how many words it has
    text:<index>:of:<document> text         its digest, how many words it has, its terms
    text:<index>:total         number       words of all documents together
    text:<index>:terms         sorted set   term -> how many documents have it
    text:<index>:changed       text         another one after each change
    text:indexes               set          the indexes there are
    text_documents             collection   _id, index, root, path, title, text, digest

A document's counts change in one transaction together with the list of its
terms, which is watched: so jobs may write to an index side by side, and what
one has put in, any can take out. A document is left alone only while it has
the same digest in both places: so indexing may be cut off at any point; done
again, it sets right what was half done.

The application server `words` (`word_dict.py`), where there is one, reads the
last three and knows words that are spelt almost alike: `search` then says what
may have been meant by a word that no document has.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import unicodedata
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
DICTIONARY = "words"  # [appserver:words]
DICTIONARY_S = 0.5  # it is a help, not worth a longer wait
# Okapi BM25, as in Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009):
# how soon more of the same word stops counting, and how far long documents are held back.
K1 = 1.2
B = 0.75


# --- the commands -----------------------------------------------------------


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
    return _finished(index, root, asked["glob"], [_put(index, root, paths, ctx)], ctx)


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
    scores, missing = index.scores(terms)
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
    found = {"query": asked["query"], "index": index.name, "found": len(scores), "hits": hits}
    meant = _meant(missing, index.name, ctx)
    return {**found, "did_you_mean": meant} if meant else found


def forget(data: Any, ctx: Context) -> dict[str, Any]:
    """Remove an index with all its documents. The data is its name, or a map with `index`."""
    index = _Index(_asked(data, "index", {})["index"], ctx)
    removed = index.clear()
    _tell_dictionary(index.name, ctx)
    return {"index": index.name, "removed": removed}


# --- the workflow ---------------------------------------------------------


def split_directory(data: Any, ctx: Context) -> dict[str, Any]:
    """Add a step `index_files` for each part of a directory.

    The data is that of `index_directory`; `files` (50) is how many a part has.
    The parts go where this step goes: to a step with `merge_index`.
    """
    asked = _asked(data, "path", {"glob": "*.txt", "index": "default", "files": BATCH})
    if asked["files"] < 1:
        raise ValueError(f"`files` is {asked['files']}; give 1 or more.")
    root = _directory(asked["path"])
    part = {"path": str(root), "index": _Index(asked["index"], ctx).name}
    paths = [os.fsencode(path) for path in _matching(root, asked["glob"])]  # a name may be no UTF-8
    for start in range(0, max(len(paths), 1), asked["files"]):  # one at least: so `merge` always gets a map
        ctx.add_step("index_files", {**part, "files": paths[start : start + asked["files"]]}, retries=2)
    return {**part, "glob": asked["glob"]}


@exesys.function(timeout_s=600)
def index_files(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Index some `files` of the directory `path`. Done again, it sets right what was half done."""
    asked = _asked(data, "path", {"index": "default", "files": []})
    paths = [os.fsdecode(path) for path in asked["files"]]
    return _put(_Index(asked["index"], ctx), Path(asked["path"]), paths, ctx)


def merge_index(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Add up what the parts did, and take out what is gone. Gets what each step gave, by their names."""
    [split] = [told for told in data.values() if "glob" in told]
    parts = [told for told in data.values() if "glob" not in told]
    index = _Index(split["index"], ctx)
    return {**_finished(index, Path(split["path"]), split["glob"], parts, ctx), "parts": len(parts)}


def report_index(data: dict[str, Any]) -> str:
    """Say in a few lines what was done."""
    lines = [
        f"{data['path']}: {data['indexed']} indexed, {data['unchanged']} unchanged, {data['removed']} removed",
        f"The index {data['index']} has {data['documents']} documents.",
        *(f"skipped {each['path']}: {each['reason']}" for each in data["skipped"]),
    ]
    return "\n".join(lines)


def _put(index: _Index, root: Path, paths: Sequence[str], ctx: Context) -> dict[str, Any]:
    """Bring the index up to date with these files, BATCH at a time; tell what was done."""
    skipped: list[dict[str, str]] = []
    indexed = kept = 0
    for start in range(0, len(paths), BATCH):
        documents = []
        for path in paths[start : start + BATCH]:
            try:
                documents.append(_read(path, root, index.name))
            except _NoText as reason:
                shown = path.encode(errors="backslashreplace").decode()
                skipped.append({"path": shown, "reason": str(reason)})
                ctx.log.warning("skipped %s: %s", shown, reason)
        changed = index.changed(documents)
        for document in changed:
            index.put(document)
        indexed += len(changed)
        kept += len(documents) - len(changed)
        done = min(start + BATCH, len(paths))
        ctx.progress(done / len(paths), f"{done} of {len(paths)} files")
        if ctx.cancelled:
            raise RuntimeError(f"cancelled after {done} of {len(paths)} files")
    if indexed:
        _tell_dictionary(index.name, ctx)
    return {"indexed": indexed, "unchanged": kept, "skipped": skipped}


def _finished(
    index: _Index, root: Path, pattern: str, parts: Sequence[Mapping[str, Any]], ctx: Context
) -> dict[str, Any]:
    """Take out what is no longer there, or no longer text, and tell what was done in all."""
    skipped = [each for part in parts for each in part["skipped"]]
    no_text = {_id(each["path"], index.name) for each in skipped}
    known = index.documents_of(root)  # before what is there: so nothing is taken out that comes meanwhile
    gone = known - ({_id(path, index.name) for path in _matching(root, pattern)} - no_text)
    index.remove(sorted(gone))
    if gone:
        _tell_dictionary(index.name, ctx)
    return {
        "index": index.name,
        "path": str(root),
        "documents": index.size(),
        "indexed": sum(part["indexed"] for part in parts),
        "unchanged": sum(part["unchanged"] for part in parts),
        "removed": len(gone),
        "skipped": skipped,
    }


# --- the dictionary -------------------------------------------------------


def _meant(words: Sequence[str], index: str, ctx: Context) -> dict[str, list[str]]:
    """Return what may have been meant by words that no document has, as far as the dictionary is there."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(exesys.ExesysError):
        for word in words:
            found[word] = ctx.app(DICTIONARY, timeout_s=DICTIONARY_S, wait=False).suggest(word, index)
    return {word: near for word, near in found.items() if near}


def _tell_dictionary(index: str, ctx: Context) -> None:
    """Have the dictionary read what has changed. If it is away, it finds out by itself."""
    with contextlib.suppress(exesys.ExesysError):
        ctx.app(DICTIONARY, timeout_s=DICTIONARY_S, wait=False).refresh(index)


# --- the index ------------------------------------------------------------


class _Document(NamedTuple):
    """A file as it was read. `digest` changes with its text and its root."""

    id: str
    root: str
    path: str
    title: str
    text: str
    digest: str


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

    def size(self) -> int:
        """Return how many documents the index has."""
        return int(self._redis.hlen(self._key("words")))

    def documents_of(self, root: Path) -> set[str]:
        """Return the documents of a directory, and those counted whose text was lost."""
        self._documents.create_index("index")
        # In this order: what a job puts in meanwhile is stored before it is counted.
        counted = {document.decode() for document in self._redis.hkeys(self._key("words"))}
        stored = {item["_id"]: item["root"] for item in self._documents.find({"index": self.name}, {"root": 1})}
        return {document for document in stored if stored[document] == str(root)} | (counted - stored.keys())

    def changed(self, documents: Sequence[_Document]) -> list[_Document]:
        """Return those that are not in both places as they are now."""
        ids = [document.id for document in documents]
        found = self._documents.find({"_id": {"$in": ids}}, {"digest": 1})
        stored = {item["_id"]: item["digest"] for item in found}
        counted = self._digests(ids)
        return [
            document
            for document, digest in zip(documents, counted, strict=True)
            if not digest == stored.get(document.id) == document.digest
        ]

    def put(self, document: _Document) -> None:
        """Add a document, or put it in the place of its older self."""
        stored = {"index": self.name, **document._asdict()}
        del stored["id"]
        self._documents.replace_one({"_id": document.id}, stored, upsert=True)
        counts = Counter(_terms(document.text))
        words = counts.total()

        def write(pipe: Any) -> None:
            self._take_out(pipe, document.id)
            for term, count in counts.items():
                pipe.zadd(self._key("term", term), {document.id: count})
                pipe.zincrby(self._key("terms"), 1, term)
            pipe.sadd("text:indexes", self.name)
            self._mark(pipe)
            pipe.set(self._key("of", document.id), " ".join([document.digest, str(words), *counts]))
            pipe.hset(self._key("words"), document.id, words)
            pipe.incrby(self._key("total"), words)

        self._redis.transaction(write, self._key("of", document.id))

    def remove(self, ids: Sequence[str]) -> None:
        """Take documents out."""
        for document in ids:
            self._redis.transaction(lambda pipe, out=document: self._take_out(pipe, out), self._key("of", document))
        for start in range(0, len(ids), BATCH):
            self._documents.delete_many({"_id": {"$in": ids[start : start + BATCH]}})

    def clear(self) -> int:
        """Remove the whole index. Returns how many documents it had."""
        ids = sorted(document.decode() for document in self._redis.hkeys(self._key("words")))
        self.remove(ids)
        self._documents.delete_many({"index": self.name})
        total = self._key("total")

        def tidy(pipe: Any) -> None:
            rest = int(pipe.get(total) or 0)  # of what others put in meanwhile
            pipe.multi()
            if not rest:
                pipe.delete(total, self._key("changed"))
                pipe.srem("text:indexes", self.name)

        self._redis.transaction(tidy, total)
        return len(ids)

    def scores(self, terms: Sequence[str]) -> tuple[dict[str, float], list[str]]:
        """Return the score of each document that has any of the terms, and the terms that none has."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.hlen(self._key("words"))
        pipe.get(self._key("total"))
        for term in terms:
            pipe.zrange(self._key("term", term), 0, -1, withscores=True)
        size, total, *postings = pipe.execute()
        missing = [term for term, posting in zip(terms, postings, strict=True) if not posting]
        found = sorted({document for posting in postings for document, _ in posting})
        if not found:
            return {}, missing
        words = dict(zip(found, self._redis.hmget(self._key("words"), found), strict=True))
        mean = int(total or 0) / size if size else 1.0
        scores: defaultdict[str, float] = defaultdict(float)
        for posting in postings:
            rarity = math.log(1 + (size - len(posting) + 0.5) / (len(posting) + 0.5)) if posting else 0.0
            for document, count in posting:
                length = int(words[document] or 0) / mean
                scores[document.decode()] += rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * length))
        return scores, missing

    def fetch(self, ids: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return documents with their text, in the order of their ids."""
        found = {item["_id"]: item for item in self._documents.find({"_id": {"$in": list(ids)}})}
        return [found[document] for document in ids if document in found]

    def _digests(self, ids: Sequence[str]) -> list[str | None]:
        """Return what was counted of each document; None of those that were not."""
        lines = self._redis.mget([self._key("of", document) for document in ids]) if ids else []
        return [line and line.decode().partition(" ")[0] for line in lines]

    def _take_out(self, pipe: Any, document: str) -> None:
        """Begin a transaction by taking out what was counted of a document, if anything."""
        line = pipe.get(self._key("of", document))
        pipe.multi()
        if line is not None:
            _, words, *terms = line.decode().split(" ")
            for term in terms:
                pipe.zrem(self._key("term", term), document)
                pipe.zincrby(self._key("terms"), -1, term)
            pipe.zremrangebyscore(self._key("terms"), "-inf", 0)
            pipe.delete(self._key("of", document))
            pipe.hdel(self._key("words"), document)
            pipe.decrby(self._key("total"), int(words))
            self._mark(pipe)

    def _mark(self, pipe: Any) -> None:
        """Say that the index has changed. Not by a number: after a `clear` that would come again."""
        pipe.set(self._key("changed"), uuid.uuid4().hex)


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
        path.encode()  # whether it is UTF-8
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
        _id(path, index),
        str(root),
        path,
        title[:MAX_TITLE_CHARS],
        text,
        hashlib.blake2b(str(root).encode() + b"\0" + content, digest_size=16).hexdigest(),
    )


def _id(path: str, index: str) -> str:
    return hashlib.blake2b(index.encode() + b"\0" + os.fsencode(path), digest_size=8).hexdigest()


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
            wanted = {int: "a whole number", list: "a list"}.get(kind, "text")
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
