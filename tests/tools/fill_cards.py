"""Fill Potato's cards in headless Chromium as a person would: settings on stdin, what was seen on stdout.

Runs in an environment with selenium. Input: `url`, `person`, `cards` (prompt -> question -> values),
`changes` (the same, clicked before the final answers) and `picture`, a place for a screenshot. Output:
`pages` (prompt -> the texts shown), `hosts` that resources came from, `refused` (whether a card with
nothing on it was held back), `hidden` (the questions that do not show then), `title` and `end`, the last
title.
"""

import json
import shutil
import sys
import time
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

NEXT = "#next-btn"
# while the page sets itself up, or a question slides open
PASSING = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
SAVED_AFTER = 1.2  # Potato waits half a second after a click before it saves
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


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # nothing but this machine can be reached: a page that needs another host is broken here
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.add_argument(offline)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def press(driver: webdriver.Chrome, selector: str) -> None:
    def try_once(_: object) -> bool:
        box = driver.find_element(By.CSS_SELECTOR, selector)
        driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", box)
        time.sleep(0.4)  # what was hidden slides open
        box.click()
        return True

    WebDriverWait(driver, 20, ignored_exceptions=PASSING).until(try_once)


def click(driver: webdriver.Chrome, answers: dict[str, list[str]]) -> None:
    for name, values in answers.items():
        for value in values:
            press(driver, f'input[schema="{name}"][value="{value}"]')


def fill(driver: webdriver.Chrome, task: dict[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {"pages": {}, "hosts": [], "hidden": []}
    driver.get(task["url"])
    driver.find_element(By.NAME, "email").send_keys(task["person"])
    driver.find_element(By.CSS_SELECTOR, "form button[type=submit]").click()
    for number in range(len(task["cards"])):
        WebDriverWait(driver, 20).until(
            lambda d: (
                d.execute_script("return document.readyState") == "complete"
                and d.execute_script(TEXTS)
                and d.execute_script(TEXTS)[0] not in seen["pages"]
            )
        )
        time.sleep(0.5)  # the page sets its questions up
        texts = driver.execute_script(TEXTS)
        prompt = texts[0]
        seen["pages"][prompt] = texts
        seen["title"] = driver.title
        seen["hosts"] = sorted({*seen["hosts"], *driver.execute_script(HOSTS)})
        if number == 0:
            press(driver, NEXT)
            time.sleep(1)
            seen["refused"] = driver.execute_script(TEXTS)[0] == prompt
            seen["hidden"] = driver.execute_script(HIDDEN)
        click(driver, task["changes"].get(prompt, {}))
        click(driver, task["cards"][prompt])
        if number == 0 and task["picture"]:
            height = driver.execute_script("return document.documentElement.scrollHeight")
            driver.set_window_size(1400, height + 150)
            time.sleep(0.5)
            driver.save_screenshot(task["picture"])
            driver.set_window_size(1400, 1000)
        time.sleep(SAVED_AFTER)
        press(driver, NEXT)
    WebDriverWait(driver, 20).until(lambda d: "Complete" in d.title)
    return seen | {"end": driver.title}


if __name__ == "__main__":
    chrome = browser()
    try:
        sys.stdout.write(json.dumps(fill(chrome, json.load(sys.stdin))))
    finally:
        chrome.quit()
