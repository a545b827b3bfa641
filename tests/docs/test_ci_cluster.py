"""What .ci/cluster does where there is a cluster kit, where there is none, and where something fails: the kit here is a script that notes its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tests.sharing import shared

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("policy", "policy-proxy", "reward", "feedback", "trainer", "training")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the kit needs root, so .ci/cluster goes no further")


def ci(kit: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCORD_CI_")}  # of the .ci/run that this is part of
    return subprocess.run(
        [str(ROOT / ".ci" / "cluster"), *words], env={**inherited, "ACCORD_CLUSTER_KIT": str(kit), "ACCORD_CLUSTER_HOME": str(kit.parent), **environment}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def test_ci_begins_what_takes_long_first_and_tests_it_beside_what_measures_no_time() -> None:
    lines = [
        line
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line.startswith(("part make ", "ACCORD_TEST_", ".ci/", "export ", "part wait"))
    ]
    assert lines[:2] == ["export ACCORD_CI_STARTED", ".ci/cluster prepare"]
    assert lines[-4:] == [
        "ACCORD_TEST_TIMEOUT_FACTOR=3 part make test",
        ".ci/cluster test > build/cluster.log 2>&1 &",
        "ACCORD_TEST_SHARE=$ACCORD_CI_SHARE ACCORD_TEST_TIMEOUT_FACTOR=4 part make test-depth",
        'part wait "$cluster" || failed=$?',
    ]


def test_shares_of_the_files_are_all_of_them_each_once() -> None:
    files = [Path(f"test_{number}.py") for number in range(8)]
    shares = [shared(files, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(file for share in shares for file in share) == files
    assert [len(share) for share in shares] == [3, 3, 2]
    assert shared(files, "1/1") == files
    for wrong in ("", "0/3", "4/3", "2", "-1/3", "a/3"):
        with pytest.raises(ValueError, match="it is a number of a share and how many there are"):
            shared(files, wrong)


def make_kit(folder: Path, failing: str) -> tuple[Path, Path]:
    """A kit whose cluster is down, and the file of its calls; the call that contains `failing` fails."""
    kit, calls = folder / "kit", folder / "calls"
    kit.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\ncase "$*" in *status*) exit 1 ;; *"{failing}"*) exit 3 ;; build*) echo "[   1s] built an image" ;; esac\n'
    )
    kit.chmod(0o755)
    return kit, calls


def test_without_a_kit_it_says_so_and_ends_well(tmp_path: Path) -> None:
    for word in ("prepare", "test"):
        done = ci(tmp_path / "none", word)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("CLUSTER TESTS DID NOT RUN: there is no cluster kit at ")


def test_where_they_are_left_out_it_says_so_and_ends_well(tmp_path: Path) -> None:
    kit, calls = make_kit(tmp_path, "nothing")
    for word in ("prepare", "test"):
        done = ci(kit, word, ACCORD_CI_CLUSTER="0")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("CLUSTER TESTS DID NOT RUN: ACCORD_CI_CLUSTER=0 leaves them out")
    assert not calls.exists()


@as_root
@pytest.mark.skipif(not os.access("/proc/self/autogroup", os.W_OK), reason="sessions are no groups of this kernel's scheduler")
def test_what_prepares_in_the_background_takes_what_the_tests_leave_it(tmp_path: Path) -> None:
    kit, _ = make_kit(tmp_path, "nothing")
    preparing = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (tmp_path / "prepare.pid").write_text(f"{preparing.pid}\n")
        own = Path("/proc/self/autogroup").read_text()
        group = Path(f"/proc/{preparing.pid}/autogroup")
        for word, share in (("prepare", "nice 19"), ("test", "nice 0")):
            assert ci(kit, word).returncode == 0
            assert group.read_text().strip().endswith(share)
        assert Path("/proc/self/autogroup").read_text() == own
    finally:
        preparing.kill()
        preparing.wait()


@as_root
def test_with_a_kit_it_builds_tests_and_takes_the_cluster_down(tmp_path: Path) -> None:
    kit, calls = make_kit(tmp_path, "nothing")
    assert ci(kit, "prepare").returncode == 0
    done = ci(kit, "test")
    assert done.returncode == 0, done.stdout + done.stderr
    said = calls.read_text().splitlines()
    assert said[0] == "prepare --background"
    assert [line.split("accord/")[1].split(":")[0] for line in said if line.startswith("build")] == list(IMAGES)
    expected = ["prepare --wait", "up", "exec -- python3 tools/images.py sizes", "exec -- env ACCORD_CLUSTER_REQUIRED=1 make cluster-test", "down"]
    assert [line for line in said if line in expected] == expected


@as_root
@pytest.mark.parametrize(
    ("failing", "code", "says", "goes_down"),
    [
        ("prepare --wait", 0, "CLUSTER TESTS DID NOT RUN: the cluster kit could not prepare itself", False),
        ("up", 0, "CLUSTER TESTS DID NOT RUN: the cluster did not come up", True),
        ("--target trainer", 1, "the images could not be built", True),
        ("images.py sizes", 3, "", True),
        ("make cluster-test", 3, "", True),
    ],
)
def test_what_fails_here_is_told_from_what_cannot_run_here(tmp_path: Path, failing: str, code: int, says: str, goes_down: bool) -> None:
    kit, calls = make_kit(tmp_path, failing)
    done = ci(kit, "test")
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stdout
    assert ("down" in calls.read_text().splitlines()) == goes_down


@as_root
def test_a_kit_that_is_ready_too_late_is_told(tmp_path: Path) -> None:
    kit, calls = make_kit(tmp_path, "nothing")
    done = ci(kit, "test", ACCORD_CI_STARTED=str(int(time.time()) - 3000))
    assert done.returncode == 0
    assert "CLUSTER TESTS DID NOT RUN: the cluster kit was ready 3" in done.stdout
    assert calls.read_text().splitlines() == ["prepare --wait"]


@as_root
@pytest.mark.parametrize(
    ("failing", "code", "last"),
    [
        ("nothing", 0, "down"),
        ("exec -- env ACCORD_CLUSTER_REQUIRED=1 make cluster-test", 3, "down"),  # beside the suites, and told at the end
        ("test-depth", 2, "down"),  # a suite: what goes on beside it is stopped, and the cluster taken down
        ("lint", 2, "prepare --background"),
    ],
)
def test_ci_ends_as_the_worst_of_its_parts_and_leaves_no_cluster(tmp_path: Path, failing: str, code: int, last: str) -> None:
    """.ci/run in a folder of its own, with a `make` that writes down what it is asked for."""
    for name in (".ci/run", ".ci/cluster", "tools/images.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    kit, calls = make_kit(tmp_path, failing)
    made, make = tmp_path / "made", tmp_path / "bin" / "make"
    make.parent.mkdir()
    begun = f"for _ in $(seq 300); do grep -q '^up' {calls} && break; sleep 0.1; done"  # from then on the cluster is taken down
    make.write_text(
        f'#!/bin/sh\necho "$*" >> {made}\nsleep 0.5\ncase "$*" in *test-depth*) {begun} ;; esac\ncase "$*" in *"{failing}"*) exit 2 ;; esac\n'
    )
    make.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCORD_CI_")}
    environment = {**kept, "ACCORD_CLUSTER_KIT": str(kit), "ACCORD_CLUSTER_HOME": str(tmp_path), "PATH": f"{make.parent}:{os.environ['PATH']}"}
    done = subprocess.run([str(tmp_path / ".ci" / "run")], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert calls.read_text().splitlines()[-1] == last
    assert code != 0 or "share 1/3 ran here, the other files DID NOT" in done.stdout
    checks = "-j 2 --output-sync=target lint types protos-check lock-check prompts-check chart-lint"
    everything = ["setup chart-tools", checks, "test", "test-depth"]
    assert made.read_text().splitlines() == everything[: 2 if failing == "lint" else 4]
