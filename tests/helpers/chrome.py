"""A headless Chromium from the system, driven by selenium, for the tests of what a reader sees.
Nothing is downloaded.
"""

import base64
import json
import shutil

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def start(profile):
    """A driver with a fresh profile. Fails, and does not skip, where there is no browser: these
    tests were asked for.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        absent = " and ".join(
            name for name, found in (("chromium", browser), ("chromedriver", driver)) if not found
        )
        pytest.fail(
            f"{absent} not found: the report's browser tests need Debian's packages chromium and "
            'chromium-driver; install them, or leave these tests out with -m "not real"',
            pytrace=False,
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )


class Page:
    """One report opened in the browser, at one width and in one colour scheme."""

    def __init__(self, driver, path, *, width=1280, scheme="light", mobile=False):
        self.driver, self.url = driver, path.as_uri()
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": mobile}
        self.cdp("Page.setBypassCSP", enabled=False)
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)
        self.cdp(
            "Emulation.setEmulatedMedia",
            media="",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        driver.get_log("performance"), driver.get_log("browser")  # what an earlier page left behind
        driver.get(self.url)

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def requested(self):
        """URLs of all requests the page made since it was opened."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]

    def open_all(self):
        self.js("document.querySelectorAll('details').forEach(d => d.open = true)")

    def pdf(self):
        made = self.cdp("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(made["data"])
