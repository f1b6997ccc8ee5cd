"""Push is deploy: a tag that a function follows moves, and the URL answers with the new image; whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faas.oci import media_types
from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest, canonical_json
from faas.oci.platform import architecture
from tests.support.commands import run
from tests.support.images import tar_of
from tests.support.leftovers import none_left
from tests.support.server import Answer, RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(180)]

SECONDS = 30.0


def answering(words: str, before: str = "") -> str:
    return f"{before}\ndef handler(event, context):\n    return {{'statusCode': 200, 'body': '{words}'}}\n"


class Repository:
    """One repository of a server, as a client of its registry sees it."""

    def __init__(self, server: RunningServer, name: str) -> None:
        self.server = server
        self.name = name

    def _with(self, work: Callable[[RegistryClient], Any]) -> Any:
        async def call() -> Any:
            async with RegistryClient(self.server.registry, "admin", self.server.token) as client:
                return await work(client)

        return asyncio.run(call())

    def manifest(self, reference: str) -> Manifest:
        return self._with(lambda client: client.get_manifest(self.name, reference))  # type: ignore[no-any-return]

    def tag(self, tag: str, manifest: Manifest) -> float:
        """The moment of the 201."""
        self._with(lambda client: client.put_manifest(self.name, tag, manifest))
        return time.monotonic()

    def image(self, layer: bytes, **config: Any) -> Manifest:
        """Upload an image of one layer, without a tag."""
        values = {"architecture": architecture(), "diff_ids": (Digest.of(layer),), **config}

        async def work(client: RegistryClient) -> Manifest:
            descriptors = []
            for kind, data in (
                (media_types.OCI_CONFIG, ImageConfig(**values).to_json()),
                (media_types.OCI_LAYER, layer),
            ):
                await client.upload_blob(self.name, data, Digest.of(data))
                descriptors.append(Descriptor(kind, Digest.of(data), len(data)))
            manifest = Manifest.image(descriptors[0], descriptors[1:])
            await client.put_manifest(self.name, str(manifest.digest), manifest)
            return manifest

        return self._with(work)  # type: ignore[no-any-return]


def index_of(**machines: Manifest) -> Manifest:
    """An index with one image for each machine."""
    rows = [
        {**manifest.descriptor().to_json(), "platform": {"os": "linux", "architecture": machine}}
        for machine, manifest in machines.items()
    ]
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": rows}
    return Manifest.parse(canonical_json(value), media_types.OCI_INDEX)


def pushed(server: RunningServer, folder: Path, name: str, code: str, namespace: str = "default") -> Manifest:
    """`faas push --no-deploy` of a function that `push_code` has deployed: the image, under `latest`."""
    (folder / name / "app.py").write_text(code)
    done = server.faas("push", folder / name, "--no-deploy", "--namespace", namespace)
    repository = name if namespace == "default" else f"{namespace}/{name}"
    return Repository(server, repository).manifest(done.stdout.strip().rpartition("@")[2])


def until(look: Callable[[], Any], words: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"{words}: not within {SECONDS:g} s"
        time.sleep(0.02)
    return found


def described(server: RunningServer, name: str) -> dict[str, Any]:
    return dict(server.get(f"/v1/functions/{name}", api=True).json())


def outcome(server: RunningServer, name: str, digest: Digest) -> dict[str, Any]:
    """What became of the push of this digest, once it is known."""

    def look() -> Any:
        follow = described(server, name)["follow"]
        return follow if follow.get("digest") == str(digest) and follow["state"] != "retrying" else None

    return dict(until(look, f"the push of {digest}"))


@contextmanager
def called(server: RunningServer, path: str) -> Iterator[list[tuple[float, Answer]]]:
    """Two callers, one request after the other; (moment, answer) of each."""
    answers: list[tuple[float, Answer]] = []
    enough = threading.Event()

    def call() -> None:
        while not enough.is_set():
            answer = server.get(path)
            answers.append((time.monotonic(), answer))

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        yield answers
    finally:
        enough.set()
        for caller in callers:
            caller.join()


def test_a_push_changes_the_answer_under_load_and_a_rollback_stays_until_the_next(
    server: RunningServer, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "followed", answering("one"), 'follow = "prod"')
    repository = Repository(server, "followed")
    first, second = repository.manifest("latest"), pushed(server, tmp_path, "followed", answering("two"))
    with called(server, "/function/followed") as answers:
        until(lambda: len(answers) > 1, "an answer")
        moment = repository.tag("prod", second)
        until(lambda: answers[-1][1].text == "two", "the new answer")
        time.sleep(0.3)
    assert {answer.status for _, answer in answers} == {200}
    texts = [answer.text for _, answer in sorted(answers, key=lambda pair: pair[0])]
    changed = next(at for at, answer in answers if answer.text == "two")
    print(f"{changed - moment:.2f} s from the manifest's 201 to the first new answer")
    assert set(texts[: texts.index("two")]) == {"one"}
    follow = described(server, "followed")["follow"]
    assert (follow["tag"], follow["state"], follow["digest"]) == ("prod", "deployed", str(second.digest))
    assert re.search(r"Follows +prod: deployed \w+ ago, sha256:", server.faas("describe", "followed").stdout)

    def rows() -> list[tuple[int, str]]:
        listed = server.get("/v1/functions/followed/revisions", api=True).json()["revisions"]
        return [(row["number"], row["created_by"]) for row in listed]

    assert rows() == [(2, "follow prod"), (1, "admin")]
    repository.tag("prod", second)  # the same digest
    assert server.faas("rollback", "followed").stdout.strip() == "v1"
    repository.tag("prod", second)
    time.sleep(0.5)
    assert (server.get("/function/followed").text, len(rows())) == ("one", 2)
    repository.tag("prod", first)  # what is live already
    assert outcome(server, "followed", first.digest)["state"] == "deployed"
    assert (server.get("/function/followed").text, len(rows())) == ("one", 2)
    repository.tag("prod", second)
    until(lambda: server.get("/function/followed").text == "two", "the next move of the tag")
    assert rows()[0] == (3, "follow prod")


def test_a_plain_push_deploys_once_and_without_a_deploy_the_tag_does(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "newest", answering("one"), 'follow = "latest"')
    server.push_code(tmp_path, "newest", answering("two"), 'follow = "latest"')
    digest = Repository(server, "newest").manifest("latest").digest
    assert outcome(server, "newest", digest)["state"] == "deployed"
    assert described(server, "newest")["revisions"] == 2
    pushed(server, tmp_path, "newest", answering("three"))
    until(lambda: server.get("/function/newest").text == "three", "the pushed image")
    assert described(server, "newest")["revisions"] == 3


@pytest.mark.skopeo
def test_an_index_in_another_namespaces_repository_runs_as_this_machines_image(
    server: RunningServer, tmp_path: Path
) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "app.py").write_text(answering("one"))
    (folder / "faas.toml").write_text(
        'name = "shop"\nruntime = "python"\nhandler = "app.handler"\npublic = true\nfollow = "prod"\n'
    )
    server.faas("push", folder, "--namespace", "team")
    repository = Repository(server, "team/shop")
    first, second = repository.manifest("v1"), pushed(server, tmp_path, "shop", answering("two"), "team")
    index = index_of(s390x=first, **{architecture(): second})
    repository.tag("candidate", index)
    place = f"docker://{server.registry.partition('//')[2]}/team/shop"
    login = ("--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds", f"admin:{server.token}")
    run("skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", *login, "--dest-creds",
        f"admin:{server.token}", f"{place}:candidate", f"{place}:prod")  # fmt: skip
    assert outcome(server, "shop.team", index.digest)["state"] == "deployed"
    assert server.get("/function/shop.team").text == "two"
    assert described(server, "shop.team")["image"] == f"team/shop@{second.digest}"


def test_an_image_that_cannot_run_leaves_live_alone_and_says_why(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "steady", answering("one"), 'follow = "prod"')
    repository = Repository(server, "steady")
    first = repository.manifest("latest")
    program = tar_of({"bin": None, "bin/sh": b"#!nothing"})
    broken = {
        "nowhere_to_be_found": pushed(server, tmp_path, "steady", "import nowhere_to_be_found\n"),
        "entry ?point|no command": repository.image(program),
        "s390x": repository.image(program, architecture="s390x", cmd=("/bin/sh",)),
        "for linux/s390x": index_of(s390x=first),
        r"\.\.|outside": repository.image(tar_of({"../../etc/evil": b"x"}), cmd=("/bin/sh",)),
    }
    for words, manifest in broken.items():
        repository.tag("prod", manifest)
        follow = outcome(server, "steady", manifest.digest)
        assert follow["state"] == "failed"
        assert re.search(words, follow["error"]), follow["error"]
        assert server.get("/function/steady").text == "one"
        assert repository.manifest("prod").raw == manifest.raw
    page = server.faas("describe", "steady").stdout
    assert re.search(r"Follows +prod: failed \w+ ago, sha256:", page)
    assert f"steady: the push of prod ({follow['digest']}) is not deployed: " in server.log_file.read_text()
    assert "No module named 'nowhere_to_be_found'" in server.faas("logs", "steady").stdout
    function = described(server, "steady")
    assert (function["revision"], function["revisions"]) == (1, 1)


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["at once", "while the instance starts"])
def test_a_push_is_deployed_though_kill_9_comes_before_its_deploy(tmp_path: Path, seconds: float) -> None:
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    with none_left(server.id, str(server.data)):
        server.start()
        try:
            server.push_code(tmp_path, "survivor", answering("one"), 'follow = "prod"')
            slow = pushed(server, tmp_path, "survivor", answering("two", "import time; time.sleep(1.5)"))
            Repository(server, "survivor").tag("prod", slow)
            time.sleep(seconds)
            server.kill()
            server.start()
            assert outcome(server, "survivor", slow.digest)["state"] == "deployed"
            assert server.get("/function/survivor").text == "two"
            revisions = server.get("/v1/functions/survivor/revisions", api=True).json()["revisions"]
            assert [row["created_by"] for row in revisions] == ["follow prod", "admin"]
            assert json.loads(server.get("/v1/functions/survivor", api=True).body)["aliases"] == {
                "live": revisions[0]["number"]
            }
        finally:
            server.stop()
