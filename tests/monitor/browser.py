"""A headless Chromium that a test looks through, over the DevTools protocol; no driver program is needed."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
TIMEOUT = 60.0  # seconds for the browser to start, and for each answer


def binary() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. ``problems`` collects uncaught exceptions, console errors and warnings, and failed or outside loads."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.problems: list[str] = []

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = len(self._answers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(self._answers[number], TIMEOUT)

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; raises RuntimeError when it throws."""
        answer = await self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def open(
        self, path: Path, width: int = 1360, height: int = 900, dark: bool = False, scale: float = 1
    ) -> None:
        """Opens a file and waits until the page says that it is ready."""
        for domain in ("Runtime", "Log", "Page", "Network"):
            await self.command(f"{domain}.enable")
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])
        await self.command("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + TIMEOUT
        while not await self.evaluate("location.protocol === 'file:' && document.documentElement?.dataset.ready"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not ready within {TIMEOUT:.0f} s: {self.problems}")
            await asyncio.sleep(0.05)

    async def hover(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Moves the pointer over an element, scrolled into view, at a share of its width and height."""
        box = await self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        x, y = box[0] + across * box[2], box[1] + down * box[3]
        await self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def screenshot(self, path: Path) -> None:
        """Of what the window shows."""
        path.write_bytes(base64.b64decode((await self.command("Page.captureScreenshot", format="png"))["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._answers[event["id"]].set_result(event.get("result", {}))
            else:
                self._note(event.get("method"), event.get("params", {}))

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        entry = parameters.get("entry", {})
        url = parameters.get("request", {}).get("url", "")
        console = method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert")
        logged = method == "Log.entryAdded" and entry["level"] in ("error", "warning")
        outside = method == "Network.requestWillBeSent" and not url.startswith(("file:", "data:"))
        if console or logged or outside or method in ("Runtime.exceptionThrown", "Network.loadingFailed"):
            self.problems.append(f"{method}: {parameters}")


@asynccontextmanager
async def new_page(profile: Path):
    """A fresh browser whose profile is the empty folder ``profile``, and its only page; ends it afterwards."""
    program = binary()
    assert program is not None
    argv = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = await response.json()
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.kill()
        process.wait(TIMEOUT)


async def _port(file: Path) -> int:
    deadline = time.monotonic() + TIMEOUT
    while not (file.exists() and file.read_text().strip()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Chromium did not open its debugging port within {TIMEOUT:.0f} s")
        await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])
