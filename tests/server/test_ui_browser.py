"""The status page in headless Chromium, on a real server: the chat streams, the plots fill, errors are told."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from latentkv.bench.load.served import Served, serving
from support.chromium import chromium, needs_chromium
from support.tiny_chat import save_chat_model

pytestmark = [pytest.mark.browser, needs_chromium]
PATIENCE_S = 60
ENTER, ESCAPE = "\ue007", "\ue00c"
KEY = "secret"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = save_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=32768, endless=True)
    with serving(str(folder), ["--cache-tokens", "32768", "--api-key", KEY, "--model-name", "tiny"]) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, served: Served) -> Any:
    """The page, freshly opened, the key given."""
    browser.get(f"{served.url}/ui")
    browser.execute_script("sessionStorage.clear()")
    browser.refresh()
    until(browser, lambda: find(browser, "#model").text == "tiny")
    find(browser, "#settings summary").click()
    find(browser, "#key").send_keys(KEY)
    return browser


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def until(browser: Any, condition: Callable[[], Any]) -> None:
    WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05).until(lambda _: condition())


def set_number(browser: Any, selector: str, value: int) -> None:
    find(browser, selector).clear()
    find(browser, selector).send_keys(str(value))


def ended(browser: Any) -> list[str]:
    return [each.text for each in browser.find_elements("css selector", "#messages .assistant:not(.live) .told")]


def test_an_answer_streams_and_the_conversation_goes_on(page: Any) -> None:
    set_number(page, "#max-tokens", 8)
    find(page, "#prompt").send_keys("hello" + ENTER)
    until(page, lambda: len(ended(page)) == 1)
    assert "8 tokens" in ended(page)[0]
    assert "longest answer reached" in ended(page)[0]
    find(page, "#prompt").send_keys("again" + ENTER)
    until(page, lambda: len(ended(page)) == 2)
    assert [each.text for each in page.find_elements("css selector", "#messages .user")] == ["hello", "again"]
    assert page.switch_to.active_element.get_attribute("id") == "prompt"
    find(page, "#clear").click()
    assert page.find_elements("css selector", "#messages .user") == []
    assert [entry["message"] for entry in page.get_log("browser")] == []


def test_escape_stops_an_answer_and_its_request(page: Any, served: Served) -> None:
    set_number(page, "#max-tokens", 30000)  # ten seconds of a model that small: longer than a key takes to arrive
    find(page, "#prompt").send_keys("for long" + ENTER)
    until(page, lambda: find(page, "#messages .assistant .text").text)
    find(page, "body").send_keys(ESCAPE)
    until(page, lambda: ended(page) == ["stopped"])
    until(page, lambda: status(served)["requests"]["live"] == 0)
    assert not find(page, "#stop").is_displayed()


def test_a_missing_key_is_asked_for(page: Any) -> None:
    find(page, "#key").clear()
    find(page, "#prompt").send_keys("hello" + ENTER)
    until(page, lambda: len(ended(page)) == 1)
    assert "a key is needed" in ended(page)[0]
    assert page.switch_to.active_element.get_attribute("id") == "key"
    assert find(page, "#prompt").get_attribute("value") == "hello"
    find(page, "#key").send_keys(KEY)
    set_number(page, "#max-tokens", 2)
    find(page, "#prompt").send_keys(ENTER)
    until(page, lambda: len(ended(page)) == 2)
    assert "2 tokens" in ended(page)[1]


def test_numbers_and_plots_are_those_of_the_server(page: Any, served: Served) -> None:
    set_number(page, "#max-tokens", 8)
    find(page, "#prompt").send_keys("hello" + ENTER)
    until(page, lambda: len(ended(page)) == 1)
    told = status(served)
    until(page, lambda: "–" not in find(page, "#latency ul").text)
    pages = [each.text for each in page.find_elements("css selector", "#pages output")]
    assert pages == [str(told["pages"][name]) for name in ("held", "cached", "free")]
    assert f"{sum(told['pages'].values())} in all" in find(page, "#pages figcaption").text
    assert find(page, "#state").text == "serving"
    assert find(page, "#running").text == "0"
    for name in ("pages", "speed", "latency", "ttft"):
        until(page, lambda name=name: len(page.find_elements("css selector", f"#{name} svg path")) >= 2)
        assert find(page, f"#{name} svg").get_attribute("aria-label")


def test_a_server_that_is_gone_is_told(page: Any) -> None:
    page.execute_script("window.fetch = async () => { throw new Error('gone'); }")
    until(page, lambda: find(page, "#problem").is_displayed())
    assert "does not answer" in find(page, "#problem").text


def test_readable_on_a_phone_and_in_the_dark(page: Any) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.execute_script(overflow) == 0
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    colours = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_other_files_are_not_served(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/ui/") as answer:
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    for name in ("ui/nothing.js", "ui/..%2f__init__.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{served.url}/{name}")


def status(served: Served) -> dict[str, Any]:
    with urllib.request.urlopen(f"{served.url}/status") as answer:
        return dict(json.load(answer))
