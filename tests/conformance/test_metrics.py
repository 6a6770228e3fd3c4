"""The numbers and the health that a driver tells over HTTP.

- /metrics is Prometheus text that its own parser reads: latencies by method and code, per pool the volumes, promised,
  available, grantable bytes and quarantined records, operations in flight.
- They are true: they agree with the calls that were made, with the lists, with GetCapacity and with statvfs.
- /healthz and /readyz are 200 (the test of ten thousand volumes sees 503 before); other paths are 404 with the known
  ones; a scraper that hangs or sends noise holds up nobody.
- Every failure that the driver knows has its code in the one table.
"""

from __future__ import annotations

import errno
import http.client
import inspect
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from csi_driver import errors
from csi_driver.metrics import Figures, Metrics
from csi_driver.rpc import status
from csi_driver.rpc.health import HealthServer
from tests.harness import GIB, MIB, Code, Driver, PoolPlace, create_request


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Driver, int]]:
    """A driver with two pools, and its port."""
    where = tmp_path_factory.mktemp("metrics")
    pools = [PoolPlace(where / "pool"), PoolPlace(where / "second")]
    driver = Driver(where / "driver", pools, names=["default", "second"], arguments=["--http-address=127.0.0.1:0"])
    driver.start()
    found = re.search(r"metrics and health on port (\d+)", driver.log())
    assert found is not None
    yield driver, int(found[1])
    driver.stop()


def get(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> dict[str, Metric]:
    code, content_type, body = get(port, "/metrics")
    assert code == 200
    assert content_type.startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(body)}


def by_pool(families: dict[str, Metric], name: str) -> dict[str, float]:
    return {sample.labels["pool"]: sample.value for sample in families[name].samples}


def finished(families: dict[str, Metric], method: str, code: str) -> float:
    """How many calls have ended so."""
    for sample in families["hostvol_rpc_seconds"].samples:
        if sample.name.endswith("_count") and (sample.labels["method"], sample.labels["code"]) == (method, code):
            return sample.value
    return 0.0


def test_every_family_is_explained_and_typed(told: tuple[Driver, int]) -> None:
    told[0].call("Probe")
    families = scrape(told[1])
    for name, family in families.items():
        assert name.startswith(("hostvol_", "python_", "process_"))
        assert family.documentation
        assert family.type in ("gauge", "histogram", "counter", "info")
    assert families["hostvol_rpc_seconds"].type == "histogram"


def test_calls_are_counted_by_method_and_code(told: tuple[Driver, int]) -> None:
    driver, port = told
    before = scrape(port)
    for _ in range(3):
        driver.call("ListVolumes")
    driver.code("ListVolumes", max_entries=-1)
    driver.code("ControllerGetVolume", volume_id="nobody")
    after = scrape(port)
    for method, code, count in (
        ("ListVolumes", "OK", 3),
        ("ListVolumes", "INVALID_ARGUMENT", 1),
        ("ControllerGetVolume", "NOT_FOUND", 1),
        ("ControllerGetVolume", "OK", 0),
    ):
        assert finished(after, method, code) - finished(before, method, code) == count


