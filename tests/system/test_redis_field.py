"""Redis as it is in the field, under whole systems: users, TLS, clusters, and one that does not work."""

import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import redises
from harness import CHECKOUT, System, until

from exesys import redischecks
from exesys.errors import BootError
from exesys.troubles import BY_REASON

PASSWORD = "s3cr3t-of-jobs"  # one of a test
OTHER = "s3cr3t-of-functions"
RECOVERY_S = 60


def acl_lines():
    """Return the users that docs/redis.md gives, as the words of a command each."""
    blocks = re.findall(r"```\n(ACL SETUSER .*?)```", (CHECKOUT / "docs" / "redis.md").read_text(), re.DOTALL)
    return [block.split() for block in blocks]


def shown_by(system):
    """Return all that a system shows to others: logs, command lines, and what the command line prints."""
    found = {str(path): path.read_text(errors="replace") for path in (system.home / "log").glob("*")}
    for pid in system.belonging():
        found[f"the command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_text()
    for words in (("status", "--json"), ("status",), ("doctor", "--json"), ("doctor",)):
        said = system.exesys(*words)
        found[" ".join(words)] = said.out + said.err
    return found


# --- who may come in ----------------------------------------------------------------


def test_a_system_over_tls_with_the_users_of_the_docs(field, make, tmp_path, need):
    """With exactly those rights all works: jobs, ctx.redis, workflows, runners, timers, the walk, the doctor."""
    need(shutil.which("openssl"), "openssl")
    made = redises.certificates(tmp_path)
    node = field.node()
    for line, password in zip(acl_lines(), (PASSWORD, OTHER), strict=True):
        with node.client() as admin:
            admin.execute_command(*(word.replace(">PASSWORD", f">{password}") for word in line))
    with node.client() as admin:
        admin.acl_setuser("default", enabled=False)
    with redises.tls_before(node.port, made) as port:
        at = f"127.0.0.1:{port}"
        system = make(
            redis_url=f"rediss://exesys:{PASSWORD}@{at}/0?{made.options}",
            redis_data_url=f"rediss://functions:{OTHER}@{at}/1?{made.options}",
            controller_walk_s=0.2,
            ini='[timer:often]\nevery_s = 0.3\ncmd = counts\ndata = "ticks"\n',
        )
        with system.client() as client:
            assert client.run("counts", "field", timeout=20) == 1
            flow = [{"from": "A", "to": "B", "cmd": "echo", "data": 5}, {"from": "B", "to": "end_job", "cmd": "echo"}]
            told = system.post(flow, wait=20, headers={"Operation": "workflow"})
            assert [step["state"] for step in told.body] == ["data_available"] * 2
            failed = system.post({"cmd": "fail", "data": 1, "job_id": "failing"}, wait=20)
            assert failed.body["state"] == "error"
            assert system.exesys("retry", "failing").code == 0
            until(lambda: system.get("/jobs/failing").body["steps"][0]["state"] == "error", "it failed again")
            assert system.exesys("dead", "purge", "failing").code == 0
            name = client.start_runner("lives.beat", None, type="field", uuid="a")
            until(lambda: system.get("/runners/field/a").body["state"] == "running", "it runs")
            client.stop_runner(name)
            until(lambda: system.get("/runners/field/a").body["state"] == "stopped", "it stops")
            until(lambda: client.run("counts", "ticks", timeout=20) > 2, "the timer ticks")
        for words in (("jobs",), ("queue", "list"), ("timer", "list"), ("functions",), ("runner", "list")):
            said = system.exesys(*words)
            assert said.code == 0, said.err
        checks = {check["name"]: check for check in system.exesys("doctor", "--json").json}
        assert checks["redis"]["state"] == "ok"
        assert checks["redis clock"]["state"] == "ok"
        assert "NOPERM" not in system.logs(1000)
        for where, text in shown_by(system).items():
            assert PASSWORD not in text, where
            assert OTHER not in text, where


def test_what_the_docs_allow_is_what_the_code_asks_for():
    """All that the Lua calls is among the rights, so that no rare path lacks one."""
    lua = "".join(path.read_text() for path in (CHECKOUT / "exesys" / "store").glob("*.lua"))
    called = {name.lower() for name in re.findall(r"call\('([A-Z]+)'", lua)}
    allowed = {word[1:] for word in acl_lines()[0] if word.startswith("+")}
    assert len(called) > 40
    assert called <= allowed, called - allowed


# --- what does not work just now ------------------------------------------------------


@pytest.fixture(scope="module")
def node(field):
    settings = {"unixsocket": str(field.directory / "r.sock"), "requirepass": PASSWORD}
    settings |= {"enable_protected_configs": "yes", "repl_diskless_sync_delay": "0"}
    return field.node(login={"password": PASSWORD}, **settings)


@pytest.fixture(scope="module")
def system(node, field, make_module):
    """A system with a password and over a unix socket."""
    return make_module(redis_url=f"unix://:{PASSWORD}@{field.directory}/r.sock?db=0")


def refused_with(system, reason):
    """Wait until commands are refused with this reason's words; `/readyz` says them too."""
    trouble = BY_REASON[reason]

    def told():
        answer = system.post({"cmd": "echo", "data": 1})
        return answer if answer.status == 503 and trouble.why in answer.error["message"] else None

    answer = until(told, f"commands are refused: {trouble.why}", within_s=20)
    assert answer.error["fix"] == trouble.fix
    assert answer.error["code"] == "unavailable"
    assert "retry-after" in answer.headers
    ready = system.get("/readyz")
    assert ready.status == 503
    assert trouble.why.rstrip(".").lower() in ready.error["message"].lower()
    assert system.get("/healthz").status == 200


def goes_on(system, handles, before):
    values = [handle.result(RECOVERY_S)["value"] for handle in handles]
    assert values == [2 * number for number in range(len(handles))]
    until(lambda: system.get("/readyz").status == 200, "ready again", within_s=20)
    assert system.post({"cmd": "counts", "data": "after"}, wait=20).status == 200
    assert system.pids() == before, "all went on without a restart"


def full(node, client):
    client.config_set("maxmemory", "1mb")
    return lambda: client.config_set("maxmemory", "0")


def replica(node, client):
    client.replicaof("127.0.0.1", str(redises.free_port()))
    return lambda: client.replicaof("NO", "ONE")


def orphaned(node, client):
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", str(redises.free_port()))

    def mend():
        client.replicaof("NO", "ONE")
        client.config_set("replica-serve-stale-data", "yes")

    return mend


def lonely(node, client):
    client.config_set("min-replicas-to-write", "1")
    return lambda: client.config_set("min-replicas-to-write", "0")


def without_a_disk(node, client):
    gone = node.directory / "gone"
    gone.mkdir()
    client.config_set("dir", str(gone))
    gone.rmdir()
    client.config_set("save", "3600 1")
    client.bgsave()

    def mend():
        client.config_set("dir", str(node.directory))
        client.config_set("save", "")

    return mend


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (full, "store_full"),
        (replica, "store_readonly"),
        (orphaned, "store_readonly"),
        (lonely, "store_noreplicas"),
        (without_a_disk, "store_disk"),
    ],
)
def test_redis_refuses_to_write(system, node, spoil, reason):
    before = system.pids()
    marks = str(system.root / spoil.__name__)
    with system.client() as client, node.client(password=PASSWORD) as admin:
        data = [{"runs": marks, "number": number, "seconds": 0.001} for number in range(300)]
        handles = client.submit_many("marked", data)
        until(lambda: any(handle.done() for handle in handles), "some ended", every_s=0.001)
        mend = spoil(node, admin)
        try:
            refused_with(system, reason)
            if spoil is orphaned:  # then reading is refused, too
                jobs = system.get("/jobs")
                assert jobs.status == 503
                assert "lost its master" in jobs.error["message"]
        finally:
            mend()
        goes_on(system, handles, before)
    runs = Counter(tuple(line.split()[:2]) for line in Path(marks).read_text().splitlines())
    assert set(runs.values()) == {1}, "an attempt ran twice"


