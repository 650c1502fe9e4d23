"""The explorer in a real browser: every view works, is accessible, tells when it is stale, and shows text as text."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Watched, chromium
from explorer_pages import served
from lakes import GrowingLake
from payloads import PAYLOADS
from query_lakes import make_lake

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

import neuronlake.analysis.explorer.shelf as shelves
from neuronlake.analysis import compute_statistics
from neuronlake.store import Lake, open_lake, write_lake

VIEWS = {
    "lakes": "/",
    "overview": "/small/",
    "overview by another ranking": "/small/?method=cohen_d",
    "tag": "/small/tag?tag=NOUN",
    "tag in a layer": "/small/tag?tag=NOUN&layer=1&method=cohen_d",
    "neuron": "/small/neuron?neuron=L0.N7",
    "neuron on a tag": "/small/neuron?neuron=L1.N2&tag=VERB&k=3",
    "neuron without statistics": "/other/neuron?neuron=L1.N2",
    "problem": "/small/neuron?neuron=L0.N99999",
    "nothing kept": "/other/",
    "tag not kept": "/other/tag?tag=NOUN",
    "search": "/small/search",
    "search for a word": "/small/search?q=w7",
    "search for a word that is not there": "/small/search?q=w77777",
    "search by SQL": "/small/search?q=upos%3DNOUN",
    "search by wrong SQL": "/small/search?q=upos%3D%3D%3D1&as=SQL",
    "sentence": "/small/sentence?sentence=3&neurons=L0.N7,L1.N2",
    "compare tags": "/small/compare?tag=NOUN&against=VERB",
    "compare lakes": "/small/compare?tag=NOUN&other=third",
    "no page": "/small/none/none",
}
ALIKE = (
    "overview by another ranking", "tag in a layer", "no page", "neuron on a tag", "neuron without statistics", "search",
    "tag not kept", "search for a word that is not there",
)  # fmt: skip
"""Of the same parts as others."""
DAY_MS = 24 * 3600 * 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    found = make_lake(tmp_path_factory.mktemp("browser") / "small.lake", encoding="float16", seed=1)
    compute_statistics(found, "upos")
    compute_statistics(found, "document_name")
    return found


@pytest.fixture(scope="module")
def port(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    other = tmp_path_factory.mktemp("browser") / "other.lake"
    shutil.copytree(lake.path, other, ignore=shutil.ignore_patterns("statistics"))
    third = make_lake(other.with_name("third.lake"), encoding="float16", seed=2)
    compute_statistics(third, "upos")
    with served([lake.path, other, third.path]) as port:
        yield port


@pytest.fixture
def watched(browser: Any, port: int) -> Iterator[Watched]:
    with Watched(browser, port) as watched:
        yield watched


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "_LOOK_S", 0)


def numbers(page: Any, table: str, column: int) -> list[float]:
    """What is shown in a column of a table."""
    texts = page.locator(f"{table} tbody tr > :nth-child({column})").all_inner_texts()
    return [float(text.split()[0].replace("−", "-").replace(",", "")) for text in texts]


# ---- every view -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_view(watched: Watched, view: str) -> None:
    status = {"problem": 400, "tag not kept": 404, "no page": 404, "search by wrong SQL": 400}.get(view, 200)
    page = watched.open(VIEWS[view], status)
    assert page.locator("h1").count() == 1
    assert page.title().endswith(" – neuronlake")
    assert page.locator("#notice").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"
    page.set_viewport_size({"width": 380, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a telephone"


@pytest.mark.parametrize(
    ("view", "scheme"),
    [
        *((view, "light") for view in VIEWS if view not in ALIKE),
        *((view, "dark") for view in ("overview", "neuron", "compare tags")),
    ],
)
def test_accessible(browser: Any, port: int, view: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with Watched(browser, port, color_scheme=scheme) as watched:
        watched.page.goto(watched.base + VIEWS[view])
        for theme in (None, {"light": "dark", "dark": "light"}[scheme]):  # the system's, and one's own
            if theme is not None and view != "neuron":
                continue
            if theme is not None:
                watched.page.evaluate("name => { document.documentElement.dataset.theme = name }", theme)
            if view == "neuron":
                watched.page.evaluate("document.body.classList.add('values')")
            found = axe.run(watched.page, options={"resultTypes": ["violations"]}).response["violations"]
            grave = [
                (each["id"], each["impact"], [node["html"][:150] for node in each["nodes"][:3]])
                for each in found
                if each["impact"] in ("serious", "critical")
            ]
            assert grave == []


def test_pages_are_read_without_scripts(browser: Any, port: int) -> None:
    with Watched(browser, port, java_script_enabled=False) as watched:
        page = watched.open("/small/neuron?neuron=L0.N7")
        assert page.locator("table.profile tbody tr").count() == 3
        for name in ("#theme", "#keys", "#shade", "#values"):  # they would do nothing
            assert page.locator(name).is_hidden(), name
        page.select_option("select[name=tag]", "VERB")
        page.click(".choices button")
        assert "tag=VERB" in page.url
        assert page.locator("caption", has_text="Highest on VERB").count() == 1


# ---- what can be done -------------------------------------------------------------------------------------------------


def test_from_the_map_to_a_neuron(watched: Watched) -> None:
    page = watched.open("/small/")
    page.click("table.heat tbody tr:first-child td:nth-child(3) a")
    assert re.search(r"/small/tag\?.*tag=NOUN", page.url)
    assert "layer=1" in page.url
    assert "upos = NOUN, layer 1" in page.inner_text("h2")
    first = page.inner_text("table.sortable tbody tr:first-child th")
    page.click("table.sortable tbody tr:first-child a")
    assert page.inner_text("h1").startswith(first)
    page.click("table.profile tbody tr:first-child a")
    assert "/small/tag" in page.url
    page.go_back()
    assert page.inner_text("h1").startswith(first)


def test_tables_sort(watched: Watched) -> None:
    page = watched.open("/small/tag?tag=NOUN&top=60&method=cohen_d")
    table = "[aria-label=Ranking] table"

    def sort(name: str) -> str | None:
        head = page.locator(f"{table} thead th", has=page.get_by_role("button", name=name, exact=True))
        head.locator("button").click()
        assert page.locator(f"{table} [aria-sort]").count() == 1
        return head.get_attribute("aria-sort")

    for column, name in ((3, "cohen_d"), (5, "mean"), (6, "mean, others")):
        for expected in ("descending", "ascending", "descending"):
            assert sort(name) == expected
            shown = numbers(page, table, column)
            assert shown == sorted(shown, reverse=expected == "descending")
            assert len(shown) == 60
    for expected in ("descending", "ascending"):
        assert sort("rank") == expected
    assert numbers(page, table, 1) == list(range(1, 61))
    for expected in ("ascending", "descending"):
        assert sort("neuron") == expected
        names = page.locator(f"{table} tbody th").all_inner_texts()
        keys = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
        assert keys == sorted(keys, reverse=expected == "descending")
    for expected in ("descending", "ascending"):
        assert sort("q") == expected
        cells = page.locator(f"{table} tbody td:last-child")
        shown = [float(cell.get_attribute("data-value") or "nan") for cell in cells.all()]
        assert shown == sorted(shown, reverse=expected == "descending")


def test_every_token_can_be_shaded(watched: Watched, lake: Lake) -> None:
    page = watched.open("/small/neuron?neuron=L1.N7&k=8")
    assert page.locator(".token.u").count() > 0
    before = page.locator("table.contexts td.text").all_inner_texts()
    page.click("#shade")
    page.locator("#shade", has_text="Every token is shaded").wait_for()
    assert page.locator(".token.u").count() == 0
    assert page.locator("table.contexts mark").count() == 16
    assert [" ".join(text.split()) for text in page.locator("table.contexts td.text").all_inner_texts()] == [
        " ".join(text.split()) for text in before
    ]
    tokens = lake.tokens()
    sentence, special = tokens.column("sentence").to_numpy(), tokens.column("flags").to_numpy() & 3 != 0
    column = lake.read(layer=1, neurons=[7], rows=np.arange(len(special)))[:, 0]
    for row in page.locator("table.contexts tr[data-row]").all():
        number = int(row.get_attribute("data-row") or "")
        stored = column[(sentence == sentence[number]) & ~special]
        titles = [(each.get_attribute("title") or "").replace("−", "-") for each in row.locator(".token").all()]
        np.testing.assert_allclose(np.array(titles, dtype=float), stored, atol=5.1e-4)
        shades = [(each.get_attribute("class") or "").split()[1][0] for each in row.locator(".token").all()]
        assert shades == ["n" if value < 0 else "p" for value in stored]
    value = page.locator(".token .value").first
    assert not value.is_visible()
    page.check("#values")
    assert value.is_visible()
    page.reload()
    assert page.is_checked("#values")  # remembered
    page.keyboard.press("v")
    assert not page.is_checked("#values")


def test_shading_by_colour_and_line(watched: Watched) -> None:
    """What lies below zero differs by more than its colour."""
    page = watched.open("/small/neuron?neuron=L0.N7")
    style = "each => getComputedStyle(each).textDecorationStyle + getComputedStyle(each).textDecorationLine"
    assert page.locator(".token.n8").first.evaluate(style) == "dashedunderline"
    assert page.locator(".token.p8").first.evaluate(style) == "solidnone"


def test_themes(browser: Any, port: int) -> None:
    with Watched(browser, port, color_scheme="dark") as watched:
        page = watched.open("/small/")
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(paper)
        page.click("#theme")
        assert page.inner_text("#theme") == "Theme: light"
        light = page.evaluate(paper)
        assert light != dark
        page.reload()
        assert page.evaluate(paper) == light
        page.keyboard.press("t")
        assert page.inner_text("#theme") == "Theme: dark"
        assert page.evaluate(paper) == dark
        page.keyboard.press("t")
        assert page.inner_text("#theme") == "Theme: system"
        page.emulate_media(color_scheme="light")
        assert page.evaluate(paper) == light


def test_keys(watched: Watched) -> None:
    page = watched.open("/small/neuron?neuron=L0.N7")
    page.keyboard.press("]")
    page.wait_for_url("**neuron=L0.N8*")
    page.keyboard.press("[")
    page.wait_for_url("**neuron=L0.N7*")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("o")  # the dialog has the keys
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("o]?tv/")
    assert page.input_value("#find") == "o]?tv/"
    assert page.locator("#help").is_hidden()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+o")
    page.keyboard.press("o")
    page.locator("table.heat").wait_for()
    page.click("#keys")
    page.click("#help button")
    assert page.locator("#help").is_hidden()
    page.keyboard.press("]")  # there is none here
    assert page.locator("table.heat").count() == 1


def test_keyboard_alone_opens_a_neuron(watched: Watched) -> None:
    page = watched.open("/small/")
    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip to the content"
    assert page.locator(":focus").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    for _ in range(60):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if page.evaluate("!!document.activeElement.closest('tfoot')"):
            break
    name = page.inner_text(":focus")
    page.keyboard.press("Enter")
    page.wait_for_url("**/neuron?*")
    assert page.inner_text("h1").startswith(name)
    page.keyboard.press("/")  # and a table is sorted
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("!!document.activeElement.closest('table.profile thead')"):
            break
    page.keyboard.press("Enter")
    assert page.locator("table.profile [aria-sort=ascending]").count() == 1


def test_an_address_says_everything(watched: Watched, browser: Any, port: int) -> None:
    page = watched.open("/small/")
    page.select_option("select[name=method]", "cohen_d")
    page.select_option("select[name=by]", "document_name")
    page.click(".choices button")
    assert "by=document_name" in page.url
    assert "Best single neuron of each layer by cohen_d" in page.inner_text("main")
    page.click("table.heat thead a >> nth=1")
    page.select_option("select[name=layer]", "0")
    page.fill("input[name=top]", "7")
    page.click(".choices button")
    shown = page.inner_text("main")
    assert page.locator("[aria-label=Ranking] tbody tr").count() == 7
    address = page.url.removeprefix(watched.base)
    page.reload()
    assert page.inner_text("main") == shown
    with Watched(browser, port) as somebody_else:
        assert somebody_else.open(address).inner_text("main") == shown
    page.click("[aria-label=Ranking] tbody a >> nth=0")
    assert "by=document_name" in page.url
    page.fill("input[name=neuron]", "l1.n5")
    page.fill("input[name=k]", "2")
    page.click(".choices button")
    assert page.inner_text("h1").startswith("L1.N5 ")
    assert page.locator("#top-L1\\.N5 tbody tr").count() == 2


def test_a_neuron_typed_wrong_can_be_typed_again(watched: Watched) -> None:
    page = watched.open("/small/neuron?neuron=L0.N7")
    page.fill("input[name=neuron]", "L0.N70")
    page.click(".choices button")
    assert "valid are layers 0 to 1, neurons 0 to 69" in page.inner_text(".problem")
    page.go_back()
    assert page.inner_text("h1").startswith("L0.N7 ")
    page.go_forward()
    page.click("main a")
    assert page.locator("table.heat").count() == 1


def test_search_leads_to_what_is_meant(watched: Watched) -> None:
    page = watched.open("/small/")
    for typed in ("L1.N5", "l1 n5", "1.5"):
        page.keyboard.press("/")
        page.fill("#find", typed)
        page.keyboard.press("Enter")
        page.wait_for_url("**/neuron?neuron=L1.N5*")
        assert page.inner_text("h1").startswith("L1.N5 ")
        page.go_back()
    page.fill("#find", "w7")
    page.click(".find button")
    page.wait_for_url("**/search?q=w7")
    marks = page.locator("main mark").all_inner_texts()
    assert marks
    assert set(marks) == {"w7"}
    page.click("main button[data-part]")
    page.locator("[aria-label='Neurons that fire'] tbody a").first.click()
    page.wait_for_url("**/neuron?neuron=*")
    page.go_back()
    page.fill("main input[name=q]", "upos = 'NOUN' AND form LIKE 'w1%'")
    page.click("main form button")
    assert page.locator("main mark").count() > 0
    page.locator("main a", has_text="whole").first.click()
    page.wait_for_url("**/sentence?*")
    number = int(page.inner_text("h1").split()[1])
    page.keyboard.press("]")
    page.wait_for_url(f"**sentence={number + 1}*")


def test_neurons_like_one_are_asked_for(watched: Watched) -> None:
    page = watched.open("/small/neuron?neuron=L0.N7")
    assert page.locator("#neighbours a").count() == 0
    page.locator("button[data-part]").first.click()
    page.locator("#neighbours tbody a").first.click()
    page.wait_for_url("**/neuron?neuron=*")
    assert page.locator("table.profile").count() == 1


def test_comparisons_lead_on(watched: Watched) -> None:
    page = watched.open("/small/compare?tag=NOUN&against=VERB")
    assert page.locator("svg.scatter circle").count() > 0
    page.locator("main tbody a").first.click()
    page.wait_for_url("**/small/neuron?neuron=*")
    page.go_back()
    page.select_option("select[name=other]", "third")
    page.click("main form button")
    page.locator("main tbody a", has_text="there").first.click()
    page.wait_for_url("**/third/neuron?*")


def test_what_is_shown_can_be_kept(watched: Watched) -> None:
    page = watched.open("/small/tag?tag=NOUN")
    for address in ("/small/", "/small/tag?tag=NOUN", "/small/neuron?neuron=L0.N7"):
        page = watched.open(address)
        links = page.locator(".exports a")
        assert links.count() >= 2
        with page.expect_download() as download:
            links.first.click()
        path = Path(download.value.path())
        assert path.stat().st_size > 50
        assert re.fullmatch(r"small-[\w.-]+\.csv", download.value.suggested_filename)
    assert page.inner_text("h1").startswith("L0.N7")


# ---- pages that stay open ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_the_lake_grows_and_moves_under_an_open_page(browser: Any, tmp_path: Path) -> None:
    growing = GrowingLake(tmp_path / "a.lake")
    compute_statistics(growing.commit(0, 1), "upos")
    with served([growing.root]) as port, Watched(browser, port) as watched:
        watched.page.clock.install()
        page = watched.open("/a/")
        page.clock.fast_forward(DAY_MS)
        page.wait_for_timeout(100)
        assert page.locator("#notice").is_hidden()
        growing.commit(2)
        page.clock.fast_forward(DAY_MS)
        page.locator("#notice", has_text="The lake has changed since this page was loaded.").wait_for()
        compute_statistics(open_lake(growing.root), "upos")
        page.click("#notice button")
        page.locator(".facts", has_text="3 of 6 blocks").wait_for()
        assert page.locator("#notice").is_hidden()

        growing.root.rename(tmp_path / "elsewhere")
        page.clock.fast_forward(DAY_MS)
        page.locator("#notice", has_text="is not there any more").wait_for()
        page.click("#notice button")
        page.locator(".problem", has_text="is not there any more").wait_for()
        (tmp_path / "elsewhere").rename(growing.root)
        page.reload()
        assert page.locator("table.heat").count() == 1


def test_the_server_stops_under_an_open_page(browser: Any, lake: Lake, tmp_path: Path) -> None:
    root = tmp_path / "a.lake"
    shutil.copytree(lake.path, root)
    with served([root]) as port:
        watched = Watched(browser, port)
        watched.page.clock.install()
        page = watched.open("/a/neuron?neuron=L0.N7")
    page.click("#shade")
    page.locator("#notice", has_text="The server does not answer").wait_for()
    assert page.is_enabled("#shade")
    assert page.inner_text("#shade") == "Shade every token"
    assert page.locator("table.contexts mark").count() > 0  # what was shown is still there
    page.clock.fast_forward(DAY_MS)
    page.wait_for_timeout(100)
    assert page.locator("#notice", has_text="start `neuronlake serve` again").is_visible()
    with served([root], at=port):
        page.clock.fast_forward(DAY_MS)
        page.locator("#notice").wait_for(state="hidden")
        page.click("#shade")
        page.locator("#shade", has_text="Every token is shaded").wait_for()
    assert [each for each in watched.wrong if "ERR_CONNECTION_REFUSED" not in each] == []
    watched.context.close()


# ---- text is text -----------------------------------------------------------------------------------------------------

ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title link script body a header nav form label input button p main h1 h2 h3 span div table caption "
        "thead tbody tfoot tr th td dl dt dd b code select option dialog kbd svg path line rect mark ul li "
        "datalist figure figcaption circle text section q blockquote",
    )
)
LOOK = """() => {
  const all = [...document.querySelectorAll("*")];
  const bad = all.filter((each) => each.attributes && [...each.attributes].some((attribute) => /^on|^style$|^srcdoc$/i.test(attribute.name)));
  return {
    ran: window.pwned ?? null,
    elements: [...new Set(all.map((each) => each.localName))],
    handlers: bad.map((each) => each.outerHTML.slice(0, 200)),
    scripts: all.filter((each) => each.localName === "script").map((each) => each.getAttribute("src")),
    links: [...new Set(all.filter((each) => each.href).map((each) => new URL(each.href, location.href).origin))],
    forms: [...document.forms].map((each) => each.getAttribute("action")).filter((each) => each !== null),
  };
}"""  # noqa: E501


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake whose words, tags, documents, model, label, and own name are attacks."""
    rows = 2 * len(PAYLOADS)
    words = [PAYLOADS[row // 2] for row in range(rows)]
    columns = {
        "form": words,
        "upos": words,
        "document": [PAYLOADS[row // 2 - 1] for row in range(rows)],
        "sentence": [PAYLOADS[-1 - row // 2] for row in range(rows)],
        "<img src=x onerror=window.pwned=1>": ["a" if row % 3 else "b" for row in range(rows)],
    }
    values = np.random.default_rng(0).standard_normal((2, rows, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("hostile") / "\"'><img src=x onerror=window.pwned=1> {{7*7}} &lt;b&gt;.lake"
    lake = write_lake(path, values, tokens=columns, name="<svg onload=window.pwned=1>{{7*7}}", encoding="float16")
    compute_statistics(lake, "upos")
    compute_statistics(lake, "<img src=x onerror=window.pwned=1>")
    compute_statistics(lake, "CASE WHEN row % 2 = 0 THEN '<script>window.pwned=1</script>' ELSE '\"><b>' END")
    return lake


@pytest.fixture
def attacked(browser: Any, hostile: Lake) -> Iterator[tuple[Watched, str]]:
    # the security policy, which would stop what gets through, is switched off: escaping alone must do
    with served([hostile.path]) as port, Watched(browser, port, bypass_csp=True) as watched:
        page = watched.open("/")
        yield watched, page.evaluate("location.pathname")


def unharmed(page: Any) -> None:
    found = page.evaluate(LOOK)
    assert found["ran"] is None
    assert set(found["elements"]) <= ELEMENTS
    assert found["handlers"] == []
    assert found["scripts"] == ["/static/explorer.js"]
    assert len(found["links"]) == 1
    assert all(form.startswith("/") for form in found["forms"])
    assert "49" not in page.title()  # 7·7


def test_attacks_are_many() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 50


def test_hostile_names_are_text(attacked: tuple[Watched, str], hostile: Lake) -> None:
    watched, base = attacked
    page = watched.page
    name = hostile.path.name.removesuffix(".lake")
    assert page.text_content("h1") == name
    assert page.title() == f"{name} – neuronlake"
    assert "<svg onload=window.pwned=1>{{7*7}}" in page.text_content(".facts")
    heads = page.locator("table.heat thead th a").all_text_contents()
    assert heads == sorted(PAYLOADS)[: len(heads)] or set(heads) <= set(PAYLOADS)
    assert len(heads) == min(60, len(PAYLOADS))
    unharmed(page)
    for by in (
        "<img src=x onerror=window.pwned=1>",
        "CASE WHEN row % 2 = 0 THEN '<script>window.pwned=1</script>' ELSE '\"><b>' END",
    ):
        watched.open(base)
        page.select_option("select[name=by]", by)
        page.click(".choices button")
        assert by in (page.text_content("h2") or "")
        unharmed(page)
        page.click("table.heat thead a >> nth=0")
        assert by in (page.text_content("h2") or "")
        unharmed(page)


def test_hostile_tags_are_text(attacked: tuple[Watched, str]) -> None:
    watched, _ = attacked
    page = watched.page
    links = page.locator("table.heat thead th a")
    targets = links.evaluate_all("all => all.map((each) => [each.textContent, each.getAttribute('href')])")
    assert len(targets) >= 50
    for payload, target in targets[::8]:
        watched.open(target)
        assert page.text_content("h2") == f"upos = {payload}"
        assert page.input_value("select[name=tag]") == payload
        unharmed(page)


def test_hostile_sentences_are_text(attacked: tuple[Watched, str]) -> None:
    watched, base = attacked
    page = watched.open(f"{base}neuron?neuron=L0.N1&k=200")
    unharmed(page)
    rows = page.locator("#top-L0\\.N1 tbody tr td.text")
    shown = {payload.lstrip() for payload in PAYLOADS}  # a space before a word is not shaded
    assert shown <= set(page.locator("#top-L0\\.N1 mark").all_text_contents())
    texts = rows.all_text_contents()
    page.click("#shade")
    page.locator("#shade", has_text="Every token is shaded").wait_for()
    unharmed(page)
    assert shown <= set(page.locator("#top-L0\\.N1 mark").all_text_contents())
    assert len(rows.all_text_contents()) == len(texts)
    page.click("table.profile thead button >> nth=0")
    unharmed(page)
    for payload in PAYLOADS[6:70:24]:
        page.select_option("select[name=tag]", payload)
        page.click(".choices button")
        assert page.text_content("#top-L0\\.N1 caption") == f"Highest on {payload}"
        unharmed(page)


def test_hostile_texts_in_the_other_views(attacked: tuple[Watched, str]) -> None:
    from urllib.parse import quote

    watched, base = attacked
    page = watched.page
    for place, payload in enumerate(PAYLOADS[:-1:13]):  # the last begins with white space, which a search leaves out
        target = quote(payload, safe="")
        watched.open(f"{base}search?as=word&q={target}")
        assert payload.strip() in page.locator("main mark").all_text_contents()
        assert page.input_value("main input[name=q]") == payload.replace("\n", "")  # a field of one line
        unharmed(page)
        watched.open(f"{base}sentence?sentence={place}")
        unharmed(page)
        watched.open(f"{base}compare?tag={target}&against={quote(PAYLOADS[1], safe='')}")
        assert page.text_content("h2") == f"upos = {payload} and {PAYLOADS[1]}"
        unharmed(page)
        page.goto(f"{watched.base}{base}search?as=SQL&q={target}")
        assert page.input_value("main input[name=q]") == payload.replace("\n", "")  # a field of one line
        unharmed(page)
    watched.open(f"{base}search?as=word&q={quote(PAYLOADS[0], safe='')}")
    if page.locator("button[data-part]").count():
        page.click("button[data-part]")
        page.locator("[aria-label='Neurons that fire']").wait_for()
    unharmed(page)
    watched.open(f"{base}neuron?neuron=L0.N1")
    page.locator("button[data-part]").first.click()
    page.locator("#neighbours table").wait_for()
    unharmed(page)


def test_hostile_questions_are_text(attacked: tuple[Watched, str]) -> None:
    from urllib.parse import quote

    watched, base = attacked
    page = watched.page
    page.goto(f"{watched.base}/{quote(PAYLOADS[0], safe='')}/")
    unharmed(page)
    places = (
        "neuron?neuron=",
        "tag?tag=no",
        "tag?tag=x&top=",
        "?method=",
        "?by=",
        "?site=",
        "contexts?neuron=L0.N0&rows=1&limit=",
    )
    for number, payload in enumerate(PAYLOADS[::4]):
        place = places[number % len(places)]
        page.goto(f"{watched.base}{base}{place}{quote(payload, safe='')}")
        assert "That did not work" in page.text_content("h1")
        unharmed(page)
