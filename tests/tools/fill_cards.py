"""Fill Potato's cards in headless Chromium as a person would: settings on stdin, what was seen on stdout.

Runs in an environment with selenium. Input: `url`, `person`, `cards` (prompt -> question -> values),
`changes` (the same, clicked before the final answers) and `picture`, a place for a screenshot. Output:
`pages` (prompt -> the texts shown), `hosts` that resources came from, `refused` (whether a card with
nothing on it was held back), `hidden` (the questions that do not show then), `title` and `end`, the last
title. Nothing is timed: each step waits until the page is ready for it, on a slow machine for minutes.
"""

import json
import shutil
import sys
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

Answers = dict[str, list[str]]
Driver = webdriver.Chrome

PATIENCE = 180  # seconds for one step
NEXT = "#next-btn"
# while the page sets itself up, or a question slides open
PASSING = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
)
# names of Potato's own script, which drops a click on Next while it is loading
READY = "return document.readyState === 'complete' && Boolean(currentInstance) && !isLoading"
TEXTS = "return [...document.querySelectorAll('.text-display-content')].map(e => e.textContent)"
HOSTS = """
const loaded = performance.getEntriesByType('resource').map(e => e.name);
const named = [...document.querySelectorAll('[src], link[href]')].map(e => e.src || e.href);
const hosts = [...loaded, ...named].filter(u => /^https?:/.test(u)).map(u => new URL(u).hostname);
return [...new Set(hosts)]
"""
HIDDEN = """
return [...document.querySelectorAll('form.annotation-form')]
  .filter(e => getComputedStyle(e.parentElement).display === 'none').map(e => e.id)
"""
TICKED = """
const found = {};
for (const box of document.querySelectorAll('input[schema]:checked'))
  (found[box.getAttribute('schema')] ??= []).push(box.value);
return found
"""
# calls back when the element has been in one place for five frames
AT_REST = """
const [element, done] = arguments;
element.scrollIntoView({block: 'center', behavior: 'instant'});
let before = '', still = 0;
const look = () => {
  const at = JSON.stringify(element.getBoundingClientRect());
  still = at === before ? still + 1 : 0;
  before = at;
  still < 5 ? requestAnimationFrame(look) : done();
};
look()
"""


def browser() -> Driver:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # nothing but this machine can be reached: a page that needs another host is broken here
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.add_argument(offline)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(PATIENCE)
    driver.set_page_load_timeout(PATIENCE)
    return driver


def wait(driver: Driver, until: Any) -> None:
    WebDriverWait(driver, PATIENCE, poll_frequency=0.1, ignored_exceptions=PASSING).until(until)


def press(driver: Driver, selector: str) -> None:
    def try_once(_: object) -> bool:
        box = driver.find_element(By.CSS_SELECTOR, selector)
        driver.execute_async_script(AT_REST, box)
        box.click()
        return True

    wait(driver, try_once)


def tick(driver: Driver, answers: Answers) -> None:
    """Click until the questions have these answers; a box that was hit by mistake is clicked once more."""

    def is_done(_: object) -> bool:
        for name, wanted in answers.items():
            found = driver.execute_script(TICKED).get(name, [])
            several = len(driver.find_elements(By.CSS_SELECTOR, f'input[type=checkbox][schema="{name}"]')) > 0
            wrong = [value for value in found if value not in wanted and several]
            for value in [*wrong, *(value for value in wanted if value not in found)]:
                press(driver, f'input[schema="{name}"][value="{value}"]')
        ticked = driver.execute_script(TICKED)
        return all(sorted(ticked.get(name, [])) == sorted(wanted) for name, wanted in answers.items())

    wait(driver, is_done)


def take_picture(driver: Driver, path: str) -> None:
    height = driver.execute_script("return document.documentElement.scrollHeight")
    driver.set_window_size(1400, height + 150)
    driver.execute_async_script(AT_REST, driver.find_element(By.CSS_SELECTOR, NEXT))
    driver.save_screenshot(path)
    driver.set_window_size(1400, 1000)


def fill(driver: Driver, task: dict[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {"pages": {}, "hosts": [], "hidden": []}
    driver.get(task["url"])
    driver.find_element(By.NAME, "email").send_keys(task["person"])
    driver.find_element(By.CSS_SELECTOR, "form button[type=submit]").click()
    for number in range(len(task["cards"])):
        wait(driver, lambda d: d.execute_script(TEXTS)[0] not in seen["pages"] and d.execute_script(READY))
        texts = driver.execute_script(TEXTS)
        prompt = texts[0]
        seen["pages"][prompt] = texts
        seen["title"] = driver.title
        seen["hosts"] = sorted({*seen["hosts"], *driver.execute_script(HOSTS)})
        if number == 0:
            press(driver, NEXT)
            wait(driver, lambda d: d.execute_script(READY))
            seen["refused"] = driver.execute_script(TEXTS)[0] == prompt
            seen["hidden"] = driver.execute_script(HIDDEN)
        tick(driver, task["changes"].get(prompt, {}))
        tick(driver, task["cards"][prompt])
        if number == 0 and task["picture"]:
            take_picture(driver, task["picture"])
        press(driver, NEXT)  # saves first, then leaves
    wait(driver, lambda d: "Complete" in d.title)
    return seen | {"end": driver.title}


if __name__ == "__main__":
    chrome = browser()
    try:
        sys.stdout.write(json.dumps(fill(chrome, json.load(sys.stdin))))
    finally:
        chrome.quit()
