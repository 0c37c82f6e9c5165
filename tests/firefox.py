"""A stock Firefox without a network, driven over WebDriver BiDi: what a reader does, and what the page then says.

Playwright drives a Firefox of its own only, and asks a stock one for what it does not have; few commands are enough.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("firefox-esr", "firefox")
PREFERENCES = {
    "app.update.enabled": False, "browser.shell.checkDefaultBrowser": False, "toolkit.telemetry.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False, "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False, "browser.safebrowsing.downloads.remote.enabled": False,
    "extensions.update.enabled": False, "network.dns.disabled": True, "services.settings.server": "data:,",
    "browser.startup.page": 0, "browser.newtabpage.enabled": False,
}  # fmt: skip
LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
WAITING = 60.0


def firefox() -> str | None:
    """Where a Firefox is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One tab; `wrong` is what its console complained of, `asked` the addresses that were loaded."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self("session.new", capabilities={})
        self("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        # A window of its own, which is then in front: in another no element hears that it has the focus.
        self._context = self("browsingContext.create", type="window")["context"]

    def __call__(self, method: str, /, **params: Any) -> Any:
        """A command of BiDi and its answer; events that come meanwhile are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("id") == number:
                if said["type"] == "error":
                    raise AssertionError(f"{method}: {said['error']}: {said['message']}")
                return said["result"]
            self._hear(said)

    def _hear(self, event: Mapping[str, Any]) -> None:
        what = event.get("params", {})
        if event.get("method") == "log.entryAdded" and what["level"] in ("error", "warn"):
            self.wrong.append(what["text"])
        if event.get("method") == "network.beforeRequestSent":
            self.asked.append(what["request"]["url"])

    def open(self, address: str, *, width: int = 1200, height: int = 900) -> None:
        """Load a page at a size."""
        self("browsingContext.setViewport", context=self._context, viewport={"width": width, "height": height})
        self("browsingContext.navigate", context=self._context, url=address, wait="complete")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, as JSON has it; a promise is waited for."""
        wrapped = f"(async () => JSON.stringify(await ({script})))()"
        said = self(
            "script.evaluate", expression=wrapped, target={"context": self._context}, awaitPromise=True
        )  # fmt: skip
        if said["type"] != "success":
            raise AssertionError(said["exceptionDetails"]["text"])
        value = said["result"].get("value")
        return None if value is None else json.loads(value)

    def click(self, selector: str) -> None:
        """A press of the mouse on an element, where it is seen."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        element = self._element(selector)
        pointer = [
            {"type": "pointerMove", "x": 0, "y": 0, "origin": {"type": "element", "element": element}},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._act([{"type": "pointer", "id": "mouse", "actions": pointer}])

    def press(self, *keys: str) -> None:
        """Keys one after the other."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._act([{"type": "key", "id": "keys", "actions": strokes}])

    def picture(self) -> bytes:
        """The tab as a PNG."""
        return base64.b64decode(self("browsingContext.captureScreenshot", context=self._context)["data"])

    def _act(self, actions: list[Any]) -> None:
        self("input.performActions", context=self._context, actions=actions)

    def _element(self, selector: str) -> Any:
        locator = {"type": "css", "value": selector}
        found = self("browsingContext.locateNodes", context=self._context, locator=locator)["nodes"]
        assert found, f"no element {selector}"
        return {"sharedId": found[0]["sharedId"]}


@contextmanager
def started(folder: Path, *, dark: bool = False) -> Iterator[Tab]:
    """A Firefox of its own, in a light or a dark system, until the block ends."""
    import websocket

    profile = folder / f"profile-{'dark' if dark else 'light'}"
    profile.mkdir()
    preferences = {**PREFERENCES, "layout.css.prefers-color-scheme.content-override": 0 if dark else 1}
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()]
    (profile / "user.js").write_text("".join(lines))
    command = [
        firefox() or "firefox",
        "--headless",
        "--no-remote",
        "--remote-debugging-port",
        "0",
        "--profile",
        str(profile),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next((found[1] for line in process.stderr if (found := LISTENING.search(line))), None)
            assert address, "Firefox ended before it listened"
            socket = websocket.create_connection(f"{address}/session", timeout=WAITING, suppress_origin=True)
            try:
                yield Tab(socket)
            finally:
                socket.close()
        finally:
            process.terminate()
            process.wait(WAITING)
