"""The web page in a real browser: what a visitor sees, and that nothing leaves the machine."""

import importlib.util
import io
import json
import shutil
import socket
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

for package in ("gradio", "playwright"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package}: make test-web installs it", allow_module_level=True)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
if BROWSER is None:
    pytest.skip(f"no browser, none of {BROWSERS}", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

from igvg_d2.visualization import build_report  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "demo" / "images" / "shapes.jpg"
NO_TARGET = "the red cross left of the circle"
TIMEOUT = 20000  # ms
expect.set_options(timeout=TIMEOUT)
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def load_script(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_script(ROOT / "dev" / "benchmark_app.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of the page, a proxy for whatever the server would send out, and its log."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        env = {**dict.fromkeys(names, address), "NO_PROXY": None, "no_proxy": None}
        env["TMPDIR"] = str(tmp_path_factory.mktemp("server"))
        with benchmark.running_app("--upload-limit", "1", env=env) as (url, read_log):
            yield url, proxy, read_log


@pytest.fixture(scope="module")
def browser(server):
    """A context of the browser with a camera; it must not ask anybody but the server."""
    asked = []
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", *CAMERA]  # root has no sandbox
        )
        permissions = ["camera", "clipboard-read", "clipboard-write"]
        context = chromium.new_context(permissions=permissions, base_url=server[0])
        context.set_default_timeout(TIMEOUT)
        context.on("request", lambda request: asked.append(request.url))
        yield context
        chromium.close()
    elsewhere = [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]
    assert asked and elsewhere == []


@pytest.fixture
def page(browser):
    """The page, newly opened."""
    page = browser.new_page()
    page.goto("/")
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    yield page
    page.close()


def upload(page, path):
    """Choose an image file, and wait until its preview is there."""
    page.locator("#photo input[type=file]").set_input_files(path)
    page.locator("#photo img").wait_for()


def ask(page, expression):
    """Type a question and press Enter."""
    page.get_by_label("What to look for").fill(expression)
    with new_overlay(page):
        page.get_by_label("What to look for").press("Enter")


@contextmanager
def new_overlay(page):
    """Waits until another overlay is shown than before."""
    source = "document.querySelector('#overlay img')?.src"
    before = page.evaluate(source)
    yield
    page.wait_for_function(f"old => {source} && {source} != old", arg=before)
    page.wait_for_function("document.querySelector('#overlay img').complete")


def overlay(page):
    """Pixels as they are on the screen, int (height, width, 3)."""
    screen = page.locator("#overlay img").screenshot()
    return np.asarray(Image.open(io.BytesIO(screen)).convert("RGB")).astype(int)


def changed(first, second):
    """Share of pixels that differ visibly."""
    return (np.abs(first - second).max(axis=2) > 30).mean()


def move(page, slider, key):
    """Set a slider of the thresholds by a key."""
    page.get_by_role("slider", name=f"for {slider}").focus()
    with new_overlay(page):
        page.keyboard.press(key)


def message(page):
    """Text of the error message; it is closed."""
    toast = page.get_by_test_id("toast-body")
    text = toast.inner_text()
    page.get_by_test_id("toast-close").click()
    expect(toast).to_have_count(0)
    return text


def save(page, button):
    """Name and content of the file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_question_layers_thresholds_and_downloads(page, server, tmp_path):
    read_log = server[2]
    upload(page, SHAPES)
    ask(page, "all of the circles")
    answer = page.locator("#answer")
    expect(answer).to_contain_text("3 targets for “all of the circles”")
    with_masks = overlay(page)
    questions = read_log().count("Answered a question")

    for layer in ("instance masks", "boxes"):
        with new_overlay(page):
            page.get_by_label(layer).uncheck()
    plain = overlay(page)
    assert changed(with_masks, plain) > 0.15
    seen = [plain]
    for layer in ("boxes", "points", "attention", "instance masks"):
        with new_overlay(page):
            page.get_by_label(layer).check()
        seen.append(overlay(page))
        assert changed(*seen[-2:]) > 0.002, layer

    for layer in ("boxes", "points", "attention"):
        with new_overlay(page):
            page.get_by_label(layer).uncheck()
    move(page, "Mask", "End")
    assert changed(overlay(page), plain) < 0.5 * changed(with_masks, plain)
    page.get_by_label("Reset").nth(1).click()
    expect(page.get_by_role("slider", name="for Mask")).to_have_value("0.5")
    move(page, "Score", "End")
    expect(answer).to_contain_text("Nothing in the image matches")
    move(page, "Score", "Home")
    expect(answer).to_contain_text("targets for “all of the circles”")

    assert read_log().count("Answered a question") == questions  # the model did not run again

    count = answer.locator("tr").count() - 1
    assert count >= 3
    name, content = save(page, "Masks")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = ["shapes_mask.png", *(f"shapes_mask_{i + 1}.png" for i in range(count))]
        assert sorted(archive.namelist()) == names
        masks = [Image.open(archive.open(member)) for member in names]
    assert name == "shapes_masks.zip"
    assert {(mask.size, mask.format) for mask in masks} == {((512, 512), "PNG")}
    name, content = save(page, "JSON")
    found = json.loads(content)
    assert name == "shapes.json" and len(found["boxes"]) == count and found["path"] == "shapes.jpg"
    name, content = save(page, "COCO")
    (tmp_path / name).write_bytes(content)
    coco = COCO(tmp_path / name)
    assert name == "coco.json" and len(coco.anns) == count
    assert coco.imgs[1]["file_name"] == "shapes.jpg"
    for annotation, mask in zip(coco.anns.values(), masks[1:], strict=True):
        assert np.array_equal(coco.annToMask(annotation), np.asarray(mask) // 255)


def test_no_target_and_the_history(page):
    upload(page, SHAPES)
    ask(page, NO_TARGET)
    answer, history = page.locator("#answer"), page.locator("#history label")
    expect(answer).to_contain_text(f"Nothing in the image matches “{NO_TARGET}” (no-target score 0")
    expect(answer).to_contain_text("The best candidate scores 0.")
    move(page, "No target", "ArrowLeft")  # from 0.99 on, which the score is not
    expect(answer).not_to_contain_text("Nothing")
    move(page, "No target", "End")
    expect(answer).to_contain_text("Nothing")
    ask(page, "all of the circles")
    expect(history).to_have_text(["all of the circles (3)", f"{NO_TARGET} (nothing)"])
    with new_overlay(page):
        history.nth(1).click()
    expect(answer).to_contain_text("Nothing in the image matches")
    with new_overlay(page):
        history.nth(0).click()
    expect(answer).to_contain_text("3 targets")
    upload(page, ROOT / "demo" / "images" / "scene.jpg")
    expect(page.locator("#history")).to_be_hidden()
    ask(page, "the orange cross")
    expect(history).to_have_text(["the orange cross (1)"])


def test_examples_camera_and_paste(page):
    with new_overlay(page):
        page.get_by_text(NO_TARGET).click()
    expect(page.locator("#answer")).to_contain_text("Nothing in the image matches")

    page.get_by_label("Remove Image").click()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#photo video')?.videoWidth > 0")
    page.get_by_label("capture photo").click()
    page.locator("#photo img:visible").wait_for()
    ask(page, "the green circle")
    expect(page.locator("#answer")).to_contain_text("“the green circle”")

    page.get_by_label("Remove Image").click()
    page.evaluate("""async () => {
            const canvas = new OffscreenCanvas(90, 60);
            canvas.getContext("2d").fillRect(10, 10, 20, 20);
            const blob = await canvas.convertToBlob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""")
    page.get_by_label("Paste from clipboard").click()
    page.locator("#photo img").wait_for()
    ask(page, "all squares")
    expect(page.locator("#answer")).to_contain_text("“all squares”")


def test_errors_are_messages_without_a_path(page, tmp_path):
    ask_button = page.get_by_role("button", name="Ask", exact=True)
    ask_button.click()
    assert "Choose an image first" in message(page)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    upload(page, tmp_path / "broken.png")
    ask_button.click()
    assert "Type what to look for" in message(page)
    page.get_by_label("What to look for").fill("the red cross")
    ask_button.click()
    text = message(page)
    assert "cannot decode the image 'broken.png'" in text
    assert "/" not in text and "Traceback" not in text
    page.get_by_label("Remove Image").click()
    (tmp_path / "large.bmp").write_bytes(bytes(1_200_000))
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "large.bmp")
    assert "exceed the maximum allowed size of 1.0 Mb" in message(page)


def test_html_in_an_expression_is_text(page):
    upload(page, SHAPES)
    hostile = "<img src=x onerror='window.ran = 1'><b>all</b> of the circles"
    ask(page, hostile)
    expect(page.locator("#answer")).to_contain_text(hostile)
    expect(page.locator("#history")).to_contain_text(hostile)
    assert "does not know" in (warning := message(page)) and "<" in warning
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("width", [400, 1300])
def test_the_page_fits_its_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    with new_overlay(page):
        page.get_by_text("all of the circles").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.locator("#overlay img")).to_be_in_viewport()


@pytest.mark.parametrize("width", [400, 1300])
def test_a_report_fits_its_window(page, tmp_path, width):
    lines = [{"iteration": i, "total_loss": 5.0 - i, "loss_ce": 1.0} for i in range(4)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    page.set_viewport_size({"width": width, "height": 900})
    page.set_content(Path(build_report(tmp_path)).read_text())
    expect(page.locator("figure.chart").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def fetch(url, content=None):
    """Status and text of an answer of the server."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, content and json.dumps(content).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("photo", ["/etc/passwd", "http://example.org/a.png", str(SHAPES)])
def test_only_uploads_are_read(server, photo):
    url, *_ = server
    assert fetch(f"{url}gradio_api/file={photo}")[0] in (403, 404, 405)
    data = [{"path": photo, "meta": {"_type": "gradio.FileData"}}, "a", None, [], 0.7, 0.5, 1]
    _, event = fetch(f"{url}gradio_api/call/ask", {"data": data})
    _, text = fetch(f"{url}gradio_api/call/ask/{json.loads(event)['event_id']}")
    assert "event: error" in text and "root:" not in text


def test_four_users_at_once_lose_no_answer(server):
    figures = benchmark.measure(server[0], users=4, requests=12)
    assert (figures["requests"], figures["lost"]) == (12, 0), figures["problems"]


def test_only_this_machine_is_served_and_nothing_is_sent_out(server):
    url, proxy, _ = server
    port = int(url.rsplit(":")[2].strip("/"))
    with socket.create_server(("127.0.0.2", port)):  # free: the server does not listen on all
        pass
    proxy.settimeout(0.1)
    with pytest.raises(TimeoutError):
        proxy.accept()
