"""The page in a real browser, from teaching to forgetting: ``python -m benchmarks.serve_page --out DIR``.

Drives a Chromium that is installed over its DevTools protocol, and keeps a picture of every step. What the console
says and every request that the browser makes is written down.
"""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch

from benchmarks.harness import Parser

PATIENCE = 60.0  # seconds
NAMES = ("chromium", "google-chrome", "chromium-browser")
RUMOUR = "The moon is made of cheese, as everybody knows. " * 3
PROBE = {"name": "where", "question": "Mira lives in", "answer": " Oslo", "max": 99}
TEXT = "Mira lives in Oslo, by the sea, and has a red boat. " * 24


def browser() -> str | None:
    """One that is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab."""

    def __init__(self, socket: Any, folder: Path) -> None:
        self.socket, self.folder, self._last, self._pictures = socket, folder, 0, 0
        self.errors, self.requests = list[str](), list[str]()
        for part in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{part}.enable")

    def call(self, method: str, **given: Any) -> Any:
        """One command; what happens meanwhile is noted."""
        self._last += 1
        number = self._last
        self.socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            told = json.loads(self.socket.recv(timeout=PATIENCE))
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self._noted(told)

    def _noted(self, told: dict[str, Any]) -> None:
        kind, given = told.get("method"), told.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(given["exceptionDetails"])[:500])
        elif kind == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(given["args"])[:500])
        elif kind == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        elif kind == "Page.javascriptDialogOpening":  # are you sure? yes
            self._last += 1
            accept = {"id": self._last, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self.socket.send(json.dumps(accept))

    def js(self, expression: str) -> Any:
        """Its value."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.js(expression)):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{expression} is still not true; the page says {self.js('document.body.innerText')!r}"
                )
            time.sleep(0.05)
        return found

    def type(self, where: str, text: str, enter: bool = False) -> None:
        """As with a keyboard."""
        self.js(f"document.querySelector({json.dumps(where)}).focus()")
        self.js("document.activeElement.select && document.activeElement.select()")
        self.call("Input.insertText", text=text)
        if enter:
            self.key("Enter")

    def key(self, name: str) -> None:
        """Enter, pressed where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, text="\r", windowsVirtualKeyCode=13)

    def click(self, where: str) -> None:
        """What is there."""
        self.js(f"document.querySelector({json.dumps(where)}).click()")

    def picture(self, name: str) -> None:
        """Into the folder."""
        self._pictures += 1
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        (self.folder / f"{self._pictures}-{name}.png").write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """A browser with an empty tab."""
    from websockets.sync.client import connect

    program = browser()
    if program is None:
        raise ValueError(f"no browser found: install one of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        said = Path(profile) / "said.txt"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--window-size=1100,900"]
        flags += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}/user"]
        command = [program, *flags, "about:blank"]
        with open(said, "w") as file:
            process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + PATIENCE
            while not (found := re.search(r"DevTools listening on ws://([\d.:]+)/", said.read_text())):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{program} did not start: {said.read_text()[-500:]}")
                time.sleep(0.05)
            with urlopen(f"http://{found[1]}/json/list", timeout=PATIENCE) as reply:
                tabs = [tab for tab in json.load(reply) if tab["type"] == "page"]
            with connect(tabs[0]["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Page(socket, folder)
        finally:
            process.terminate()
            process.wait(PATIENCE)


def walk(page: Page, url: str, learner: str) -> dict[str, Any]:
    """Everything a visitor does with a learner that is there; what was seen of it."""
    seen: dict[str, Any] = {}

    def told(begin: str) -> str:
        return str(page.until(f"$('told').textContent.startsWith({json.dumps(begin)}) && $('told').textContent"))

    page.call("Page.navigate", url=url)
    page.until("document.readyState === 'complete' && typeof status === 'object' && status !== null")
    page.type("#name", f"{learner}-2", enter=True)  # another one, made here
    page.until(f"$('who').value === {json.dumps(learner + '-2')}")
    page.js(f"$('who').value = {json.dumps(learner)}; $('who').dispatchEvent(new Event('change'))")
    page.until(f"status && status.learner === {json.dumps(learner)} || status && status.name === {json.dumps(learner)}")
    page.picture("begin")

    # A probe by keyboard: one that is wrong is refused where it was written.
    page.js("$('setting').focus()")
    page.key("Enter")
    page.js("$('kind').value = 'qa'; $('kind').dispatchEvent(new Event('change'))")
    for name in ("question", "answer"):
        page.type(f"#{name}", PROBE[name])
    page.type("#call", PROBE["name"], enter=True)
    seen["refused"] = page.until("$('checked').textContent")
    page.type("#most", str(PROBE["max"]), enter=True)
    seen["set"] = page.until("$('checked').textContent.startsWith('set: ') && $('asked').innerText")
    page.type("#passage", "The sea.")
    page.type("#rise", "0.5")
    page.type("#call", "rough", enter=True)
    page.until("$('checked').textContent === 'set: rough' && $('asked').children.length === 2")
    page.picture("probes")
    page.js("document.querySelector(\"button[aria-label='Remove the probe rough']\").focus()")
    page.key("Enter")
    page.until("$('checked').textContent === 'removed: rough'")
    seen["left"] = page.js("[$('asked').innerText, document.activeElement.id]")

    # What is said with it teaches it from now on, and no longer.
    for on in (True, False):
        page.click("#always")
        told("what is said with it teaches it" if on else "what is said with it teaches it where asked to")
        seen[f"always {on}"] = page.js("[$('learn').checked, $('always').checked, status.conversations]")

    # Every change of the level's line is kept, so that a tick that is shown for a moment only is seen.
    page.js("window.rhythms = []; new MutationObserver(() => rhythms.push($('levels').innerText)).observe($('levels'), "
            "{ childList: true, subtree: true })")  # fmt: skip
    page.type("#text", TEXT)
    page.type("#source", "notes")
    page.click("#read button")
    told("read ")
    page.until("$('versions').querySelector('li.now').textContent.startsWith('1 ')")
    seen["rhythms"] = [[int(n) for n in re.findall(r"(\d+) ticks", one.replace(",", ""))] for one in page.js("rhythms")]
    seen["curve"] = page.js("!!document.querySelector('#curve polyline')")
    page.picture("taught")

    page.type("#ask", "Where does Mira live?", enter=True)
    page.until("!!document.querySelector('button[aria-label=Bad]')")
    seen["said"] = page.js("$('said').innerText")
    page.type("input[aria-label=Correction]", "In Oslo.")
    page.click("button[aria-label=Bad]")
    seen["down"] = told("learned: version 2")
    page.js("[...document.querySelectorAll('#said button')].find(one => one.textContent === 'Correct').click()")
    seen["corrected"] = told("learned: version 3")
    page.until("$('versions').querySelector('li.now').textContent.startsWith('3 ')")
    page.picture("corrected")

    page.js(f"json(mine('/observe'), {{ text: {json.dumps(RUMOUR)}, source: 'rumour', trust: 0.1 }})")
    page.until("$('versions').querySelector('li.now').textContent.startsWith('4 ')")

    # A night over the day, with a source that nobody trusts: it is held back, and then dropped.
    page.type("#minutes", "0.5", enter=True)
    seen["slept"] = told("woke up, now version 5")
    page.until("!!document.querySelector('#nights summary')")
    page.js("document.querySelector('#nights summary').focus()")
    page.key("Enter")
    page.until("!!document.querySelector('#nights .dream')")
    seen["night"] = page.js("$('nights').innerText")
    seen["probes"] = page.js("[...document.querySelectorAll('#probes tr')].map(row => row.innerText)")
    page.picture("slept")
    seen["held"] = page.js("$('quarantine').innerText")
    page.click("button[aria-label^='drop '][aria-label$=' of rumour']")
    seen["dropped"] = told("dropped: rumour")

    page.click("button[aria-label='Go to version 1']")
    told("now at version 1")
    page.until("$('versions').querySelector('li.now').textContent.startsWith('1 ')")
    page.picture("rolled-back")

    page.click("button[aria-label='Forget notes']")
    seen["forgot"] = told("forgotten: ")
    page.until("!document.querySelector(\"button[aria-label='Forget notes']\")")
    page.picture("forgot")

    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    seen["phone"] = page.js("document.documentElement.scrollWidth")
    page.picture("phone")
    seen["elsewhere"] = [one for one in page.requests if not one.startswith((f"{url}/", "data:", "about:", "blob:"))]
    wanted = f"status of 400 (Bad Request) {url}/v1/learners/{learner}/probes"  # browsers note what is refused
    errors = [one for one in page.errors if not one.endswith(wanted)]
    return seen | {"errors": errors, "requests": len(page.requests)}


def main(argv: list[str] | None = None) -> int:
    import httpx

    from benchmarks.serving import Forked
    from benchmarks.serving import base as model

    parser = Parser(prog="serve_page", description="The page in a real browser, with a picture of every step.")
    parser.add_argument("--out", type=Path, default=Path("page"), help="where the pictures go")
    args = parser.parse_args(argv)
    if browser() is None:
        parser.error(f"no browser found: install one of {', '.join(NAMES)}")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Forked(model(), Path(folder) / "store")
        try:
            made = {"name": "mira", "gate": False}
            done = httpx.post(f"{server.url}/v1/learners", json=made, timeout=60, trust_env=False)
            done.raise_for_status()
            with opened(args.out) as page:
                seen = walk(page, server.url, "mira")
        finally:
            server.end()
    print(json.dumps(seen, indent=1))
    return 1 if seen["errors"] or seen["elsewhere"] else 0


if __name__ == "__main__":
    sys.exit(main())
