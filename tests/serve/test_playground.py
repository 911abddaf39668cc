"""The playground in a real browser, on a real server over a real, if tiny, model."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from genrec.recommender import Recommender
from genrec.serve.app import build_app
from genrec.serve.backend import Edition
from genrec.serve.keys import KeyRing, hash_key
from genrec.serve.metrics import ServeMetrics
from genrec.serve.playground import routes
from genrec.serve.service import Service
from genrec.serve.settings import ServeSettings
from genrec.serve.torch_backend import TorchBackend

CHROMIUM = os.environ.get("GENREC_CHROMIUM") or shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium; GENREC_CHROMIUM names one"
)
SHOTS = os.environ.get("GENREC_SCREENSHOTS")


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.from_pretrained(tiny_run / "model")


class Running:
    """A server in a thread of its own."""

    def __init__(self, recommender: Recommender, adapters: Any = None, **settings: Any) -> None:
        edition = Edition(3, recommender)
        chosen, metrics = ServeSettings(**settings), ServeMetrics()
        backend = TorchBackend(edition, chosen, metrics, adapters)
        self.service = Service(edition, backend, chosen, metrics=metrics)
        app = build_app(self.service)
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="module")
def server(recommender: Recommender) -> Iterator[Running]:
    running = Running(recommender)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "console",
        lambda m: (
            faults.append(m.text) if m.type == "error" and "Failed to load" not in m.text else None
        ),
    )
    opened.on("request", lambda r: faults.append(r.url) if server.url not in r.url
              and not r.url.startswith("data:") else None)  # fmt: skip
    opened.goto(server.url)
    opened.wait_for_selector("#about:has-text('items')")
    yield opened
    context.close()
    assert not faults, "errors on the page, or requests to elsewhere"


def keep(page: Any, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(exist_ok=True, parents=True)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def add_by_keyboard(page: Any, words: str) -> None:
    page.focus("#find")
    page.keyboard.type(words)
    page.wait_for_selector("#found:not([hidden]) li[role=option]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")


def read(server: Running, path: str, **words: Any) -> Any:
    reply = httpx2.get(server.url + path, params=words, timeout=20)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_facts_items_and_codes_as_json(server: Running, recommender: Recommender) -> None:
    facts = read(server, "v1/playground")
    assert (facts["n_items"], facts["version"], facts["max_k"]) == (60, 3, 60)
    assert facts["engine"] == "torch" and facts["has_codes"] and not facts["needs_users"]
    assert facts["categories"] == sorted(recommender.catalogue.category_masks)
    title = recommender.catalogue.titles[5]
    found = read(server, "v1/items", q=title.upper(), limit=1)
    assert found["items"][0]["title"] == title
    assert len(read(server, "v1/items", sample=3)["items"]) == 3
    assert len(read(server, "v1/items", sample=100)["items"]) == 60
    top = read(server, "v1/codes")
    assert (top["n_items"], top["n_levels"]) == (60, 3)
    codes = []
    while (level := read(server, "v1/codes", prefix=".".join(codes)))["branches"][0][
        "item"
    ] is None:
        codes.append(str(level["branches"][0]["code"]))
    assert level["branches"][0]["item"]["item_id"] in recommender.item_ids


@pytest.mark.parametrize(
    ("path", "words", "status", "told"),
    [
        ("v1/codes", {"prefix": "999"}, 404, "no item's codes begin with (999,)"),
        ("v1/codes", {"prefix": "0.0.0"}, 404, "a prefix of 3 codes has nothing below it"),
        ("v1/codes", {"prefix": "-1"}, 422, "pattern"),
        ("v1/items", {"limit": "0"}, 422, "greater than or equal to 1"),
        ("playground/../keys.txt", {}, 404, "Not Found"),
        ("playground/routes.py", {}, 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_said(
    server: Running, path: str, words: dict[str, str], status: int, told: str
) -> None:
    reply = httpx2.get(server.url + path, params=words, timeout=20)
    assert reply.status_code == status
    assert told in reply.text


def test_the_beam_is_the_search_of_the_same_request(server: Running) -> None:
    history = [item["item_id"] for item in read(server, "v1/items", sample=2)["items"]]
    body = {"history": history, "k": 4, "width": 6}
    answers = httpx2.post(server.url + "v1/recommendations", json=body, timeout=20).json()
    beam = httpx2.post(server.url + "v1/beam", json=body, timeout=20).json()
    assert [len(level[0]["codes"]) for level in beam["levels"]] == [1, 2, 3]
    leaves = [prefix for prefix in beam["levels"][-1] if prefix["kept"]]
    assert [leaf["title"] for leaf in leaves] == [item["title"] for item in answers["items"]]
    assert [leaf["score"] for leaf in leaves] == pytest.approx(
        [item["score"] for item in answers["items"]], abs=1e-4
    )
    assert sum(prefix["kept"] for prefix in beam["levels"][1]) == 6


def test_pages_are_guarded_and_whole(server: Running) -> None:
    reply = httpx2.get(server.url, timeout=20)
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    for name in routes._FILES:
        assert httpx2.get(f"{server.url}playground/{name}", timeout=20).status_code == 200


@needs_browser
@pytest.mark.slow
def test_a_history_by_keyboard_and_its_recommendations(page: Any) -> None:
    add_by_keyboard(page, "a")
    add_by_keyboard(page, "e")
    assert page.locator("#history li").count() == 2
    page.keyboard.press("Enter")  # an empty search box and a history: ask
    page.wait_for_selector(".cards .item")
    assert page.locator(".cards .item").count() == 10
    assert "Answered in" in page.inner_text("#status")
    assert "catalogue version 3" in page.inner_text("#view-items")
    keep(page, "items-light")
    page.focus("#tab-items")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#view-beam .answer")
    assert page.locator("#view-beam .answer").count() >= 10
    assert page.locator("#view-beam .left").count() > 0
    keep(page, "beam-light")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#view-codes .branch")
    keep(page, "codes-light")
    page.locator("#view-codes .branch button").first.click()
    page.wait_for_selector("#view-codes .crumbs button:nth-child(2)")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    keep(page, "codes-dark")
    page.click("#tab-items")
    keep(page, "items-dark")


@needs_browser
@pytest.mark.slow
def test_faults_are_shown_in_words(page: Any) -> None:
    page.click("text=Recommend")
    page.wait_for_selector("#fault:not([hidden])")
    assert "The history is empty" in page.inner_text("#fault")
    page.click("#surprise")
    page.wait_for_selector("#history li:nth-child(3)")
    page.fill("#category", "no such thing")
    with page.expect_response(lambda reply: reply.status == 422):
        page.click("text=Recommend")
    page.wait_for_selector("#fault:has-text('no item has these categories')")
    keep(page, "fault")


@needs_browser
@pytest.mark.slow
def test_a_filter_and_a_walk_from_an_answer_to_its_codes(page: Any) -> None:
    page.click("#surprise")
    page.wait_for_selector("#history li:nth-child(3)")
    category = page.evaluate("document.querySelector('#categories option').value")
    page.fill("#category", category)
    page.fill("#k", "3")
    page.click("text=Recommend")
    page.wait_for_selector(".cards .item")
    sid = page.locator(".item .sid").first.inner_text()
    page.locator(".item .sid").first.click()
    page.wait_for_selector("#view-codes .branch")
    crumbs = page.locator(".crumbs button").all_inner_texts()
    assert sid.startswith("".join(crumbs[1:]))
    before = page.locator("#history li").count()
    page.locator(".branch button").first.click()
    assert page.locator("#history li").count() == before + 1


@needs_browser
@pytest.mark.slow
def test_on_a_phone_nothing_is_cut_off(browser: Any, server: Running) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    page = context.new_page()
    page.goto(server.url)
    page.tap("#surprise")
    page.wait_for_selector("#history li:nth-child(3)")
    page.tap("text=Recommend")
    page.wait_for_selector(".cards .item")
    for tab in ("items", "beam", "codes"):
        page.tap(f"#tab-{tab}")
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
        keep(page, f"phone-{tab}")
    context.close()


class Bent:
    """An "adapter" that turns the head's rows around, so that its list is another one."""

    names = ("games",)

    def __init__(self, model: Any) -> None:
        self._layer = model.get_decoder().layers[-1].mlp.down_proj

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        if name is None:
            yield
            return
        self._layer.weight.data.neg_()
        try:
            yield
        finally:
            self._layer.weight.data.neg_()


