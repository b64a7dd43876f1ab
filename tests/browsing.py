"A page in a real browser, watched."
from contextlib import contextmanager


@contextmanager
def visiting(browser, address, width=1280, dark=False, *, ready):
    "An open page that holds what `ready` selects; at the end: no other machine was asked, no script failed."
    page = browser.new_page(viewport={'width': width, 'height': 900}, color_scheme='dark' if dark else 'light')
    elsewhere, failures = [], []
    own = address, 'data:', 'blob:'
    page.on('request', lambda request: request.url.startswith(own) or elsewhere.append(request.url))
    page.on('pageerror', lambda error: failures.append(str(error)))
    page.goto(address)
    page.wait_for_selector(ready, state='attached', timeout=120_000)
    yield page
    page.close()
    assert not elsewhere and not failures, (elsewhere, failures)
