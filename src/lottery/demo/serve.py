"""The server of the page, on 127.0.0.1 alone."""

import os
import signal
import time
from importlib.util import find_spec
from threading import Thread

from lottery import LotteryError, params
from lottery.files.workplace import scratch
from lottery.server import check_port

HOST = "127.0.0.1"


def serve_demo(port: int) -> None:
    """Serve the page until ctrl-C, SIGTERM or SIGHUP. Raises LotteryError where that cannot be."""
    p = params.load()
    if find_spec("gradio") is None:
        raise LotteryError(
            "lottery demo: gradio is not installed; `make demo` installs it, and so does "
            "`pip install -c constraints.txt -e '.[demo]'`"
        )
    check_port(f"lottery demo: --port {port}", HOST, port)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    with scratch() as folder:
        # gradio calls home unless told not to, and its folder would be /tmp/gradio, whoever owns that
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
        try:
            _serve(p, port)
        except KeyboardInterrupt:
            print("\nDemo: ended", flush=True)


def _serve(p: params.Params, port: int) -> None:
    from lottery.demo.page import HERE, Demo, page

    demo = Demo.of(p)  # before gradio is imported, which takes seconds
    import gradio
    import uvicorn
    from fastapi import FastAPI

    app = gradio.mount_gradio_app(
        FastAPI(),
        page(demo),
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        ssr_mode=False,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the internet
        css=(HERE / "page.css").read_text(encoding="utf-8"),
    )
    # Not by gradio's launch, which asks the internet's proxy for this page where one is set. Uvicorn would log what its
    # end interrupts; an answer that fails is told by gradio.
    server = uvicorn.Server(uvicorn.Config(app, HOST, port, log_level="critical"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        if server.started:
            print(f"Demo: http://{HOST}:{port}", flush=True)
        while thread.is_alive():  # a join that a signal interrupts takes the thread for ended
            time.sleep(0.2)
        raise LotteryError(f"lottery demo: --port {port}: the server did not start, or ended; choose another")
    finally:
        server.should_exit = server.force_exit = True  # without waiting for pages that are open
        thread.join()
