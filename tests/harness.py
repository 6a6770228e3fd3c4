"""A driver in a process of its own, a caller that speaks raw CSI to it, and pools on real filesystems."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import grpc
from google.protobuf import message_factory

from csi_driver.linux import growth, libc
from csi_driver.pb import admin_pb2, csi_pb2
from tests.zygote import ForkedProcess, Zygote

MIB = 1 << 20
GIB = 1 << 30
CLONE_NEWNS = 0x20000  # include/uapi/linux/sched.h
Code = grpc.StatusCode
Mode = csi_pb2.VolumeCapability.AccessMode

PROGRAM = (sys.executable, "-m", "csi_driver")
_METHODS = {
    method.name: method
    # The same name in two services: CSI's, which comes last, is the one that tests mean.
    for file in (admin_pb2.DESCRIPTOR, csi_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}


def leave_mount_namespace() -> None:
    """Give this process mounts that nobody else sees, and that see nobody else's."""
    unshare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, use_errno=True)(("unshare", libc.libc))
    libc.check(unshare(CLONE_NEWNS), unshare, ())
    run("mount", "--make-rprivate", "/")


def run(*command: str, check: bool = True) -> str:
    """Run one of the system's own tools and return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
    return done.stdout


@dataclass
class PoolPlace:
    """A directory for a pool; with a filesystem of its own, in an image beside it, unless it is the machine's."""

    directory: Path
    mount_point: Path | None = None
    image: Path | None = None

    @classmethod
    def make(cls, where: Path, fs_type: str, size_bytes: int, mkfs: str = "", mount: str = "") -> PoolPlace:
        where.mkdir(parents=True)
        if fs_type == "host":
            return cls(where / "pool")
        image, mount_point = where / "filesystem.img", where / "mnt"
        with image.open("xb") as file:
            file.truncate(size_bytes)
        force = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[fs_type]
        run(f"mkfs.{fs_type}", "-q", force, *mkfs.split(), "--", str(image))
        mount_point.mkdir()
        run("mount", "-o", f"loop{',' if mount else ''}{mount}", str(image), str(mount_point))
        return cls(mount_point / "pool", mount_point, image)

    @property
    def content(self) -> Path:
        """Where the pool's rooms are: in a filesystem of their own if they lie in a backing file."""
        inner = self.directory / "pool"
        return inner if (self.directory / "hostvol-backing.json").exists() else self.directory

    def remove(self) -> None:
        """Unmount and delete."""
        if self.mount_point is not None and self.image is not None:
            run("umount", str(self.mount_point))
            self.image.unlink()


def place(where: PoolPlace | Path) -> PoolPlace:
    """A bare directory as a place."""
    return where if isinstance(where, PoolPlace) else PoolPlace(where)