def test_buckets_of_a_latency_grow_and_end_with_all(told: tuple[Driver, int]) -> None:
    told[0].call("Probe")
    samples = [
        sample
        for sample in scrape(told[1])["hostvol_rpc_seconds"].samples
        if sample.labels.get("method") == "Probe" and sample.labels["code"] == "OK"
    ]
    buckets = [sample.value for sample in samples if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == next(sample.value for sample in samples if sample.name.endswith("_count"))


def test_figures_of_a_pool_follow_its_volumes(told: tuple[Driver, int]) -> None:
    driver, port = told
    before = scrape(port)
    assert by_pool(before, "hostvol_volumes") == {"default": 0, "second": 0}
    assert by_pool(before, "hostvol_quarantined_records") == {"default": 0, "second": 0}
    created = [
        driver.call("CreateVolume", create_request(f"v{pool}", GIB, parameters={"pool": pool})).volume.volume_id
        for pool in ("default", "second")
    ]
    after = scrape(port)
    assert by_pool(after, "hostvol_volumes") == {"default": 1, "second": 1}
    for pool in ("default", "second"):
        # Both pools are on one filesystem, which promises for both.
        promised = by_pool(after, "hostvol_pool_promised_bytes")[pool]
        assert promised - by_pool(before, "hostvol_pool_promised_bytes")[pool] > 1.9 * GIB
        available = by_pool(after, "hostvol_pool_available_bytes")[pool]
        space = os.statvfs(driver.pool)
        assert abs(available - space.f_bavail * space.f_frsize) < 2 * GIB
        granted = by_pool(after, "hostvol_pool_grantable_bytes")[pool]
        assert abs(granted - driver.call("GetCapacity").available_capacity) < 2 * GIB
        assert granted <= available
    for volume_id in created:
        driver.call("DeleteVolume", volume_id=volume_id)
    assert by_pool(scrape(port), "hostvol_volumes") == {"default": 0, "second": 0}


def test_a_ready_driver_is_healthy_with_nothing_in_flight(told: tuple[Driver, int]) -> None:
    families = scrape(told[1])
    assert families["hostvol_ready"].samples[0].value == 1
    assert families["hostvol_operations_in_flight"].samples[0].value == 0
    assert get(told[1], "/healthz")[0] == get(told[1], "/readyz")[0] == 200
    assert get(told[1], "/readyz?verbose=1")[0] == 200


@pytest.mark.parametrize("path", ["/", "/nothing", "/metrics/../../etc/passwd", "//etc/passwd", "/%2e%2e/etc/passwd"])
def test_other_paths_are_not_there(told: tuple[Driver, int], path: str) -> None:
    code, _, body = get(told[1], path)
    assert (code, "/metrics /healthz /readyz" in body) == (404, True)


def test_nothing_can_be_changed_over_http(told: tuple[Driver, int]) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert get(told[1], "/metrics", method)[0] == 501


def test_noise_and_silence_hold_up_nobody(told: tuple[Driver, int]) -> None:
    silent = [socket.create_connection(("127.0.0.1", told[1])) for _ in range(20)]
    with socket.create_connection(("127.0.0.1", told[1])) as noisy:
        noisy.sendall(b"\x00\xff" * 500 + b"\r\n\r\n")
        noisy.recv(64)
    try:
        assert get(told[1], "/healthz")[0] == 200
        assert told[0].call("Probe").ready.value
    finally:
        for connection in silent:
            connection.close()
    assert "Traceback" not in told[0].log()


@pytest.mark.parametrize("cause", [errors.OperationPending("figures"), OSError(errno.EIO, "Input/output error")])
def test_figures_that_cannot_be_told_are_unavailable_and_health_is_not(cause: Exception) -> None:
    def fail() -> Figures:
        raise cause

    with closing_server(Metrics(fail)) as port:
        code, _, body = get(port, "/metrics")
        assert (code, str(cause) in body) == (503, True)
        assert get(port, "/healthz")[0] == 200


@contextmanager
def closing_server(metrics: Metrics) -> Iterator[int]:
    """The port of a listener in this process."""
    metrics.observe_rpc("Probe", "OK", 0.001)
    health = HealthServer("127.0.0.1:0", metrics, is_ready=lambda: True, is_alive=lambda: True)
    health.start()
    try:
        yield health.port
    finally:
        health.stop()


@pytest.mark.parametrize("address", [":0", "[::]:0", "0.0.0.0:0"])
def test_a_listener_on_every_address_is_reached_by_ipv4(address: str) -> None:
    health = HealthServer(address, Metrics(), is_ready=lambda: True, is_alive=lambda: True)
    health.start()
    try:
        assert get(health.port, "/healthz")[0] == 200
        if address == ":0":
            with socket.create_connection(("::1", health.port), timeout=5):
                pass
    finally:
        health.stop()


# One table of codes

FAILURES = [
    failure
    for _, failure in inspect.getmembers(errors, inspect.isclass)
    if issubclass(failure, errors.HostvolError) and failure not in (errors.HostvolError, errors.CallFailed)
]
# Spec: the codes of the error tables of this driver's RPCs, and of the general one; CANCELLED: nobody hears it.
CODES = {
    *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION),
    *(Code.ABORTED, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE),
    *(Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.CANCELLED),
}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_every_failure_has_a_code(failure: type[errors.HostvolError]) -> None:
    assert status.CODES[failure] in CODES


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, Code.RESOURCE_EXHAUSTED),
        (errno.EDQUOT, Code.RESOURCE_EXHAUSTED),
        (errno.EMFILE, Code.UNAVAILABLE),
        (errno.ENOMEM, Code.UNAVAILABLE),
        (errno.EBUSY, Code.UNAVAILABLE),
        (errno.EROFS, Code.UNAVAILABLE),
        (errno.EIO, Code.INTERNAL),
        (errno.EPERM, Code.INTERNAL),
    ],
)
def test_what_the_kernel_refuses_has_a_code_and_says_what_and_where(number: int, code: Code) -> None:
    error = OSError(number, os.strerror(number), "/some/path")
    assert status.code_of(error) is code
    assert os.strerror(number) in status.message_of(error)
    assert "/some/path" in status.message_of(error)


def test_what_is_read_only_has_a_remedy() -> None:
    assert "mount it again" in status.message_of(OSError(errno.EROFS, os.strerror(errno.EROFS)))


def test_an_unforeseen_failure_shows_its_kind_and_not_its_text() -> None:
    error = KeyError("hunter2")
    assert status.code_of(error) is Code.INTERNAL
    assert "hunter2" not in status.message_of(error)
    assert "KeyError" in status.message_of(error)


def test_the_metrics_stay_small(told: tuple[Driver, int]) -> None:
    for number in range(50):
        told[0].code("DeleteVolume", volume_id=f"unknown-{number}")
    assert len(get(told[1], "/metrics")[2]) < MIB // 4