def test_redis_reads_a_large_file(system, node):
    """It was killed, and takes its time to come back."""
    before = system.pids()
    with node.client(password=PASSWORD, db=3) as admin:
        pipeline = admin.pipeline(transaction=False)
        for number in range(24_000):
            pipeline.set(f"ballast:{number}", "x")
        pipeline.execute()
    marks = str(system.root / "loading")
    with system.client() as client:
        data = [{"runs": marks, "number": number, "seconds": 0.001} for number in range(300)]
        handles = client.submit_many("marked", data)
        until(lambda: any(handle.done() for handle in handles), "some ended", every_s=0.001)
        node.kill()
        conf = node.conf.read_text()
        node.conf.write_text(f"{conf}key-load-delay 100\n")
        try:
            node.start(password=PASSWORD)
            refused_with(system, "store_loading")
        finally:
            node.conf.write_text(conf)
        goes_on(system, handles, before)


def test_a_wrong_password_is_told_and_not_shown(node, field):
    system = System(redis_url=f"unix://:wr0ng-s3cr3t@{field.directory}/r.sock?db=0")
    try:
        said = system.exesys("up")
        assert said.code != 0
        assert "refuses the user or the password" in said.err or "invalid username-password" in said.err
        assert "wr0ng-s3cr3t" not in said.err + said.out
        assert not (system.home / "run").exists()
    finally:
        system.end()


