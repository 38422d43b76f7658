"""The status page as a person sees it: a real Chromium, Airflow's own login, light and dark, mouse and keyboard."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Frame, Page, expect, sync_playwright

from stack.airflow_api import AirflowApi
from stack.prerequisites import find_chromium
from tests.processes import await_true

ROOT = Path(__file__).parents[2]
DAG, TABLE = "coldchain_offload", "bronze_trades_kraken"
SCREENSHOTS = ROOT / "build" / "screenshots"
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is missing: sudo apt-get install chromium"),
]


@pytest.fixture(scope="module")
def api(api: AirflowApi) -> AirflowApi:
    """Offload one table: the page then has something to show."""
    api.patch(f"/dags/{DAG}", {"is_paused": False})
    run_id = api.trigger(DAG, {"tables": [TABLE]})
    deadline = time.monotonic() + 240
    while (found := api.run(DAG, run_id)["state"]) not in ("success", "failed"):
        assert time.monotonic() < deadline, "the run did not end"
        time.sleep(1)
    assert found == "success"
    return api


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium: nothing is downloaded."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, airflow: dict[str, str], api: AirflowApi) -> Iterator[Page]:
    """Somebody who has logged in by Airflow's own form; an error of the page's script fails the test."""
    context = browser.new_context(viewport={"width": 1500, "height": 900}, base_url=airflow["AIRFLOW_URL"])
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto("/auth/login/")
    opened.get_by_label("Username").fill(airflow["AIRFLOW_USER"])
    opened.get_by_label("Password", exact=False).first.fill(airflow["AIRFLOW_PASSWORD"])
    opened.keyboard.press("Enter")
    opened.wait_for_url(lambda url: "/auth/" not in url, timeout=60_000)
    yield opened
    context.close()
    assert errors == []


def picture(page: Page, name: str) -> None:
    """Keep a screenshot."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def in_frame(page: Page) -> Frame:
    """Return the frame in which Airflow shows the page."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for frame in page.frames[1:]:
            if "/coldchain/" in frame.url:
                return frame
        page.wait_for_timeout(200)
    raise AssertionError([frame.url for frame in page.frames])


@pytest.mark.parametrize("route", ["/", "/tables/x", "/api/tables", "/api/tables/x", "/metrics", "/nonsense"])
def test_without_a_login_there_is_nothing(browser: Browser, airflow: dict[str, str], route: str) -> None:
    context = browser.new_context()
    answer = context.request.get(f"{airflow['AIRFLOW_URL']}/coldchain{route}")
    assert answer.status == 401
    assert TABLE not in answer.text()
    context.close()


def test_the_navigation_leads_to_it_and_its_links_lead_out_of_the_frame(page: Page, airflow: dict[str, str]) -> None:
    page.goto("/plugin/coldchain")
    frame = in_frame(page)
    frame.get_by_role("link", name=TABLE, exact=True).click()
    frame.get_by_role("heading", name=TABLE).wait_for()
    picture(page, "in-airflow")
    frame.get_by_role("link", name="the last run").click()
    page.wait_for_url(f"**/dags/{DAG}/runs/**", timeout=30_000)
    assert page.locator("iframe").count() == 0


def test_airflow_s_menu_names_it(page: Page) -> None:
    page.goto("/")
    expect(page.locator("body")).to_contain_text("Coldchain", timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_in_light_and_dark(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for name, route in (("overview", "/coldchain/"), ("table", f"/coldchain/tables/{TABLE}")):
        page.goto(route)
        picture(page, f"{name}-{scheme}")
        faint = page.evaluate(CONTRAST)
        assert faint == [], "text whose contrast is below 4.5"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 23, 30)"}[scheme]


# Every element with text of its own against the nearest ground behind it: WCAG's ratio.
CONTRAST = """() => {
  const parse = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return parts.length > 3 && parts[3] === 0 ? null : parts;
  };
  const linear = (value) => value <= 0.03928 * 255 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const found = [];
  for (const element of document.querySelectorAll("body *:not(script):not(style):not(svg *):not(option)")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility()) continue;
    let ground = null;
    for (let behind = element; behind && !ground; behind = behind.parentElement)
      ground = parse(getComputedStyle(behind).backgroundColor);
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground || [255, 255, 255])];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName} ${ratio.toFixed(2)}: ${element.textContent.trim().slice(0, 40)}`);
  }
  return found;
}"""


def test_the_keyboard_is_enough(page: Page) -> None:
    page.goto("/coldchain/")
    stops = []
    for _ in range(14):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("(() => { const e = document.activeElement, s = getComputedStyle(e);"
                                   "return [e.textContent.trim().slice(0, 30) || e.name || e.tagName,"
                                   "s.outlineStyle !== 'none' || parseFloat(s.strokeWidth) >= 3]; })()"))  # fmt: skip
    names = [name for name, _ in stops]
    assert names[0] == "Skip to the content"
    assert "Coldchain" in names[1]
    assert names.index("q") < names.index("Show")
    assert all(is_visible for _, is_visible in stops), f"a stop without a visible focus: {stops}"
    page.keyboard.press("Home")
    # A strip is one stop; arrows move along it, and what a piece stands for is said.
    strip = page.locator("[data-strip]").first
    strip.locator("rect[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    said = page.locator("#said").text_content()
    assert said == strip.locator("rect").nth(1).get_attribute("aria-label")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == strip.locator(
        "rect"
    ).last.get_attribute("aria-label")
    # The skip link works.
    page.goto("/coldchain/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("route", ["/coldchain/", f"/coldchain/tables/{TABLE}", "/coldchain/tables/nobody"])
def test_a_screen_reader_finds_its_way(page: Page, route: str) -> None:
    page.goto(route)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    assert page.get_by_role("navigation").count() >= 1
    assert page.get_by_role("heading", level=1).count() == 1
    unnamed = page.evaluate("""() => [
        ...[...document.querySelectorAll("table")].filter((t) => !t.caption || !t.caption.textContent.trim()),
        ...[...document.querySelectorAll("th")].filter((h) => !h.scope),
        ...[...document.querySelectorAll("input, select")].filter((i) => !i.labels.length),
        ...[...document.querySelectorAll("[role=group], [role=region], [role=img]")].filter((e) => !e.ariaLabel),
        ...[...document.querySelectorAll("a, button")].filter((e) => !e.textContent.trim()),
    ].map((e) => e.outerHTML.slice(0, 100))""")
    assert unnamed == []
    words = page.locator(".badge").all_text_contents()
    assert all(len(" ".join(each.split())) > 3 for each in words), "a state is a word, not a colour"


def test_nothing_comes_from_elsewhere(page: Page, airflow: dict[str, str]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for route in ("/coldchain/", f"/coldchain/tables/{TABLE}"):
        page.goto(route)
    assert asked
    assert all(url.startswith(airflow["AIRFLOW_URL"]) for url in asked), asked


def test_a_login_opens_the_metrics(page: Page, airflow: dict[str, str]) -> None:
    answer = page.context.request.get("/coldchain/metrics")
    assert answer.status == 200
    (line,) = [
        each
        for each in answer.text().splitlines()
        if each.startswith(f'coldchain_rows_published_total{{table="{TABLE}"')
    ]
    assert float(line.split()[1]) > 0


def test_a_scheduled_run_that_misses_its_deadline_is_said_by_airflow_alone(api: AirflowApi, state: Path) -> None:
    """Its limit is a minute after the start of its interval, which lies a quarter of an hour back: see conftest.py."""
    said = rf"{DAG} run scheduled__\S+ has not ended 1 minutes after the start of its interval"

    def is_said() -> bool:
        logs = (path for path in state.rglob("*") if "triggerer" in str(path) and path.is_file())
        return any(re.search(said, path.read_text(errors="replace")) for path in logs)

    await_true(is_said, "the triggerer to say that a scheduled run is late")
    assert api.get(f"/dags/{DAG}/dagRuns", run_type=["scheduled"])["total_entries"] > 0


def test_the_form_triggers_a_run(page: Page, api: AirflowApi) -> None:
    page.goto(f"/coldchain/tables/{TABLE}")
    page.get_by_label("Mode").select_option("plan")
    page.get_by_role("button", name="Trigger").click()
    said = page.locator("#run output")
    expect(said).to_contain_text("is queued", timeout=15_000)
    run = api.run(DAG, (said.text_content() or "").split()[1])
    assert run["conf"]["tables"] == [TABLE]
    assert run["conf"]["mode"] == "plan"
    # Airflow's own refusal is shown as it is.
    page.evaluate("document.getElementById('run').dataset.table = 'nonsense'")
    page.get_by_role("button", name="Trigger").click()
    expect(said).to_contain_text("Airflow refused (4", timeout=15_000)