@needs_browser
@pytest.mark.slow
def test_two_adapters_side_by_side(browser: Any, tiny_run: Path) -> None:
    own = Recommender.from_pretrained(tiny_run / "model")
    running = Running(own, Bent(own.engine.model))  # type: ignore[attr-defined]
    try:
        page = browser.new_page()
        page.goto(running.url)
        page.wait_for_selector("#adapters:not([hidden])")
        page.select_option("#adapter-b", "games")
        page.click("#surprise")
        page.wait_for_selector("#history li:nth-child(3)")
        page.click("text=Recommend")
        page.wait_for_selector(".lists section:nth-child(2) .item")
        heads = page.locator(".lists h3:has-text('in both')").all_inner_texts()
        assert [head.split(":")[0] for head in heads] == ["as trained", "games"]
        n_shared = int(heads[0].split(": ")[1].split(" of ")[0])
        assert page.locator(".item.shared").count() == 2 * n_shared
        keep(page, "compare")
        page.close()
    finally:
        running.stop()


@needs_browser
@pytest.mark.slow
def test_a_server_with_keys_asks_for_one(browser: Any, recommender: Recommender) -> None:
    running = Running(recommender, keys=KeyRing((("tester", hash_key("the-key")),)))
    try:
        page = browser.new_page()
        page.goto(running.url)
        page.wait_for_selector("#key-form:not([hidden])")
        keep(page, "key")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", "the-key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#about:has-text('60 items')")
        page.close()
    finally:
        running.stop()
