"""The page in headless Chromium: no errors, filters, slider and keys work, nothing overflows at any width."""

import shutil

import pytest

from misc.run import outputs
from tests.report_mini import finished, page_of

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"),
]


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The report of a tiny run."""
    folder = tmp_path_factory.mktemp("browser")
    args = finished(folder, "--shapes_train", "30", "--limit", "30")
    (folder / "report.html").write_text(page_of(args, outputs.metrics(args)))
    return folder / "report.html"


@pytest.fixture
def page(driver, path):
    show(driver, 1400, "light")
    driver.get(path.as_uri())
    yield driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []


def show(driver, width, scheme):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def shown(driver):
    return [card.get_attribute("data-name") for card in find(driver, "#cards .card") if card.is_displayed()]


def value(driver, selector, style):
    return driver.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, style
    )


def test_pictures_load(page):
    page.execute_script("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    broken = page.execute_async_script(
        "const done = arguments[0], images = [...document.images];"
        "Promise.all(images.map(image => image.decode().then(() => 0, () => 1))).then(done)"
    )
    assert len(broken) > 100 and sum(broken) == 0


def test_filters(page):
    every = shown(page)
    find(page, '[data-kind="show"] [data-value="worst"]')[0].click()
    worst = shown(page)
    assert len(worst) == 6 < len(every)
    chosen = find(page, '[data-kind="class"] button')[1]
    chosen.click()
    index = chosen.get_attribute("data-value")
    cards = [card for card in find(page, "#cards .card") if card.get_attribute("data-name") in worst]
    of_class = [card for card in cards if index in card.get_attribute("data-classes").split()]
    assert shown(page) == [card.get_attribute("data-name") for card in of_class] != worst
    for kind in ("show", "class"):
        find(page, f'[data-kind="{kind}"] button')[0].click()
    assert shown(page) == every


def test_slider_and_keyboard(page):
    assert value(page, ".layer", "opacity") == "0.75"
    (slider,) = find(page, "#fade")
    slider.send_keys(webdriver.Keys.HOME)
    assert find(page, ".slider output")[0].text == "0%" and value(page, ".layer", "opacity") == "0"
    keys, names = webdriver.Keys, shown(page)
    page.execute_script("document.querySelector('#cards .card').focus()")

    def press(key):
        page.switch_to.active_element.send_keys(key)

    press(keys.ENTER)
    assert find(page, "dialog[open] h3")[0].text == names[0]
    press(keys.ARROW_RIGHT)
    assert find(page, "dialog[open] h3")[0].text == names[1]
    press(keys.ESCAPE)
    assert not find(page, "dialog[open]")
    assert page.switch_to.active_element.get_attribute("data-name") == names[1]
    find(page, ".example .tile")[0].click()
    assert find(page, "dialog[open] h3")[0].text == find(page, ".example h3")[0].text


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)")])
def test_light_and_dark(page, scheme, paper):
    show(page, 1400, scheme)
    assert value(page, "body", "backgroundColor") == paper
    curve = {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}[scheme]
    assert value(page, ".chart svg path[style*='--cam']", "stroke") == curve  # the curves follow


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_nothing_overflows(page, width):
    show(page, width, "light")
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    for selector in (".headline", ".first", ".chart", ".scroll", ".controls", ".card"):
        for element in find(page, selector):
            assert element.rect["x"] >= 0 and element.rect["x"] + element.rect["width"] <= width, selector
    assert min(tile.size["width"] for tile in find(page, ".card:not([hidden]) .tile")) >= 80


def test_essentials_without_javascript(driver, page, path):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(path.as_uri())
        assert not find(driver, "#controls")[0].is_displayed()
        assert len(shown(driver)) > 15 and find(driver, "#stages td")[0].text and find(driver, ".chart svg path")
        webdriver.ActionChains(driver).move_to_element(find(driver, ".card .tile")[1]).pause(0.4).perform()
        assert float(value(driver, ".card .layer", "opacity")) < 0.2  # pointing at a picture shows what is under it
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
