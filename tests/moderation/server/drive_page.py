"""Drive the server's page in headless Chromium as a person would: settings on stdin, what was seen on stdout.

Runs in an environment with selenium. Input: `url`, `key`, `steps` (each `prompt`, `response`, `policy`), and
`picture`, a place for a screenshot or null. Output: for each step `badge`, `notes`, `bars` (name -> percent),
`flagged`, `is_veiled` and `is_open` (whether the text that was judged shows); and `hosts` that were asked.
"""

import json
import shutil
import sys
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

PATIENCE = 120  # seconds for one step
SEEN = """
const texts = css => [...document.querySelectorAll(css)].map(e => e.textContent);
const rows = [...document.querySelectorAll('.row')];
return {
  badge: texts('.badge')[0],
  notes: texts('.note'),
  bars: Object.fromEntries(rows.map(r => ['.name', '.value'].map(css => r.querySelector(css).textContent))),
  flagged: rows.filter(r => r.classList.contains('flagged')).map(r => r.querySelector('.name').textContent),
  is_veiled: getComputedStyle(document.getElementById('prompt')).filter.startsWith('blur'),
  is_open: [...document.querySelectorAll('details')].some(d => d.open),
};
"""
HOSTS = "return performance.getEntriesByType('resource').map(e => new URL(e.name).host)"


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Open the page and take the steps."""
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1150"):
        options.add_argument(word)
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as browser:
        wait = WebDriverWait(browser, PATIENCE)
        browser.get(task["url"])
        if task["key"]:
            wait.until(lambda b: b.find_element(By.ID, "key").is_displayed())
            browser.find_element(By.ID, "key").send_keys(task["key"])
        seen = []
        for step in task["steps"]:
            for name in ("prompt", "response"):
                field = browser.find_element(By.ID, name)
                field.clear()
                field.send_keys(step.get(name, ""))
            if "policy" in step:
                Select(browser.find_element(By.ID, "policy")).select_by_visible_text(step["policy"])
            browser.execute_script("document.getElementById('result').replaceChildren()")
            browser.find_element(By.ID, "go").click()
            wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".badge"))
            wait.until(lambda b: b.find_element(By.ID, "go").is_enabled())
            seen.append(browser.execute_script(SEEN))
        if task["picture"]:
            browser.save_screenshot(task["picture"])
        return {"steps": seen, "hosts": sorted(set(browser.execute_script(HOSTS)))}


json.dump(main(json.load(sys.stdin)), sys.stdout)