class Failure(Exception):
    """An RPC that did not answer OK."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method}: {code.name}: {details}")
        self.code = code
        self.details = details


class Caller:
    """Raw RPCs over the driver's socket: `caller.call("CreateVolume", name=…)` with the request's fields."""

    def __init__(self, socket_path: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket_path}",
            options=[("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._stubs: dict[str, Any] = {}

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any = None, *, timeout: float = 60, **fields: Any) -> Any:
        """The answer; all messages of one that is streamed, in a list.

        Raises: Failure.
        """
        descriptor = _METHODS[method]
        if request is None:
            request = message_factory.GetMessageClass(descriptor.input_type)(**fields)
        try:
            answer = self.stub(method)(request, timeout=timeout)
            return list(answer) if descriptor.server_streaming else answer
        except grpc.RpcError as error:
            raise Failure(method, error.code(), error.details() or "") from error

    def code(self, method: str, request: Any = None, **fields: Any) -> grpc.StatusCode:
        """The code of the answer, OK included."""
        try:
            self.call(method, request, **fields)
        except Failure as failure:
            return failure.code
        return Code.OK

    def import_stub(self) -> Any:
        """The bare gRPC callable of Import, which takes what `import_requests` gives."""
        return self._channel.stream_unary(
            "/hostvol.admin.v1.Admin/Import",
            request_serializer=admin_pb2.ImportRequest.SerializeToString,
            response_deserializer=admin_pb2.ImportResponse.FromString,
        )

    def import_volume(self, stream: bytes, *, timeout: float = 60, **options: str) -> admin_pb2.ImportResponse:
        """The answer to the import of a whole stream.

        Raises: Failure.
        """
        try:
            answer: admin_pb2.ImportResponse = self.import_stub()(import_requests(stream, **options), timeout=timeout)
        except grpc.RpcError as error:
            raise Failure("Import", error.code(), error.details() or "") from error
        return answer

    def admin_stub(self, method: str) -> Any:
        """The bare gRPC callable of a method of the operator's service."""
        descriptor = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name[method]
        return self._channel.unary_unary(
            f"/{descriptor.containing_service.full_name}/{descriptor.name}",
            request_serializer=message_factory.GetMessageClass(descriptor.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
        )

    def stub(self, method: str) -> Any:
        """The bare gRPC callable of a method."""
        if method not in self._stubs:
            descriptor = _METHODS[method]
            channel = self._channel
            make = channel.unary_stream if descriptor.server_streaming else channel.unary_unary
            self._stubs[method] = make(
                f"/{descriptor.containing_service.full_name}/{descriptor.name}",
                request_serializer=message_factory.GetMessageClass(descriptor.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
            )
        return self._stubs[method]


_zygote = Zygote()


def start_fork(
    command: Sequence[str], stderr: IO[bytes], env: Mapping[str, str], constants: Mapping[str, float] | None = None
) -> ForkedProcess:
    """As subprocess.Popen, when what is run is the program itself, and much sooner; `constants` as of Zygote.fork."""
    assert tuple(command[: len(PROGRAM)]) == PROGRAM
    return _zygote.fork(command[len(PROGRAM) :], (1, stderr.fileno()), env, constants or {})


def waited(process: subprocess.Popen[bytes] | ForkedProcess, seconds: float) -> int:
    """The exit code. What has not ended in time is killed, and that is told.

    Raises: subprocess.TimeoutExpired.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        raise


def ended(process: subprocess.Popen[bytes] | ForkedProcess, number: int) -> int:
    """Send a signal and wait; the exit code.

    Raises: subprocess.TimeoutExpired.
    """
    process.send_signal(number)
    return waited(process, 60)


def hostvol(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program to its end, and what it printed.

    Raises: subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        output = stdout.fileno(), stderr.fileno()
        code = waited(_zygote.fork(arguments, output, {**os.environ, **environment}, {}), 120)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())


@dataclass
class Driver:
    """`hostvol node` as a child process; it is started, killed and started again on the same pools."""

    home: Path
    pools: Sequence[PoolPlace]
    node_id: str = "test-node"
    init_pools: bool = True
    arguments: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    options: Sequence[str] = ()
    # Where the program itself must be started: its memory is measured, or its interpreter is told something.
    forked: bool = True
    constants: dict[str, float] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | ForkedProcess | None = None
    _caller: Caller | None = None

    @property
    def socket_path(self) -> Path:
        return self.home / "csi.sock"

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pool(self) -> Path:
        """The directory of the first pool."""
        return self.pools[0].directory

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        names = self.names or ["default", *(f"pool{number}" for number in range(1, len(self.pools)))]
        options = self.options or [""] * len(self.pools)
        pools = [
            f"--pool={name}={pool.directory}{option}"
            for name, pool, option in zip(names, self.pools, options, strict=True)
        ]
        init = ["--init-pools"] if self.init_pools else []
        state = f"--state-dir={self.home / 'state'}"
        return [
            *(*PROGRAM, "node", f"--endpoint={self.endpoint}", f"--node-id={self.node_id}"),
            *(*pools, *init, state, *self.arguments),
        ]

    def start(self, *, wait: bool = True, **environment: str) -> None:
        """Start; with `wait` until Probe says ready."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "log").open("ab") as log:
            environment = {**os.environ, **self.environment, **environment}
            if self.forked:
                self.process = start_fork(self.command(), log, environment, self.constants)
            else:
                assert not self.constants, "only in a fork"
                self.process = subprocess.Popen(self.command(), stderr=log, env=environment)
        if wait:
            self.wait_ready()

    @contextlib.contextmanager
    def serving(self) -> Iterator[Driver]:
        """It serves; afterwards it has ended, nothing of it is mounted, and it met nothing that it did not foresee."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.clean_up)
            stack.callback(self.stop)
            self.start()
            yield self
        assert "unforeseen" not in self.log(), self.log()

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until the driver serves."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"the driver did not start: {self.log()}")
            if self.socket_path.exists() and self._probe():
                return
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} s: {self.log()}")

    def _probe(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket_path))
            except OSError:
                return False
        try:
            return bool(self.caller.call("Probe", timeout=5).ready.value)
        except Failure:
            self.disconnect()
            return False

    @property
    def caller(self) -> Caller:
        if self._caller is None:
            self._caller = Caller(self.socket_path)
        return self._caller

    def call(self, method: str, request: Any = None, **fields: Any) -> Any:
        return self.caller.call(method, request, **fields)

    def code(self, method: str, request: Any = None, **fields: Any) -> grpc.StatusCode:
        return self.caller.code(method, request, **fields)

    def disconnect(self) -> None:
        if self._caller is not None:
            self._caller.close()
            self._caller = None

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        return self._end(signal.SIGTERM)

    def wait_dead(self, seconds: float = 30.0) -> int:
        """Wait until the process has ended by itself."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.disconnect()
        return code

    def restart(self, **environment: str) -> None:
        """SIGKILL and start again."""
        self.kill()
        self.start(**environment)

    def _end(self, number: int) -> int:
        self.disconnect()
        return ended(self.process, number) if self.process is not None else 0

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def clean_up(self) -> None:
        """Unmount and detach what a dead driver left behind, by its own names."""
        for target in reversed(self.mounts()):
            run("umount", target, check=False)
        for device in self.loops():
            run("losetup", "-d", device, check=False)

    def mounts(self) -> list[str]:
        """Where volumes of this driver are mounted, as findmnt tells."""
        below = [str(self.home), *(f"{pool.directory}/" for pool in self.pools)]
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = [line.split()[4].replace("\\040", " ") for line in table]
        return [target for target in targets if any(target.startswith(f"{start}/") for start in below[:1])]

    def loops(self) -> list[str]:
        """Loop devices over files of this driver's pools, as sysfs tells."""
        return [device for device, path in backing_files() if any(path.startswith(f"{p.content}/") for p in self.pools)]

    def files(self) -> list[str]:
        """Everything below the pools except identity and templates, relative."""
        found = []
        for pool in self.pools:
            for path in sorted(pool.content.rglob("*")):
                relative = path.relative_to(pool.content)
                if len(relative.parts) > 1 and relative.parts[0] != "templates":
                    found.append(str(relative))
        return found

    # A place for staging and target paths, below the driver's home so that clean_up finds it.

    def staging(self, volume_id: str) -> str:
        path = self.home / "staging" / volume_id
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def target(self, name: str) -> str:
        path = self.home / "targets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)


def backing_files() -> Iterator[tuple[str, str]]:
    """Every attached loop device with the path of its backing file; no device is opened."""
    for device in os.listdir("/sys/block"):
        with contextlib.suppress(OSError):
            yield f"/dev/{device}", Path(f"/sys/block/{device}/loop/backing_file").read_text().rstrip("\n")


def capability(
    mode: str = "SINGLE_NODE_MULTI_WRITER", *, block: bool = False, fs_type: str = "", flags: Sequence[str] = ()
) -> csi_pb2.VolumeCapability:
    """A capability in one line."""
    asked = csi_pb2.VolumeCapability(access_mode=Mode(mode=mode))
    if block:
        asked.block.SetInParent()
    else:
        asked.mount.fs_type = fs_type
        asked.mount.mount_flags.extend(flags)
    return asked


def create_request(
    name: str, size_bytes: int = 64 * MIB, limit_bytes: int = 0, **fields: Any
) -> csi_pb2.CreateVolumeRequest:
    """A CreateVolumeRequest with sane defaults; `parameters` and `volume_capabilities` may be given."""
    fields.setdefault("volume_capabilities", [capability()])
    request = csi_pb2.CreateVolumeRequest(name=name, **fields)
    if size_bytes or limit_bytes:
        request.capacity_range.required_bytes = size_bytes
        request.capacity_range.limit_bytes = limit_bytes
    return request


def only_by_resize2fs(driver: Driver) -> None:
    """Start the driver, from now on, without the capability by which the kernel grows a mounted ext4."""
    command = driver.command
    if growth.may_grow_mounted_ext4():
        driver.forked = False
        driver.command = lambda: ["setpriv", "--bounding-set", "-sys_resource", "--", *command()]  # type: ignore[method-assign]
        driver.restart()


DIRECTORY = {"type": "directory", "quota": "none"}


@dataclass
class Workload:
    """One volume of some kind, through its whole life, with calls that only name what differs."""

    driver: Driver
    name: str
    block: bool = False
    fs_type: str = ""
    size_bytes: int = 64 * MIB
    parameters: dict[str, str] = field(default_factory=dict)
    mode: str = "SINGLE_NODE_MULTI_WRITER"
    flags: Sequence[str] = ()
    volume_id: str = ""

    @property
    def capability(self) -> csi_pb2.VolumeCapability:
        return capability(self.mode, block=self.block, fs_type=self.fs_type, flags=self.flags)

    def create(self) -> str:
        request = create_request(
            self.name, self.size_bytes, parameters=self.parameters, volume_capabilities=[self.capability]
        )
        self.volume_id = self.driver.call("CreateVolume", request).volume.volume_id
        return self.volume_id

    @property
    def staging(self) -> str:
        return self.driver.staging(self.volume_id)

    def target(self, number: int = 0) -> str:
        return self.driver.target(f"{self.name}-{number}")

    def stage_request(self) -> csi_pb2.NodeStageVolumeRequest:
        return csi_pb2.NodeStageVolumeRequest(
            volume_id=self.volume_id, staging_target_path=self.staging, volume_capability=self.capability
        )

    def publish_request(self, number: int = 0, *, readonly: bool = False) -> csi_pb2.NodePublishVolumeRequest:
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=self.volume_id,
            staging_target_path=self.staging,
            target_path=self.target(number),
            volume_capability=self.capability,
            readonly=readonly,
        )

    def stage(self) -> None:
        self.driver.call("NodeStageVolume", self.stage_request())

    def publish(self, number: int = 0, *, readonly: bool = False) -> str:
        self.driver.call("NodePublishVolume", self.publish_request(number, readonly=readonly))
        return self.target(number)

    def expand(self, size_bytes: int) -> int:
        """ControllerExpandVolume; the size that the volume has then."""
        return int(self.driver.call("ControllerExpandVolume", self.expand_request(size_bytes)).capacity_bytes)

    def expand_request(self, size_bytes: int) -> csi_pb2.ControllerExpandVolumeRequest:
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=self.volume_id)
        request.capacity_range.required_bytes = size_bytes
        return request

    def expand_on_node(self, path: str = "") -> int:
        """NodeExpandVolume at a path, that of the first publication if it is not given; the volume's size."""
        answer = self.driver.call("NodeExpandVolume", volume_id=self.volume_id, volume_path=path or self.target())
        return int(answer.capacity_bytes)

    def unpublish(self, number: int = 0) -> None:
        self.driver.call("NodeUnpublishVolume", volume_id=self.volume_id, target_path=self.target(number))

    def unstage(self) -> None:
        self.driver.call("NodeUnstageVolume", volume_id=self.volume_id, staging_target_path=self.staging)

    def delete(self) -> None:
        self.driver.call("DeleteVolume", volume_id=self.volume_id)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.staging)

    def up(self) -> str:
        """Create, stage, publish; returns the target path."""
        self.create()
        self.stage()
        return self.publish()

    def down(self) -> None:
        """Unpublish, unstage, delete."""
        self.unpublish()
        self.unstage()
        self.delete()


