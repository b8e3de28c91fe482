"""How a page looks in a browser: whether its text can be read, and whether anything is cut."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page

READABLE = 4.5
"""The least contrast of text (WCAG 2.2, 1.4.3)."""

_CONTRASTS = """() => {
    const numbers = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const colour = (text) => {
        const [r, g, b, a = 1] = numbers(text);
        return /^rgba?\\(/.test(text) ? [r, g, b, a] : [0, 0, 0, 0];
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((c, n) => a * c + (1 - a) * below[n]);
    const luminance = (rgb) => rgb
        .map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, n) => sum + [0.2126, 0.7152, 0.0722][n] * c, 0);
    const opacity = (element) => {
        let all = 1;
        for (let e = element; e; e = e.parentElement) all *= Number(getComputedStyle(e).opacity);
        return all;
    };
    const painted = (element, property) => {
        const style = getComputedStyle(element), [r, g, b, a] = colour(style[property]);
        const part = property === "fill" ? Number(style.fillOpacity) : 1;
        return [r, g, b, a * opacity(element) * part];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
        const element = node.parentElement;
        if (!node.data.trim() || element.closest("script, style, option, defs")) continue;
        if (!element.checkVisibility({ visibilityProperty: true })) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        const where = { behavior: "instant", block: "center", inline: "center" };
        if (range.getClientRects().length) element.scrollIntoView(where);
        const box = range.getClientRects()[0];
        if (!box || box.width < 2 || box.height < 2) continue;
        const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
        const drawn = Boolean(element.closest("svg"));
        let stack = document.elementsFromPoint(x, y);
        if (!stack.includes(element)) { // its middle is out of what its box shows
            stack = [];
            for (let e = element; e; e = e.parentElement) stack.push(e);
        }
        // What is painted behind it, from the page up.
        let behind = [255, 255, 255];
        for (const one of stack.filter((e) => e !== element || !drawn).reverse()) {
            if (one instanceof SVGElement && !["svg", "text", "tspan"].includes(one.tagName))
                behind = over(painted(one, "fill"), behind);
            else if (!(one instanceof SVGElement))
                behind = over(painted(one, "backgroundColor"), behind);
        }
        const ink = over(painted(element, drawn ? "fill" : "color"), behind);
        const [dark, light] = [luminance(ink), luminance(behind)].sort((a, b) => a - b);
        const told = `${node.data.trim().slice(0, 40)}: ${ink} on ${behind}`;
        found.push([(light + 0.05) / (dark + 0.05), told]);
    }
    return found;
}"""

_CUT = """() => [...document.querySelectorAll("body *")]
    .filter((e) => !(e instanceof SVGElement) || e.tagName === "svg")
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().width > 1)
    .filter((e) => {
        const { left, right } = e.getBoundingClientRect();
        if (left >= 0 && right <= innerWidth + 0.5) return false;
        for (let p = e.parentElement; p; p = p.parentElement)
            if (["auto", "scroll"].includes(getComputedStyle(p).overflowX)) return false;
        return true;
    })
    .map((e) => e.outerHTML.slice(0, 80))"""

_SMALL = """(least) => [...document.querySelectorAll("button, input, select, textarea, summary")]
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().width > 1)
    .filter((e) => e.getBoundingClientRect().height < least)
    .map((e) => e.outerHTML.slice(0, 80))"""


def require_good_looks(page: Page, texts: int) -> None:
    """A page can be read on a phone and on a screen, in light and in dark mode."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for width, scheme in product((390, 1280), schemes):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        require_nothing_cut(page)
        require_readable(page, texts)


def require_good_file(browser: Browser, file: Path, texts: int) -> None:
    """The same of a report, with all its parts open."""
    page = browser.new_page()
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    require_good_looks(page, texts)
    page.close()


def require_readable(page: Page, texts: int) -> None:
    """All visible text has enough contrast to what is behind it.

    Args:
        page: With everything open that is to be looked at.
        texts: That at least have to be there.
    """
    found: list[list[Any]] = page.evaluate(_CONTRASTS)
    assert len(found) >= texts
    faint = sorted(one for one in found if one[0] < READABLE)
    assert not faint, faint[:5]


def require_nothing_cut(page: Page) -> None:
    """The page is as wide as the screen; what is wider scrolls in its own place."""
    shown = page.viewport_size
    assert shown
    assert page.evaluate("document.documentElement.scrollWidth") == shown["width"]
    assert page.evaluate(_CUT) == []


def require_touchable(page: Page, least: float = 44) -> None:
    """Whatever is pressed is so many pixels high."""
    assert page.evaluate(_SMALL, least) == []
