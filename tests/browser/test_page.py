"""The demo page, used as a person would: in a browser, with photos.

The service behind it is a stub with canned answers. The real service is tested elsewhere, in tests/serving.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from waiting import LIMIT

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = api.expect
expect.set_options(timeout=LIMIT * 1000)
ROLES = ("champion", "challenger")


def bars(page: Any, role: str) -> Any:
    return page.locator(f"#{role} .bars tr")


@pytest.mark.parametrize("role", ROLES)
def test_a_photo_gets_a_bar_for_every_class_of_both_models(page, stub, choose, role):
    choose()
    expect(bars(page, role)).to_have_count(len(stub.classes))
    expect(bars(page, role)).to_contain_text([re.compile(r"\d\.\d%")] * len(stub.classes))


def test_the_bars_stand_in_the_models_order(page, stub, choose):
    choose()
    expect(page.locator("#champion .best")).to_be_visible()
    expect(bars(page, "champion").locator("th")).to_contain_text(list(stub.classes))


def test_a_bar_is_as_long_as_its_share(page, choose):
    choose()
    expect(page.locator("#challenger .best")).to_contain_text("65.0%")
    fill, track = (page.locator(f"#challenger .best .{part}") for part in ("fill", "track"))
    page.evaluate("Promise.all(document.getAnimations().map(animation => animation.finished))")
    assert fill.bounding_box()["width"] == pytest.approx(0.65 * track.bounding_box()["width"], abs=1)


@pytest.mark.parametrize(("role", "best"), [("champion", "ship"), ("challenger", "airplane")])
def test_only_the_best_class_stands_out(page, choose, role, best):
    choose()
    expect(page.locator(f"#{role} .best th")).to_have_text(f"{best} (the best)")


@pytest.mark.parametrize(("role", "names"), [("champion", ["ship"]), ("challenger", ["airplane", "ship"])])
def test_the_prediction_set_is_shown_with_its_coverage(page, choose, role, names):
    choose()
    expect(page.locator(f"#{role} .set li")).to_have_text(["95% set:", *names])


def test_of_a_large_prediction_set_the_first_classes_are_shown(page, stub, choose):
    stub.answers["champion"]["prediction_set"] = [f"class {number}" for number in range(40)]
    choose()
    expect(page.locator("#champion .set li")).to_have_count(14)
    expect(page.locator("#champion .set")).to_contain_text("and 28 more")


def test_a_photo_unlike_the_training_images_is_said_so(page, stub, choose):
    stub.answers["champion"]["unfamiliar"] = True
    choose()
    sentence = "This photo is unlike the champion's training images. Its answer may mean nothing."
    expect(page.get_by_role("status")).to_contain_text(sentence)


def test_a_photo_unlike_the_training_images_of_both_models_is_said_once(page, stub, choose):
    stub.answers["champion"]["unfamiliar"] = stub.answers["challenger"]["unfamiliar"] = True
    choose()
    sentence = "This photo is unlike the training images. The answers may mean nothing."
    expect(page.locator("#unfamiliar")).to_have_text(sentence)


def test_the_warning_goes_with_the_photo(page, stub, choose):
    stub.answers["champion"]["unfamiliar"] = True
    choose()
    expect(page.locator("#unfamiliar")).to_be_visible()
    stub.answers["champion"]["unfamiliar"] = False
    choose()
    expect(page.locator("#unfamiliar")).to_be_hidden()


def test_a_version_of_an_earlier_release_has_neither_set_nor_notice(page, stub, choose):
    stub.answers["champion"] |= {"coverage": None, "prediction_set": None, "unfamiliar": None}
    choose()
    expect(page.locator("#champion .best")).to_be_visible()
    expect(page.locator("#champion .set")).to_have_count(0)
    expect(page.locator("#unfamiliar")).to_be_hidden()


@pytest.mark.parametrize(("role", "version"), [("champion", "7"), ("challenger", "6")])
def test_each_answer_has_its_models_version(page, choose, role, version):
    choose()
    expect(page.locator(f"#{role} .best")).to_be_visible()
    expect(page.locator(f"#{role} .which")).to_contain_text(f"version {version}")


def test_the_answer_is_said_in_one_sentence(page, choose):
    choose()
    status = page.get_by_role("status")
    expect(status).to_contain_text("They differ: the champion says ship (91.3%), the challenger airplane (65.0%).")


def test_the_time_it_took_is_shown(page, choose):
    choose()
    expect(page.locator("#latency")).to_have_text(re.compile(r"^[\d]+ ms"))


def test_the_photo_is_shown(page, choose, picture):
    choose(picture(48))
    expect(page.locator("#photo-size")).to_have_text("48 × 48 pixels")
    expect(page.get_by_alt_text("Your photo", exact=True)).to_be_visible()


def test_what_the_network_sees_is_shown_enlarged_in_its_own_pixels(page, choose):
    choose()
    seen = page.get_by_alt_text("Your photo as the network sees it")
    expect(seen).to_be_visible()
    assert seen.evaluate("image => image.naturalWidth") == 32
    assert seen.bounding_box()["width"] > 64
    expect(seen).to_have_css("image-rendering", "pixelated")


def test_the_file_itself_is_sent(page, stub, choose, picture):
    choose()
    expect(page.locator("#input")).to_be_visible()
    assert [path for path, _ in stub.posted] == ["/compare", "/input"]
    assert all(picture() in body and b'name="image"' in body for _, body in stub.posted)


def test_a_pasted_photo_is_sent(page, stub, picture):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async bytes => navigator.clipboard.write(
            [new ClipboardItem({"image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})})])""",
        list(picture()),
    )
    page.keyboard.press("Control+V")
    expect(page.locator("#champion .best")).to_be_visible()
    assert b"\x89PNG" in stub.posted[0][1]


