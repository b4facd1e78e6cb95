"The token explorer, as a user meets it: stage, click, box, search, and the selection back in Python."

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

# where a point of the figure is on the screen: trace by name, index of the point in it
PLACE = """([name, i]) => {
    const plot = document.querySelector('.js-plotly-plot'), layout = plot._fullLayout, box = plot.getBoundingClientRect();
    const trace = plot._fullData.find(t => t.name === name);
    const x = box.x + layout._size.l + layout.xaxis.c2p(trace.x[i]), y = box.y + layout._size.t + layout.yaxis.c2p(trace.y[i]);
    return {x, y};
}"""


def test_stage_click_box_and_search(lab, tiny_outputs, tmp_path):
    page = lab("nbs/explore/tokens.ipynb", GTI_OUTPUTS=str(tiny_outputs))
    page.locator(".js-plotly-plot").first.wait_for()
    note, panel, title = page.locator(".gti-note"), page.locator(".gti-panel"), page.locator(".gtitle")
    expect(title).to_have_text("stage: sft")
    expect(note).to_contain_text("0 tokens selected")

    assert page.locator(".modebar-btn--logo, [data-title*='Chart Studio'], [data-title*='cloud' i]").count() == 0

    stages = page.locator(".widget-dropdown", has_text="stage").locator("select")
    stages.select_option("grounding")
    expect(title).to_have_text("stage: grounding")
    before = page.evaluate(PLACE, ["level 1", 0])
    stages.select_option("init")
    expect(title).to_have_text("stage: init")
    assert page.evaluate(PLACE, ["level 1", 0]) != before
    stages.select_option("grounding")
    expect(title).to_have_text("stage: grounding")

    point = page.evaluate(PLACE, ["level 1", 0])
    page.mouse.move(point["x"], point["y"])
    page.mouse.click(point["x"], point["y"])
    expect(note).to_have_text("1 token selected")
    expect(panel).to_contain_text(re.compile(r"<[abcd]_\d+>.*nearest pretrained tokens.*nearest new tokens.*items", re.S))

    area = page.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + 5, area["y"] + 5)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 5, area["y"] + area["height"] - 5, steps=8)
    page.mouse.up()
    expect(note).to_have_text(re.compile(r"^\d\d+ tokens selected$"))
    expect(panel).to_contain_text("all of them are in explorer.selection")
    outlines = page.locator(".selectionlayer path, .shapelayer .select-outline")
    assert outlines.count() > 0
    page.screenshot(path=tmp_path / "box.png")

    search = page.locator(".widget-text input")
    search.fill("a_0")
    search.press("Enter")
    expect(note).to_have_text("1 token selected")
    expect(panel.locator("h3")).to_contain_text("<a_0>")
    expect(outlines).to_have_count(0)
    page.screenshot(path=tmp_path / "explorer.png", full_page=True)

    page.locator(".jp-CodeCell").last.click()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".jp-CodeCell").last.locator("td", has_text="<a_0>")).to_be_visible()

    search.fill("no such film")
    search.press("Enter")
    expect(note).to_contain_text("nothing is called 'no such film'")