def test_two_systems_on_one_store(system, node, make):
    """By a slip: the one that began first writes nothing any more, says so, and chases nobody away."""
    before = system.pids()
    other = make(redis_url=system.config.redis_url)
    refused_with(system, "store_taken")
    assert "has begun with this store" in system.log_of("router")
    for number in range(20):
        assert other.post({"cmd": "echo", "data": number}, wait=20).body["result"]["EOJ"] == number
    assert system.pids() == before
    # Started anew, it takes the store back, and the other is the one that writes nothing.
    os.kill(before["router"], signal.SIGKILL)
    until(lambda: system.post({"cmd": "counts", "data": "again"}, wait=20).status == 200, "it has it back")
    refused_with(other, "store_taken")


# --- a cluster --------------------------------------------------------------------------


def test_a_cluster_needs_a_prefix_the_right_node_and_another_place_for_functions(field):
    nodes = [field.node(cluster_enabled="yes") for _ in range(2)]
    clients = [node.client() for node in nodes]
    clients[0].execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8000)  # 633, that of {s07}, among them
    clients[1].execute_command("CLUSTER", "ADDSLOTSRANGE", 8001, 16383)
    clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
    until(lambda: all(each.cluster("INFO")["cluster_state"] == "ok" for each in clients), "they are one cluster")
    plain = field.node()

    def refusal(node, **keys):
        system = System(redis_url=f"redis://127.0.0.1:{node.port}", **keys)
        try:
            with pytest.raises(BootError) as caught:
                redischecks.check_start(system.config)
        finally:
            system.end()
        return str(caught.value)

    assert "Set [redis] prefix to a hash tag" in refusal(nodes[0])
    moved = refusal(nodes[1], redis_prefix="{s07}", redis_data_url=f"redis://127.0.0.1:{plain.port}/1")
    assert f"633 127.0.0.1:{nodes[0].port}" in moved
    assert "the node that owns its slot" in moved
    assert "set [redis] data_url" in refusal(nodes[0], redis_prefix="{s07}")

    keys = {"redis_prefix": "{s07}", "redis_data_url": f"redis://127.0.0.1:{plain.port}/1"}
    with System(redis_url=f"redis://127.0.0.1:{nodes[0].port}", **keys) as system, system.client() as client:
        assert client.run("counts", "there", timeout=20) == 1
        flow = [{"from": "A", "to": "B", "cmd": "echo", "data": 5}, {"from": "B", "to": "end_job", "cmd": "echo"}]
        assert system.post(flow, wait=20, headers={"Operation": "workflow"}).status == 200
        assert all(key.startswith(b"{s07}") for key in clients[0].scan_iter(count=1000))
    for each in clients:
        each.close()