@pytest.mark.parametrize("place", ["#drop", "body"])
def test_a_dropped_photo_is_sent(page, stub, picture, place):
    dropped = page.evaluate_handle(
        """bytes => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([new Uint8Array(bytes)], "photo.png", {type: "image/png"}));
            return dropped;
        }""",
        list(picture()),
    )
    page.dispatch_event(place, "drop", {"dataTransfer": dropped})
    expect(page.locator("#champion .best")).to_be_visible()
    assert picture() in stub.posted[0][1]


@pytest.mark.parametrize("term", ["7", "pretrained", "cifar10_10m", "94.59% of 10,000 test images", "d" * 64, "c" * 40])
def test_the_card_tells_where_the_model_comes_from(page, term):
    expect(page.locator("#champion-card dd").get_by_text(term, exact=True)).to_be_visible()


@pytest.mark.parametrize("role", ROLES)
def test_the_card_has_the_verdicts_reason(page, role):
    expect(page.locator(f"#{role}-card")).to_contain_text(f"The reason of the {role}.")


def test_the_title_is_the_models_name(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("cifar10-mobilenet")
    expect(page).to_have_title("cifar10-mobilenet")


@pytest.mark.parametrize("place", ["#challenger", "#challenger-card"])
def test_a_missing_challenger_is_said(page, stub, choose, place):
    stub.models["challenger"] = stub.answers["challenger"] = None
    page.reload()
    choose()
    expect(page.locator("#champion .best")).to_be_visible()
    expect(page.locator(place)).to_contain_text("There is no challenger.")


def test_new_models_behind_the_page_are_noticed(page, stub, choose):
    expect(page.locator("#champion-card")).to_contain_text("7")
    stub.models["champion"]["version"] = stub.answers["champion"]["model_version"] = "8"
    choose()
    expect(page.locator("#champion-card dd").first).to_have_text("8")


def test_a_refusal_is_shown_as_the_services_sentence(page, stub, choose):
    choose(b"hello", "notes.txt")
    expect(page.get_by_role("alert")).to_have_text(stub.not_an_image)


def test_a_refusal_leaves_no_earlier_answer(page, choose):
    choose()
    expect(page.locator(".best")).to_have_count(2)
    choose(b"hello", "notes.txt")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator(".best")).to_have_count(0)
    expect(page.locator("#input")).to_be_hidden()


def test_a_photo_after_a_refusal_takes_the_error_away(page, choose):
    choose(b"hello", "notes.txt")
    expect(page.get_by_role("alert")).to_be_visible()
    choose()
    expect(page.locator("#champion .best")).to_be_visible()
    expect(page.locator("#error")).to_be_hidden()


def test_a_service_that_is_gone_is_said(page, stub, choose):
    expect(page.locator("#card")).to_be_visible()
    stub.broken = True
    choose()
    expect(page.get_by_role("alert")).to_have_text("The service cannot be reached. See that it runs, and try again.")


def test_while_it_waits_the_page_says_so(page, stub, choose):
    stub.delays = [1]
    choose()
    expect(page.get_by_role("status")).to_contain_text("Waiting")
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false")


def test_a_new_photo_takes_the_earlier_answer_away_at_once(page, stub, choose, picture):
    choose()
    expect(page.locator(".best")).to_have_count(2)
    stub.delays = [2]
    choose(picture(colour="red"))
    expect(page.get_by_role("status")).to_contain_text("Waiting")
    assert page.locator(".best").count() == 0


def test_the_older_of_two_photos_is_never_answered(page, stub, choose, picture):
    stub.delays = [1, 0]
    choose()
    while not stub.posted:
        page.wait_for_timeout(20)
    stub.answers["champion"]["class"] = "frog"  # what the stub says of the first photo, late, is still a ship
    choose(picture(colour="red"))
    expect(page.locator("#champion .best")).to_contain_text("frog")
    page.wait_for_timeout(1500)
    expect(page.locator("#champion .best")).to_contain_text("frog")


def test_it_works_with_the_keyboard_alone(page, picture, tmp_path: Path):
    (tmp_path / "photo.png").write_bytes(picture())
    # Playwright tells the browser that it waits for the dialogue without waiting for it to hear: Enter comes later.
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        expect(page.locator("#file")).to_be_focused()
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "photo.png")
    expect(page.locator("#champion .best")).to_be_visible()


