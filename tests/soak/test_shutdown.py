"""How a driver ends, and how its socket is handed on.

- A SIGTERM while volumes are created and mounted is answered by exit code 0 within the grace; what was answered OK is
  there after the restart, nothing half-done is left, and the same calls are OK.
- What does not end within the grace (an mkfs that hangs) is abandoned: the driver exits all the same.
- A stale socket is replaced, a live one is refused in one sentence, and nobody but the owner may connect.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DIRECTORY, MIB, Code, Driver, Failure, PoolPlace, Workload, capability, create_request
from tests.soak.observing import assert_nothing_remains, held_create
from tests.waiting import until

GRACE_SECONDS = 3
# Beyond the grace: the interpreter's own end, on a busy machine.
MARGIN_SECONDS = 4.0

KINDS: tuple[dict[str, Any], ...] = (
    {"size_bytes": 8 * MIB},
    {"size_bytes": 4 * MIB, "block": True},
    {"parameters": DIRECTORY},
    {"size_bytes": 8 * MIB, "parameters": {"provisioning": "thick"}},
)


def terminated(driver: Driver) -> tuple[int, float]:
    """The exit code after a SIGTERM, and the seconds that it took."""
    assert driver.process is not None
    began = time.monotonic()
    driver.process.send_signal(signal.SIGTERM)
    code = driver.process.wait(60)
    driver.disconnect()
    return code, time.monotonic() - began


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
def test_a_sigterm_while_volumes_are_made_and_mounted_leaves_nothing_half_done(
    make_driver: Callable[..., Driver], tmp_path: Path, delay: float
) -> None:
    driver = make_driver(tmp_path / "pool", arguments=(f"--shutdown-seconds={GRACE_SECONDS}",))
    workloads = [Workload(driver, f"volume-{number}", **KINDS[number % len(KINDS)]) for number in range(24)]
    created: dict[str, str] = {}
    codes: set[Code] = set()

    def live(workload: Workload) -> None:
        try:
            created[workload.name] = workload.create()
            workload.stage()
            workload.publish()
        except Failure as failure:
            codes.add(failure.code)

    caller = driver.caller
    threads = [threading.Thread(target=live, args=(workload,)) for workload in workloads]
    for thread in threads:
        thread.start()
    threading.Event().wait(delay)
    assert driver.process is not None
    began = time.monotonic()
    driver.process.send_signal(signal.SIGTERM)
    exit_code = driver.process.wait(60)
    seconds = time.monotonic() - began
    for thread in threads:
        thread.join(60)
    caller.close()
    driver.disconnect()
    print(f"after {delay} s: exit {exit_code} in {seconds:.2f} s, {len(created)} created, refused with {codes}")
    assert exit_code == 0
    assert seconds < GRACE_SECONDS + MARGIN_SECONDS
    assert codes <= {Code.UNAVAILABLE, Code.CANCELLED}
    assert not driver.socket_path.exists()

    driver.start()
    listed = {entry.volume.volume_id for entry in driver.call("ListVolumes").entries}
    assert set(created.values()) <= listed
    until(lambda: not [path for path in driver.files() if path.startswith(("tmp/", "trash/"))], what="swept")
    for workload in workloads:
        workload.up()
        if workload.name in created:
            assert workload.volume_id == created[workload.name]
        workload.down()
    assert_nothing_remains(driver)


def test_what_does_not_end_within_the_grace_is_abandoned(make_driver: Callable[..., Driver], tmp_path: Path) -> None:
    driver = make_driver(tmp_path / "pool", arguments=(f"--shutdown-seconds={GRACE_SECONDS}",))
    names: list[str] = []

    def request(attempt: int) -> object:
        names.append(f"hangs-{attempt}")
        return create_request(names[-1], 128 * MIB, volume_capabilities=[capability(fs_type="btrfs")])

    with held_create(driver, request) as held:
        code, seconds = terminated(driver)
        held.release()
        held.caller.join(60)
    print(f"exit {code} in {seconds:.2f} s beside an mkfs that hangs")
    assert code == 0
    assert seconds < GRACE_SECONDS + MARGIN_SECONDS
    assert held.outcome[0] in {Code.UNAVAILABLE, Code.CANCELLED}
    driver.start()
    until(lambda: not [path for path in driver.files() if path.startswith("tmp/")], what="swept")
    again = Workload(driver, names[-1], fs_type="btrfs", size_bytes=128 * MIB)
    again.up()
    again.down()
    for entry in driver.call("ListVolumes").entries:
        driver.call("DeleteVolume", volume_id=entry.volume.volume_id)
    assert_nothing_remains(driver)


def test_an_idle_driver_ends_at_once(driver: Driver) -> None:
    Workload(driver, "any", parameters=DIRECTORY).create()
    code, seconds = terminated(driver)
    print(f"idle: exit {code} in {seconds:.2f} s")
    assert code == 0
    assert seconds < 2.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_polite_signals_end_it_with_exit_code_0_and_remove_the_socket(driver: Driver, number: int) -> None:
    assert driver.process is not None
    driver.process.send_signal(number)
    assert driver.wait_dead() == 0
    assert not driver.socket_path.exists()
    assert "Traceback" not in driver.log()


def test_mounted_volumes_outlive_the_driver(driver: Driver) -> None:
    workload = Workload(driver, "kept", size_bytes=8 * MIB)
    target = workload.up()
    Path(target, "note").write_text("here")
    mounts = driver.mounts()
    assert driver.stop() == 0
    assert driver.mounts() == mounts
    assert Path(target, "note").read_text() == "here"
    driver.start()
    workload.down()
    assert_nothing_remains(driver)


def test_a_stale_socket_is_replaced(driver: Driver) -> None:
    driver.kill()
    assert stat.S_ISSOCK(driver.socket_path.stat().st_mode), "SIGKILL removed the socket: nothing is stale"
    driver.start()
    driver.call("Probe")


def test_the_socket_is_its_owners_alone(driver: Driver) -> None:
    assert stat.S_IMODE(driver.socket_path.stat().st_mode) == 0o600


def test_a_live_socket_is_refused_in_one_sentence_and_keeps_answering(driver: Driver, tmp_path: Path) -> None:
    other = Driver(tmp_path / "other", [PoolPlace(tmp_path / "other-pool")])
    command = [argument for argument in other.command() if not argument.startswith("--endpoint")]
    done = subprocess.run(
        [*command, f"--endpoint={driver.endpoint}"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert str(driver.socket_path) in lines[0]
    driver.call("Probe")
    assert driver.socket_path.exists()


def test_a_live_socket_of_somebody_else_is_refused_too(tmp_path: Path) -> None:
    home = tmp_path / "driver"
    home.mkdir()
    stranger = Driver(home, [PoolPlace(tmp_path / "pool")])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stranger.socket_path))
        listener.listen(1)
        done = subprocess.run(stranger.command(), check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert os.path.lexists(stranger.socket_path)
