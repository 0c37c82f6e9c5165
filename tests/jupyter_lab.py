"""JupyterLab as a user starts it: a server on this machine alone, with settings, kernels and files in one folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

STARTING = 180.0
QUIET = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
"""Without the question whether news may be fetched."""
OPTIONS = (
    "--no-browser", "--allow-root", "--ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.port_retries=0",
    "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
)  # fmt: skip


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab over the files in `folder`, until the block ends; its kernels end with it."""
    settings = folder / ".jupyter"
    (settings / "labconfig").mkdir(parents=True)
    (settings / "labconfig" / "page_config.json").write_text(json.dumps(QUIET))
    own = {name: str(folder / f".{name.lower()}") for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {"JUPYTER_CONFIG_DIR": str(settings), "JUPYTERLAB_SETTINGS_DIR": str(settings / "lab")}
    own["JUPYTERLAB_WORKSPACES_DIR"] = str(settings / "workspaces")
    port = _free()
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--port={port}", f"--ServerApp.root_dir={folder}"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}", server, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTING
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=5) as answer:
                assert "version" in json.load(answer)
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not answer:\n{log.read_text()[-2000:]}")