def test_the_focus_is_seen(page):
    page.keyboard.press("Tab")
    expect(page.locator("#drop")).to_have_css("outline-style", "solid")


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_scrolls_sideways(page, choose, width):
    page.set_viewport_size({"width": width, "height": 740})
    choose()
    expect(page.locator("#input")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [360, 700, 1041])
def test_a_classs_name_stands_on_one_line(page, choose, width):
    page.set_viewport_size({"width": width, "height": 740})
    choose()
    expect(page.locator(".best")).to_have_count(2)
    assert all(name.bounding_box()["height"] < 40 for name in page.locator(".bars th").all())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page, choose, scheme):
    page.emulate_media(color_scheme=scheme)
    choose(b"hello", "notes.txt")
    expect(page.get_by_role("alert")).to_be_visible()
    choose()
    expect(page.locator("#input")).to_be_visible()
    page.evaluate("complain(new Complaint('An error beside an answer.'))")
    faint = page.evaluate(
        """() => {
            const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
            const luminance = colour => numbers(colour).slice(0, 3).map(value => value / 255)
                .map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4)
                .reduce((sum, value, index) => sum + value * [.2126, .7152, .0722][index], 0);
            const behind = element => {
                const colour = getComputedStyle(element).backgroundColor;
                return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
            };
            const contrast = element => {
                const [low, high] = [getComputedStyle(element).color, behind(element)].map(luminance)
                    .sort((one, other) => one - other);
                return (high + .05) / (low + .05);
            };
            const texts = [...document.body.querySelectorAll("*")].filter(element => element.checkVisibility() &&
                [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
            return texts.filter(element => contrast(element) < 4.5).map(element => element.outerHTML);
        }"""
    )
    assert faint == []


def test_dark_mode_is_dark(page):
    page.emulate_media(color_scheme="dark")
    expect(page.locator("body")).to_have_css("background-color", "rgb(18, 22, 27)")


def test_no_request_goes_to_another_host(page, stub, choose):
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    page.reload()
    choose()
    expect(page.locator("#input")).to_be_visible()
    abroad = [url for url in asked if not url.startswith(("blob:", "data:")) and not url.startswith(stub.address)]
    assert abroad == []
    assert {urlsplit(url).path for url in asked if url.startswith("http")} == {"/", "/model", "/compare", "/input"}


def test_the_browser_would_refuse_another_host(page, stub):
    assert page.evaluate("fetch('http://127.0.0.1:9/').catch(error => 'refused')") == "refused"
    assert "connect-src 'self'" in stub.html


def test_a_name_with_markup_is_shown_as_text(page, stub, choose):
    name = "<img src=x onerror=alert(1)>"
    for document in (stub.models["champion"], stub.answers["champion"]):
        document["name" if "name" in document else "class"] = name
    stub.answers["champion"]["probabilities"] = {name: 1.0}
    page.reload()
    choose()
    expect(page.locator("#champion .best th")).to_contain_text(name)
    expect(page.locator("h1")).to_have_text(name)


def test_a_service_with_a_token_asks_for_it(page, stub):
    stub.token = "secret"
    page.reload()
    expect(page.get_by_role("alert")).to_have_text(stub.unauthorized)
    expect(page.get_by_label("Key (bearer token)")).to_be_focused()


def test_the_photo_that_waited_for_the_token_is_sent(page, stub, choose):
    enter(page, stub, choose, "secret")
    expect(page.locator("#champion .best")).to_be_visible()
    expect(page.locator("#door")).to_be_hidden()


def test_a_refusal_that_comes_after_the_token_leaves_the_token(page, stub, choose):
    held = []
    page.route("**/model", lambda route: route.continue_() if held else held.append(route))
    page.reload(wait_until="commit")
    enter(page, stub, choose, "secret")
    expect(page.locator("#champion .best")).to_be_visible()
    with page.expect_request("**/model"):  # asked again, with the token
        held[0].fulfill(status=401, json={"error": {"message": stub.unauthorized}})
    expect(page.locator("#card")).to_be_visible()
    expect(page.locator("#door")).to_be_hidden()
    expect(page.locator("#error")).to_be_hidden()


def test_a_wrong_token_is_asked_for_again(page, stub, choose):
    enter(page, stub, choose, "wrong")
    expect(page.get_by_role("alert")).to_have_text(stub.unauthorized)
    expect(page.get_by_label("Key (bearer token)")).to_have_value("")


def test_a_token_outlives_the_page_but_not_the_tab(page, stub, choose):
    enter(page, stub, choose, "secret")
    expect(page.locator("#champion .best")).to_be_visible()
    page.reload()
    expect(page.locator("#card")).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_token_can_be_forgotten(page, stub, choose):
    enter(page, stub, choose, "secret")
    expect(page.locator("#champion .best")).to_be_visible()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("sessionStorage.length") == 0


def enter(page: Any, stub: Any, choose: Any, token: str) -> None:
    """Send a photo to a service that wants the token 'secret', and give it this one when the page asks."""
    stub.token = "secret"
    choose()
    page.get_by_label("Key (bearer token)").fill(token)
    page.keyboard.press("Enter")
