"""The driver registers itself with kubelet.

- The socket appears when volumes are served, and says who the driver is and where its CSI socket is.
- It is replaced by a start after a crash, comes back when somebody removes it, and goes with an orderly stop.
- What kubelet answers is told in the log, once.
- /healthz fails when the CSI socket is removed, since kubelet could never reach the driver again.
"""

from __future__ import annotations

import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.pb import registration_pb2
from tests.cluster.cluster import free_port
from tests.harness import Driver, PoolPlace
from tests.waiting import until

SERVICE = registration_pb2.DESCRIPTOR.services_by_name["Registration"].full_name


@pytest.fixture
def kubelet() -> Iterator[Path]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="kubelet-") as directory:
        yield Path(directory)


@pytest.fixture
def driver(tmp_path: Path, kubelet: Path) -> Iterator[Driver]:
    arguments = [f"--kubelet-dir={kubelet}"]
    driver = Driver(tmp_path / "driver", [PoolPlace(tmp_path / "pool")], arguments=arguments)
    driver.start()
    yield driver
    driver.stop()


@pytest.fixture
def registration(kubelet: Path) -> Path:
    return kubelet / "plugins_registry/csi.hostvol.dev-reg.sock"


def get_info(path: Path) -> registration_pb2.PluginInfo:
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/GetInfo",
            request_serializer=registration_pb2.InfoRequest.SerializeToString,
            response_deserializer=registration_pb2.PluginInfo.FromString,
        )
        answer: registration_pb2.PluginInfo = call(registration_pb2.InfoRequest(), timeout=5)
        return answer


def notify(path: Path, registered: bool, error: str = "") -> None:
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/NotifyRegistrationStatus",
            request_serializer=registration_pb2.RegistrationStatus.SerializeToString,
            response_deserializer=registration_pb2.RegistrationStatusResponse.FromString,
        )
        call(registration_pb2.RegistrationStatus(plugin_registered=registered, error=error), timeout=5)


def test_the_registration_says_who_the_driver_is(driver: Driver, registration: Path) -> None:
    until(registration.exists)
    info = get_info(registration)
    assert (info.type, info.name, list(info.supported_versions)) == ("CSIPlugin", "csi.hostvol.dev", ["1.0.0"])
    assert info.endpoint == str(driver.socket_path)
    assert driver.call("NodeGetInfo").node_id == driver.node_id
    assert stat.S_IMODE(registration.stat().st_mode) == 0o600
    # kubelet asks all sockets of the directory whose name has no dot in front.
    assert [path.name for path in registration.parent.iterdir()] == [registration.name]


def test_a_start_after_a_crash_replaces_the_socket(driver: Driver, registration: Path) -> None:
    until(registration.exists)
    before = registration.stat().st_ino
    driver.kill()
    assert registration.exists()
    driver.start()
    until(lambda: registration.stat().st_ino != before)
    assert get_info(registration).name == "csi.hostvol.dev"


def test_a_socket_that_is_removed_comes_back(driver: Driver, registration: Path) -> None:
    until(registration.exists)
    registration.unlink()
    until(registration.exists)
    assert get_info(registration).name == "csi.hostvol.dev"


def test_an_orderly_stop_takes_the_socket_away(driver: Driver, registration: Path) -> None:
    until(registration.exists)
    assert driver.stop() == 0
    assert list(registration.parent.iterdir()) == []


def test_what_kubelet_answers_is_told_once(driver: Driver, registration: Path) -> None:
    until(registration.exists)
    for _ in range(3):
        notify(registration, False, "name taken by another driver")
    notify(registration, True)
    log = driver.log()
    assert log.count("driver csi.hostvol.dev is refused: name taken by another driver") == 1
    assert log.count("driver csi.hostvol.dev is registered") == 1


def test_a_relative_directory_of_kubelet_is_refused(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "driver", [PoolPlace(tmp_path / "pool")], arguments=["--kubelet-dir=var/lib/kubelet"])
    driver.start(wait=False)
    assert driver.wait_dead() == 1
    assert "kubelet-dir" in driver.log()


def test_health_fails_when_the_csi_socket_is_removed(tmp_path: Path) -> None:
    port = free_port()
    arguments = [f"--http-address=127.0.0.1:{port}"]
    driver = Driver(tmp_path / "driver", [PoolPlace(tmp_path / "pool")], arguments=arguments)
    driver.start()
    try:
        assert health(port) == 200
        driver.socket_path.unlink()
        assert health(port) == 503
    finally:
        driver.stop()


def health(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
