"""What a person does on the page, in a real headless Chromium: ``python tests/serve/page.py URL IMAGE FOLDER`` makes its pictures."""

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, Request, Response, Route, expect, sync_playwright


def check_page(url: str, key: str, image: Path, folder: Path, model: str = "ore", slag: str = "", pipeline: str = "") -> None:
    """Go through the page and take pictures of it: light, dark, phone; with a model of slag and a pipeline where they are served."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            for name, size, scheme in (("light", (1280, 900), "light"), ("dark", (1280, 900), "dark"), ("phone", (390, 844), "light")):
                context = browser.new_context(
                    viewport={"width": size[0], "height": size[1]},
                    color_scheme=scheme,
                    accept_downloads=True,  # type: ignore[arg-type]
                )
                page = context.new_page()
                wrong: list[str] = []
                page.on("console", lambda message, wrong=wrong: wrong.append(message.text) if message.type == "error" else None)
                page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
                page.route("**/*", _only(url, wrong))
                page.goto(url)
                _segment(page, key, image, model)
                if name == "light":
                    _downloads(page)
                    _keyboard(page)
                page.screenshot(path=folder / f"page-{name}.png", full_page=True)
                if name == "light" and slag:
                    _slag(page, slag)
                if name == "light" and pipeline:
                    _patches(page, pipeline)
                assert not [text for text in wrong if "401" not in text], wrong
                context.close()
        finally:
            browser.close()


def _only(url: str, wrong: list[str]) -> Callable[[Route], None]:
    """Lets nothing through that is not the server's."""

    def handle(route: Route) -> None:
        if route.request.url.startswith((url, "blob:", "data:")):
            route.continue_()
        else:
            wrong.append(route.request.url)
            route.abort()

    return handle


def _segment(page: Page, key: str, image: Path, model: str) -> None:
    if key:
        expect(page.get_by_role("status")).to_contain_text("API key")
        page.get_by_label("API key").fill(key)
        page.get_by_label("API key").blur()
    expect(page.locator("#model option", has_text=model)).to_have_count(1)
    page.locator("#model").select_option(model)
    page.get_by_role("button", name="Segment").click()
    expect(page.get_by_role("status")).to_contain_text("Choose an image")
    page.locator("#file").set_input_files(image)
    page.get_by_label("Millimetres per pixel").fill("0.5")
    _asked(page, "instances in")
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#plot .bar").first).to_be_attached()
    expect(page.locator("#levels")).to_contain_text("mm")
    page.locator("#shapes .instance").last.hover(force=True)
    expect(page.locator("#hover")).to_contain_text("score")


def _asked(page: Page, said: str) -> list[Response]:
    """Press the button, and wait until there is an answer; all of it comes from one version, one request after the other."""
    begun: list[Request] = []
    answers: list[Response] = []

    def answered(response: Response) -> None:
        answers.extend([response] if response.request.method == "POST" else [])
        assert len(answers) == len(begun)

    page.on("request", lambda request: begun.append(request) if request.method == "POST" else None)
    page.on("response", answered)
    button = page.get_by_role("button", name="Segment")
    button.press("Enter")
    expect(page.get_by_role("status")).to_contain_text(said, timeout=60_000)
    expect(button).to_be_focused()
    page.remove_listener("response", answered)
    assert len(answers) == len(begun) == 4
    headers = [answer.all_headers() for answer in answers]
    assert len({one["x-request-id"] for one in headers}) == len({one["x-model-version"] for one in headers}) == 1
    version = headers[0]["x-model-version"]
    assert all(f"@{version}/" in answer.url for answer in answers[1:]) or not version
    return answers


def _slag(page: Page, model: str) -> None:
    page.locator("#model").select_option(model)
    _asked(page, "classes in")
    expect(page.locator("#band")).to_have_text(re.compile(r"The band is [\d.]+ ± [\d.]+ (mm|px) high\.|\w+"))
    expect(page.locator("#slag")).to_be_visible()
    expect(page.locator("#classes tbody tr")).to_have_count(3)


def _patches(page: Page, model: str) -> None:
    page.locator("#model").select_option(model)
    page.get_by_label("refine in two stages").check()
    page.get_by_label("Patches to refine").fill("2")
    answers = _asked(page, "classes in")
    assert all("/v1/refine/" in answer.url and "patches=2" in answer.url for answer in answers)
    expect(page.locator("#shapes .patch")).to_have_count(2)
    expect(page.locator("#hover")).to_have_text("2 patches were refined.")
    document = page.evaluate("fetch(document.getElementById('get-json').href).then((answer) => answer.json())")
    areas = {one["label"]: one["area_px"] for one in document["measurements"]["areas"]}
    assert areas == {one["label"]: one["pixels"] for one in document["classes"]}  # the measurements are those of the refined answer


def _downloads(page: Page) -> None:
    answer = json.loads(page.evaluate("fetch(document.getElementById('get-json').href).then((answer) => answer.text())"))
    table = page.evaluate("fetch(document.getElementById('get-csv').href).then((answer) => answer.text())")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [int(row["area_px"]) for row in rows] == [one["area"] for one in answer["instances"]]
    with page.expect_download() as caught:
        page.get_by_role("link", name="Mask").click()
    assert Path(caught.value.path()).read_bytes().startswith(b"\x89PNG")


def _keyboard(page: Page) -> None:
    first = page.locator("#shapes .instance[tabindex='0']")
    first.focus()
    name = first.get_attribute("aria-label")
    said = page.locator("#hover").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") != name
    assert page.locator("#hover").inner_text() != said


if __name__ == "__main__":
    check_page(sys.argv[1], "", Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "losnet")
