"""The real picamera2 on libcamera's virtual camera: what the machine lacks, and faults on request.

Loaded by picamvirt.pth in every Python of the root; nothing happens until picamera2 is imported. Only what is missing is
replaced: a DMA heap (a memfd), the Raw role, a pace (the virtual camera makes frames as fast as it gets requests), and
the platform, which picamera2 would take for one with a V4L2 encoder.

Faults: a file of that name in $EDGE_RIG_FAULTS, for as long as it is there.
    absent     no camera is found
    busy       opening it says that another process holds it
    memory     its buffers cannot be allocated
    stall      no frame comes, and no error either
    stalled    the same, until the camera is started again, which removes the file
    hang       stopping it never returns
    encoder    encoding a frame raises
    sd         encoding a frame of the second stream raises
    unflipped  the camera takes no flip
"""

import collections
import importlib.util
import os
import sys
import threading
import time


def fault(name):
    directory = os.environ.get("EDGE_RIG_FAULTS")
    return bool(directory) and os.path.exists(os.path.join(directory, name))


class Hook:
    """Finds picamera2 as ever, and has it patched once it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "picamera2":
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None:
            return None
        original = spec.loader.exec_module

        def exec_module(module):
            preload_platform(spec)
            original(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


def preload_platform(parent):
    path = os.path.join(parent.submodule_search_locations[0], "platform.py")
    spec = importlib.util.spec_from_file_location("picamera2.platform", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["picamera2.platform"] = module
    spec.loader.exec_module(module)
    module._platform = module.Platform.PISP  # no encoder of its own, as a Pi 5


def patch(picamera2):
    import libcamera
    from picamera2 import dma_heap
    from picamera2.allocators import dmaallocator
    from picamera2.encoders import LibavH264Encoder

    class MemfdHeap:
        isValid = True

        def alloc(self, name, size):
            if fault("memory"):
                raise OSError(12, "Cannot allocate memory")
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            return dma_heap.UniqueFD(fd)

        def close(self):
            pass

    class Fcntl:
        @staticmethod
        def ioctl(fd, request, arg=0, *rest):
            if request == dma_heap.DMA_BUF_IOCTL_SYNC:  # nothing to do on a memfd
                return 0
            import fcntl

            return fcntl.ioctl(fd, request, arg, *rest)

    class FrameBuffer:
        """The virtual camera writes two planes where picamera2 hands it one: luma two thirds, chroma one."""

        Plane = libcamera.FrameBuffer.Plane

        def __new__(cls, planes):
            if len(planes) == 1:
                luma, chroma = planes[0], libcamera.FrameBuffer.Plane()
                total = luma.length
                luma.length = total * 2 // 3
                chroma.fd, chroma.offset, chroma.length = luma.fd, luma.offset + luma.length, total - luma.length
                planes = [luma, chroma]
            return libcamera.FrameBuffer(planes)

    class Libcamera:
        def __getattr__(self, name):
            return FrameBuffer if name == "FrameBuffer" else getattr(libcamera, name)

    dmaallocator.DmaHeap = MemfdHeap
    dmaallocator.fcntl = Fcntl
    dmaallocator.libcamera = Libcamera()

    def raw_modes(self):
        formats = self.camera.generate_configuration([libcamera.StreamRole.Viewfinder]).at(0).formats
        return [
            {"format": str(pixel), "size": (size.width, size.height)}
            for pixel in formats.pixel_formats
            for size in formats.sizes(pixel)
        ]

    picamera2.Picamera2._get_raw_modes = raw_modes
    pace(libcamera)
    faults(picamera2, libcamera, LibavH264Encoder)


def pace(libcamera):
    """Hand the camera one request for each frame's time."""
    queue_request, start, stop = libcamera.Camera.queue_request, libcamera.Camera.start, libcamera.Camera.stop
    set_control = libcamera.Request.set_control
    pacers = {}

    class Pacer:
        def __init__(self):
            self.period_s, self.waiting, self.changed, self.running = (
                1 / 30,
                collections.deque(),
                threading.Condition(),
                False,
            )

        def start(self):
            self.waiting.clear()
            self.running = True
            self.thread = threading.Thread(target=self.loop, name="pacer", daemon=True)
            self.thread.start()

        def stop(self):
            with self.changed:
                self.running = False
                self.waiting.clear()
                self.changed.notify()
            self.thread.join()

        def put(self, camera, request):
            with self.changed:
                self.waiting.append((camera, request))
                self.changed.notify()

        def loop(self):
            due_s = time.monotonic()
            while True:
                with self.changed:
                    while self.running and (not self.waiting or fault("stall") or fault("stalled")):
                        self.changed.wait(0.02)
                    if not self.running:
                        return
                now_s = time.monotonic()
                if due_s > now_s:
                    time.sleep(due_s - now_s)
                elif now_s - due_s > self.period_s:
                    due_s = now_s
                due_s += self.period_s
                with self.changed:
                    if not self.running or not self.waiting:
                        continue
                    camera, request = self.waiting.popleft()
                    try:
                        queue_request(camera, request)
                    except RuntimeError:
                        return

    def pacer(camera):
        return pacers.setdefault(camera.id, Pacer())

    def paced_start(self, controls={}):
        if fault("stalled"):
            os.unlink(os.path.join(os.environ["EDGE_RIG_FAULTS"], "stalled"))
        for control, value in (controls or {}).items():
            if control.name == "FrameDurationLimits":
                pacer(self).period_s = value[0] / 1e6
        start(self, controls)
        pacer(self).start()

    def paced_stop(self):
        while fault("hang"):
            time.sleep(0.1)
        pacer(self).stop()
        stop(self)

    def paced_set_control(self, control, value):
        if control.name == "FrameDurationLimits":
            for one in pacers.values():
                one.period_s = value[0] / 1e6
        return set_control(self, control, value)

    libcamera.Camera.start, libcamera.Camera.stop = paced_start, paced_stop
    libcamera.Camera.queue_request = lambda self, request: pacer(self).put(self, request)
    libcamera.Request.set_control = paced_set_control


def faults(picamera2, libcamera, encoder):
    camera_info = picamera2.Picamera2.global_camera_info
    acquire, encode = libcamera.Camera.acquire, encoder._encode
    configured = picamera2.Picamera2.camera_configuration

    def faulty_info():
        return [] if fault("absent") else camera_info()

    def faulty_acquire(self):
        if fault("busy"):
            raise RuntimeError("Device or resource busy")
        return acquire(self)

    def faulty_encode(self, stream, request):
        if fault("encoder") or (fault("sd") and stream == "lores"):
            raise RuntimeError("the encoder was told to break")
        return encode(self, stream, request)

    def faulty_configuration(self):
        config = configured(self)
        return {**config, "transform": libcamera.Transform()} if fault("unflipped") else config

    picamera2.Picamera2.camera_configuration = faulty_configuration
    picamera2.Picamera2.global_camera_info = staticmethod(faulty_info)
    libcamera.Camera.acquire = faulty_acquire
    encoder._encode = faulty_encode


sys.meta_path.insert(0, Hook())