def import_requests(stream: bytes, **options: str) -> Iterator[admin_pb2.ImportRequest]:
    """What an import sends."""
    yield admin_pb2.ImportRequest(options=admin_pb2.ImportOptions(**options))  # type: ignore[arg-type]
    for start in range(0, len(stream), MIB):
        yield admin_pb2.ImportRequest(data=stream[start : start + MIB])


def exported(driver: Driver, object_id: str, *, timeout: float = 60) -> bytes:
    """The content of a volume or snapshot as a stream."""
    return b"".join(chunk.data for chunk in driver.call("Export", id=object_id, timeout=timeout))


def admin_volumes(driver: Driver) -> list[Any]:
    """All volumes as the operator's view tells them."""
    return list(driver.caller.admin_stub("ListVolumes")(admin_pb2.ListVolumesRequest(), timeout=60).volumes)


def admin_pools(driver: Driver) -> list[Any]:
    """All pools as the operator's view tells them."""
    return list(driver.caller.admin_stub("ListPools")(admin_pb2.ListPoolsRequest(), timeout=60).pools)


@dataclass
class PodVolume:
    """An inline ephemeral volume of a pod, with the two calls that kubelet makes for it, and with its handle."""

    driver: Driver
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    fs_type: str = ""
    mode: str = "SINGLE_NODE_MULTI_WRITER"

    @property
    def handle(self) -> str:
        return f"csi-{hashlib.sha256(self.name.encode()).hexdigest()}"

    def target(self, number: int = 0) -> str:
        return self.driver.target(f"{self.name}-{number}")

    def context(self) -> dict[str, str]:
        prefix = "csi.storage.k8s.io"
        kubelets = {"pod.name": self.name, "pod.namespace": "default", "pod.uid": "1-2-3", "ephemeral": "true"}
        return {**self.attributes, **{f"{prefix}/{key}": value for key, value in kubelets.items()}}

    def publish_request(self, number: int = 0, *, readonly: bool = False) -> csi_pb2.NodePublishVolumeRequest:
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=self.handle,
            target_path=self.target(number),
            volume_capability=capability(self.mode, fs_type=self.fs_type),
            readonly=readonly,
            volume_context=self.context(),
        )

    def publish(self, number: int = 0, *, readonly: bool = False) -> str:
        self.driver.call("NodePublishVolume", self.publish_request(number, readonly=readonly))
        return self.target(number)

    def unpublish(self, number: int = 0) -> None:
        self.driver.call("NodeUnpublishVolume", volume_id=self.handle, target_path=self.target(number))

    def held(self) -> Any:
        """What the operator's view tells of it; None when there is none."""
        return next((one for one in admin_volumes(self.driver) if one.name == self.handle), None)
