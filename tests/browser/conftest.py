"Drive a real JupyterLab in headless Chromium."

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

CHROME = os.environ.get("CHROME_BIN") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    if not CHROME:
        message = "no Chromium found: apt-get install chromium, or name one in CHROME_BIN"
        (pytest.fail if os.environ.get("GTI_REQUIRE_BROWSER") else pytest.skip)(message)
    return {
        **browser_type_launch_args,
        "executable_path": CHROME,
        "headless": True,
        "args": [
            "--no-sandbox",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-unsafe-swiftshader",
        ],
    }


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args):
    return {**browser_context_args, "viewport": {"width": 1500, "height": 1000}}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, log, seconds=90):
    "Until the server answers; its log when it dies or is too slow."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            return urllib.request.urlopen(url, timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{url}: no answer in {seconds} s:\n{log.read_text()[-2000:]}")


@pytest.fixture
def lab(tmp_path, page, root):
    "Callable: open a copy of a notebook in JupyterLab, run all cells and give the page; a copy, because Lab saves as it goes."
    started, errors = [], []
    page.on("pageerror", lambda e: errors.append(str(e)))

    def open_notebook(notebook, **env):
        shutil.copy(root / notebook, tmp_path / "nb.ipynb")
        port, log = free_port(), tmp_path / "server.log"
        folders = {f"JUPYTER{name}_DIR": str(tmp_path / name) for name in ("_CONFIG", "_RUNTIME", "LAB_WORKSPACES", "LAB_SETTINGS")}
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--ServerApp.port={port}",
            "--ServerApp.ip=127.0.0.1",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={tmp_path}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **folders, **env}, stdout=log.open("w"), stderr=subprocess.STDOUT)
        )
        wait_for(f"http://127.0.0.1:{port}/api/status", started[-1], log)
        page.set_default_timeout(90_000)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/nb.ipynb?reset")
        page.get_by_text(re.compile(r"\| Idle$")).wait_for()  # the toolbar says idle before the kernel is there; the status bar does not
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return page

    yield open_notebook
    for process in started:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    assert not errors, errors
