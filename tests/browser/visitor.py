"""A visitor of the page."""

from collections import Counter


class Tab:
    """An open page in a browser context of its own, like another person's."""

    def __init__(self, browser, url, width=1280, height=900, scheme="light"):
        self.url, self.complaints, self.elsewhere, self.requests = url, [], [], Counter()
        size = dict(width=width, height=height)
        self.context = browser.new_context(viewport=size, has_touch=width < 600, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(40_000)
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.on("request", self._note)
        self.open()

    def _note(self, request):
        self.requests["all"] += 1
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self):
        self.page.goto(self.url)
        self.page.wait_for_selector("#prompt textarea")
        self.page.wait_for_timeout(400)  # saved texts are restored

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).locator("visible=true").first.click()

    def set(self, name, value):
        """Set a control."""
        field = self.page.locator(
            f"#{name} input[type=number], #{name} input[data-testid='number-input'], #{name} textarea, #{name} input"
        )
        field = field.locator("visible=true").first
        field.fill(str(value))
        field.press("Tab")

    def text(self):
        return self.page.locator("#text textarea").input_value()

    def wait(self, selector, words):
        """Wait until an element's text matches; returns the text."""
        script = "([selector, words]) => new RegExp(words).test(document.querySelector(selector)?.innerText ?? '')"
        self.page.wait_for_function(script, arg=[selector, words])
        return self.page.locator(selector).inner_text()

    def generate(self, prompt, **settings):
        """Generate a text; returns the status line at its end."""
        for name, value in settings.items():
            self.set(name.replace("_", "-"), value)
        self.page.fill("#prompt textarea", prompt)
        before = self.page.locator("#status .note").inner_text()
        self.page.click("#go")
        script = "before => document.querySelector('#status .note').innerText !== before"
        self.page.wait_for_function(script, arg=before)
        return self.wait("#status", ENDS)

    def look(self, prompt, new_tokens):
        """Look inside a text with this many new tokens."""
        self.set("seed", 1)
        self.set("max-new-tokens", new_tokens)
        self.tab("Look inside")
        self.page.fill("#inside-prompt textarea", prompt)
        self.page.click("#look")
        self.page.wait_for_selector("#attention svg.map")

    def close(self):
        self.context.close()
        assert self.requests["all"] > 5
        assert self.complaints == [], self.complaints
        assert self.elsewhere == []


ENDS = "stopped|finished|the prompt|is not|must be"
