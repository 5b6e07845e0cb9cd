"""A real RTSP server (GStreamer's, from Debian) as a program: python3 rtsp_server.py CODEC PORT [PASSWORD]; serves /cam, says "ready".

It runs under the system's Python, which has the bindings; RTP over TCP and UDP, with or without a password.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINES = {
    "jpeg": "videotestsrc is-live=true pattern=smpte ! video/x-raw,width=320,height=240,framerate=10/1,format=I420 ! jpegenc "
    "! rtpjpegpay name=pay0 pt=26",
    "raw": "videotestsrc is-live=true pattern=smpte ! video/x-raw,width=160,height=120,framerate=10/1,format=UYVY "
    "! rtpvrawpay name=pay0 pt=96",
}


def main(codec: str, port: str, password: str = "") -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {PIPELINES[codec]} )")
    factory.set_shared(True)
    if password:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic("me", password), token)
        server.set_auth(auth)
        role = Gst.Structure.new_from_string("user,media.factory.access=true,media.factory.construct=true")
        factory.add_role_from_structure(role)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


main(*sys.argv[1:])
