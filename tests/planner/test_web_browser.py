"""The page in headless Chromium, from disk and served: what it shows is what Python computes, and it stays quiet."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latentkv.planner.catalog import find_model
from latentkv.planner.memory import Deployment, most_users
from latentkv.planner.parallel import Parallel
from latentkv.planner.plan import Question, make_plan
from latentkv.planner.units import GB, in_gb_and_gib
from latentkv.planner.web.data import page_data
from latentkv.planner.web.page import page_html
from support.chromium import chromium, needs_chromium

V3, LITE = "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V2-Lite"

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTKV_HOME", str(folder / "home"))
        (folder / "plan.html").write_text(page_html(page_data()), "utf-8")
    return folder / "plan.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Any, page: Path) -> Iterator[Any]:
    if getattr(request, "param", "disk") == "disk":
        browser.get(page.as_uri())
        yield browser
    else:
        quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(page.parent)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_address[1]}/plan.html")
        yield browser
        server.shutdown()
        server.server_close()
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def type_into(browser: Any, selector: str, text: str) -> None:
    """As a reader types: select all, then the new text."""
    field = find(browser, selector)
    field.send_keys("\ue009a\ue000")
    field.send_keys(text)


def cell(browser: Any, table: str, row: str, name: str) -> str:
    text: str = find(browser, f'#{table} tbody[data-model="{V3}"] tr{row} td[data-name="{name}"]').text
    return " ".join(text.split())


def choose_only(browser: Any, model: str) -> None:
    while chosen := browser.find_elements("css selector", "#chosen-models button"):
        chosen[0].click()
    type_into(browser, "#search-models", model)
    find(browser, "#search-models").send_keys("\ue007")


@pytest.mark.parametrize("opened", ["disk", "served"], indirect=True)
def test_tables_follow_every_choice(opened: Any) -> None:
    choose_only(opened, V3)
    type_into(opened, "#context", "12,345")
    type_into(opened, "#users", "77")
    type_into(opened, "#tensor", "4")
    type_into(opened, "#data", "2")
    find(opened, "#list-formats input[value=int4]").click()
    parallel = Parallel(tensor=4, data=2)
    question = Question(
        context_tokens=12_345,
        users=77,
        formats=("bf16", "fp8", "int6", "int4"),
        memory_bytes=141 * GB,
        weights="fp8",
        deployment=Deployment(parallel=parallel),
    )
    plan = make_plan(find_model(V3), question)
    for line in plan.cache:
        row = f'.own[data-format="{line.format}"]'
        assert cell(opened, "cache", row, "bytes_per_token") == f"{line.bytes_per_token:,}"
        assert cell(opened, "cache", row, "sequence_bytes") == in_gb_and_gib(line.sequence_bytes)
    shown = opened.find_elements("css selector", "#devices tbody tr:not(.model)")
    assert len(shown) == len(plan.serving)
    for way in plan.serving:
        row = f'[data-format="{way.format}"][data-parallel="{way.parallel}"]'
        assert cell(opened, "devices", row, "weights_bytes") == in_gb_and_gib(way.need.weights)
        assert cell(opened, "devices", row, "cache_bytes") == in_gb_and_gib(way.need.cache)
        assert cell(opened, "devices", row, "most_users") == f"{way.most_users:,}"
        assert cell(opened, "devices", row, "longest_tokens") == f"{way.longest_tokens:,}"
    assert "the latent has no heads, so each of the 4 ranks keeps all 576 elements" in find(opened, "#notes").text


def test_an_address_holds_all_choices(opened: Any) -> None:
    choices = "format=int8&device=&memory=200GiB&context=8k&users=5&weights=700GB&tp=8&cp=8&page-tokens=16"
    address = f"{opened.current_url.split('#')[0]}#models={V3}&{choices}"
    opened.get("about:blank")
    opened.get(address)
    deployment = Deployment(format="int8", weights="700GB", page_tokens=16, parallel=Parallel(tensor=8, context=8))
    expected = most_users(find_model(V3), deployment, memory_bytes=200 << 30, context_tokens=8192)
    row = '[data-parallel="TP 8, CP 8"]'
    assert cell(opened, "devices", row, "most_users") == f"{expected:,}"
    type_into(opened, "#users", "6")
    assert "users=6" in opened.execute_script("return location.hash")
    assert "page-tokens=16" in opened.execute_script("return location.hash")


def test_plots_tell_the_values_of_the_table(opened: Any) -> None:
    choose_only(opened, V3)
    type_into(opened, "#context", "5000")
    first = find(opened, "#cache-plot li output").text
    assert first == cell(opened, "cache", ".own", "sequence_bytes")
    slider = find(opened, "#cache-plot input[type=range]")
    slider.send_keys("\ue013")
    assert find(opened, "#cache-plot li output").text != first
    names = ["context, tokens (k = 1,024)"] * 2
    assert [each.text for each in opened.find_elements("css selector", "figure text.name")] == names


def test_bad_input_is_one_sentence_and_keeps_the_last_answer(opened: Any) -> None:
    before = find(opened, "#cache").text
    type_into(opened, "#memory", "80 GX")
    assert find(opened, "#errors").text == 'Memory: expected a size with its unit, such as 80GiB or 80GB, got "80 GX".'
    assert find(opened, "#memory").get_attribute("aria-invalid") == "true"
    assert find(opened, "#cache").text == before
    type_into(opened, "#memory", "80GB")
    assert find(opened, "#errors").text == ""


def test_refused_models_tell_the_reason(opened: Any) -> None:
    type_into(opened, "#search-models", "GLM-5.3-Flash")
    find(opened, "#search-models").send_keys("\ue007")
    assert "index_kpool" in find(opened, "#cache td.refusal").text


def test_json_of_the_page_is_that_of_the_command(opened: Any) -> None:
    choose_only(opened, LITE)
    opened.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    find(opened, "#copy-json").click()
    [plan] = json.loads(opened.execute_script("return window.copied"))["plans"]
    assert plan["model"] == LITE
    question = Question(context_tokens=32_768, users=32, formats=("bf16", "fp8", "int6"))
    expected = make_plan(find_model(LITE), question)
    assert [line["sequence_bytes"] for line in plan["cache"]] == [line.sequence_bytes for line in expected.cache]


def test_readable_on_a_phone_and_in_the_dark(opened: Any) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(overflow) == 0
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    colour = "return getComputedStyle(document.body).backgroundColor"
    bright = opened.execute_script(colour)
    find(opened, "#theme").click()
    assert opened.execute_script(colour) != bright
