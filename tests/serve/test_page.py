"""The chat page: in a real headless Chromium where there is one, and its own script in node against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import httpx
import pytest
from live import Live

PAGE = Path(str(resources.files("sekkei.serve").joinpath("page.html")))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_page_is_one_file_that_runs_only_its_own_script(live: Live) -> None:
    answer = httpx.get(live.url)
    assert answer.text == PAGE.read_text(encoding="utf-8")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "connect-src 'self'" in policy
    page = answer.text
    assert not any(mark in page for mark in ("src=", "@import", "url(", ' href="', "innerHTML", "//cdn"))
    assert page.count("<script>") == 1


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_pages_script_talks_to_a_server(live: Live) -> None:
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("page_driver.js")), str(PAGE), live.url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    body = {"messages": [{"role": "user", "content": "say hello"}], "temperature": 0, "logprobs": True}
    choice = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
    assert (seen["model"], seen["english"], seen["japanese"]) == ("tiny/sft", "Send", "送信")
    assert seen["grew"] > 3, "the answer was not streamed"
    assert seen["roles"] == ["user", "assistant"]
    assert seen["content"] == choice["message"]["content"]
    assert seen["tokens"] == len(choice["logprobs"]["content"])
    assert len(seen["card"]) == 5
    assert all(row.endswith("%") for row in seen["card"])
    assert seen["drawn"] == 1
    assert seen["hidden"] is True
    assert seen["kept"] == 1
    assert seen["stopped"] == "stopped"
    assert "no room for an answer" in seen["failed"]
    table = ["table", "tr", "th", "th", "tr", "td", "strong", "td"]
    assert seen["tags"] == ["div", "h1", "p", "strong", "code", "ul", "li", "li", "pre", "code", "p", "a", *table, "p"]
    assert "<img src=x onerror=alert(1)>" in seen["text"]  # as text
    assert "[b](javascript:alert(1))" in seen["text"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_asks_in_a_browser(live: Live, tmp_path: Path) -> None:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(live.url)
        page.fill("#text", "say hello")
        page.locator("#temperature").fill("0")
        assert page.inner_text("#shown") == "0"
        page.press("#text", "Enter")
        page.wait_for_selector("#stop", state="visible")
        page.wait_for_selector(".assistant .tokens", timeout=60_000)
        page.click(".tokens summary")
        page.hover(".tokens span >> nth=0")
        page.wait_for_selector("#card", state="visible")
        assert page.locator("#card div").count() == 5
        assert "bytes:" not in page.inner_text("#card")
        page.screenshot(path=str(tmp_path / "chat.png"))
        page.evaluate("draw()")
        assert page.locator("#card").is_hidden(), "the card outlived what it hung on"
        page.reload()
        page.click("#history button")
        assert page.locator(".user").inner_text() == "say hello"
        page.select_option("#language", "ja")
        assert page.inner_text("#send") == "送信"
        page.select_option("#which", "polite")
        with page.expect_request("**/v1/chat/completions") as sent:
            page.fill("#text", "again")
            page.press("#text", "Enter")
        assert sent.value.post_data_json["model"] == "polite"
        page.wait_for_selector("#send", state="visible", timeout=60_000)
        page.set_viewport_size({"width": 390, "height": 760})
        page.click("#new")
        assert page.locator(".user").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone would scroll sideways"
        browser.close()
    assert problems == []
