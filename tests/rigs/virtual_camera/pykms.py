"""picamera2 imports kms or pykms for its DRM preview, which a machine without a screen never uses."""


class PixelFormat:
    RGB888 = BGR888 = XRGB8888 = XBGR8888 = YUV420 = YVU420 = NV12 = ABGR8888 = None
