"""The explorer without a browser: who is answered, what is refused, and that the numbers on the pages are right."""

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from explorer_pages import Element, ask, served
from hypothesis import given
from hypothesis import strategies as st
from lakes import GrowingLake, two_site_lake
from query_lakes import NEURONS, ROWS, flags, lakes_of, make_lake, stored
from scipy.stats import rankdata

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")

import neuronlake.analysis.explorer.app as app
import neuronlake.analysis.explorer.shelf as shelves
from neuronlake.analysis import compute_statistics, rank, score
from neuronlake.analysis.densities import tag_densities
from neuronlake.analysis.explorer.contexts import split
from neuronlake.analysis.explorer.guard import HEADERS
from neuronlake.analysis.explorer.shades import STEPS, signed
from neuronlake.analysis.explorer.shelf import METHODS
from neuronlake.analysis.kept_statistics import kept_labels
from neuronlake.store import Lake, open_lake, write_lake
from neuronlake.store.kept import INDEX, kept_results

ALWAYS = pytest.mark.parametrize("neuron", [0, 1, 2, 3, 4, 5, 7, 69])  # ordinary, ties, zeros, …, with large special tokens


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    found = make_lake(tmp_path_factory.mktemp("explorer") / "small.lake", encoding="float16", seed=1)
    compute_statistics(found, "upos")
    return found


@pytest.fixture(scope="module")
def port(lake: Lake) -> Iterator[int]:
    with served([lake.path], ["lakes.example"]) as port:
        yield port


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are looked at anew by every request."""
    monkeypatch.setattr(shelves, "_LOOK_S", 0)


# ---- who is answered --------------------------------------------------------------------------------------------------

OURS = ["127.0.0.1", "127.0.0.1:1", "localhost", "LocalHost:8421", "[::1]", "[::1]:8421", "lakes.example", "LAKES.example:1"]
FOREIGN = [
    "evil.example", "evil.example:8421", "127.0.0.1.evil.example", "localhost.evil.example", "notlocalhost", "0.0.0.0", "",
    "localhost@evil.example", "evil.example@localhost", "evil.example#@localhost", "localhost/..", "localhost?",
    "127.1", "localhost#", "localhost:1:2", "localhost:x", "localhost.", "2130706433", "0x7f000001", "[::1", "::1", "[::]",
    "[::ffff:127.0.0.1]", "lakes.example.evil", "localhost, evil.example", "\\localhost", "//localhost", "http://localhost",
]  # fmt: skip


@pytest.mark.parametrize("host", OURS)
def test_own_names_are_answered(port: int, host: str) -> None:
    assert ask(port, "/small/", host=host).status == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(port: int, host: str) -> None:
    answer = ask(port, "/small/", ("Host", host), host=None)
    assert answer.status in (400, 421)
    assert b"NOUN" not in answer.body


def test_a_request_without_host_or_with_two_is_refused(port: int) -> None:
    assert ask(port, "/small/", host=None).status == 400
    assert ask(port, "/small/", ("Host", "evil.example")).status == 400
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /small/ HTTP/1.0\r\n\r\n")  # which needs no Host
        assert b" 421 " in connection.makefile("rb").readline()


def test_origins(port: int) -> None:
    own = f"http://127.0.0.1:{port}"
    assert ask(port, "/small/", ("Origin", own)).status == 200
    others = ["null", "", "file://", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", f"http://localhost:{port}",
              f"http://evil.example@127.0.0.1:{port}", f"{own}.evil.example", f"{own} http://evil.example"]  # fmt: skip
    for other in others:
        assert ask(port, "/small/", ("Origin", other)).status == 403, other


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_only_lead_here(port: int, site: str) -> None:
    def status(mode: str, destination: str) -> int:
        headers = ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", destination)
        return ask(port, "/small/", *headers).status

    assert status("navigate", "document") == 200
    for mode, destination in [("no-cors", "image"), ("no-cors", "script"), ("cors", "empty"), ("websocket", "websocket"),
                              ("navigate", "iframe"), ("navigate", "object"), ("navigate", "embed")]:  # fmt: skip
        assert status(mode, destination) == 403, (mode, destination)


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_own_requests_are_answered(port: int, site: str) -> None:
    assert ask(port, "/small/", ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "cors")).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_nothing_but_reading(port: int, method: str) -> None:
    for target in ("/small/", "/static/explorer.js", "/nowhere"):
        answer = ask(port, target, ("Content-Length", "0"), method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_no_websocket(port: int) -> None:
    upgrade = ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="), ("Sec-WebSocket-Version", "13")
    assert ask(port, "/small/", *upgrade, ("Connection", "Upgrade")).status != 101


@pytest.mark.parametrize(
    ("target", "status", "headers"),
    [
        ("/", 307, ()),
        ("/small/", 200, ()),
        ("/small/neuron?neuron=L0.N1", 200, ()),
        ("/small/state", 200, ()),
        ("/small/neuron?neuron=L9.N1", 400, ()),
        ("/small/neuron?neuron=L9.N1", 400, (("Sec-Fetch-Dest", "empty"),)),
        ("/other/", 400, ()),
        ("/nowhere", 307, ()),
        ("/no/where", 404, ()),
        ("/static/explorer.js", 200, ()),
        ("/static/none.js", 404, ()),
        ("/small/", 403, (("Origin", "null"),)),
        ("/small/", 421, (("X", "y"),)),
    ],
)
def test_headers_on_every_answer(port: int, target: str, status: int, headers: tuple[tuple[str, str], ...]) -> None:
    for method in ("GET", "HEAD"):
        answer = ask(port, target, *headers, host="evil.example" if status == 421 else "", method=method)
        assert answer.status == status
        assert HEADERS.items() <= answer.headers.items()
        assert "server" not in answer.headers
        assert bool(answer.body) == (method == "GET" and status != 307)
    assert "'unsafe" not in answer.headers["content-security-policy"]


# ---- nothing but the pages and the folder of scripts ------------------------------------------------------------------

CLIMBS = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..\\", "..%5c", "%252e%252e%252f", "....//", "..;/", "%c0%ae%c0%ae/",
          "./../", "%00/../", "..%00/", "x/../../", "\u00ff../"]  # fmt: skip


@pytest.mark.parametrize("climb", CLIMBS)
def test_paths_outside_are_not_served(port: int, climb: str) -> None:
    for start in ("/static/", "/", "/small/"):
        for target in ("etc/passwd", "app.py", "render.py", "neuronlake/analysis/explorer/app.py", "plan/plan.json"):
            for depth in (1, 2, 9):
                answer = ask(port, f"{start}{climb * depth}{target}")
                assert answer.status in (307, 400, 404, 405), answer.text
                for secret in (b"root:", b"def create_app", b"environment.filters", b'fingerprint":'):
                    assert secret not in answer.body


@pytest.mark.parametrize(
    "target",
    [
        "/static//etc/passwd", "/static/%2fetc/passwd", "//etc/passwd", "/etc/passwd", "/static/", "/static", "/static/.",
        "/static/%00", "/static/explorer.js%00.html", "/static/~root", "/static/" + "a" * 5000, "/static/C:/x", "*",
        "/small/zarr.json", "/small/plan/plan.json", "/small//zarr.json", "/small/../zarr.json", "/small%2fzarr.json/",
        "/small.lake/zarr.json", "/templates/base.html", "/static/../templates/base.html", "http://evil.example/etc/passwd",
        "file:///etc/passwd", "/small/neuron/", "/small/static/explorer.js",
    ],
)  # fmt: skip
def test_other_addresses_are_not_there(port: int, lake: Lake, target: str) -> None:
    answer = ask(port, target)
    assert answer.status in (307, 400, 404)
    assert b"root:" not in answer.body
    assert lake.fingerprint.encode() not in answer.body
    if answer.status == 307:
        assert answer.headers["location"].removeprefix(f"http://127.0.0.1:{port}") in (
            "/small/neuron",
            "/static/",
            "/small/",
        )


def test_links_out_of_the_folder_are_not_followed(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "static"
    shutil.copytree(app.STATIC, folder)
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "static-not").mkdir()
    monkeypatch.setattr(app, "STATIC", folder)
    (tmp_path / "static-secret").mkdir()
    (tmp_path / "static-secret" / "a.txt").write_text("secret")
    with served([lake.path]) as port:
        assert ask(port, "/static/explorer.js").status == 200
        for target in ("out.txt", "up/secret.txt", "../static-secret/a.txt", "..%2fstatic-secret/a.txt", "static-not"):
            assert ask(port, f"/static/{target}").status == 404, target


def test_expressions_reach_no_file(port: int, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("secret\n1\n")
    for expression in (
        f"read_text('{tmp_path}/secret.csv')", f"(SELECT secret FROM '{tmp_path}/secret.csv')", "getenv('PATH')",
        f"(SELECT content FROM read_text('{tmp_path}/secret.csv'))", f"upos); COPY (SELECT 1) TO '{tmp_path}/made'; --",
    ):  # fmt: skip
        for page in ("", "tag?tag=1", "neuron?neuron=L0.N1&tag=1", "neuron?neuron=L0.N1"):
            target = f"/small/{page}{'&' if '?' in page else '?'}by=" + "".join(
                f"%{byte:02x}" for byte in expression.encode()
            )
            answer = ask(port, target)
            assert answer.status == 400, (target, answer.text)
            assert "secret\n1" not in answer.text
    assert not (tmp_path / "made").exists()


# ---- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("neuron", 400, "neuron=L12.N345"),
        ("neuron?neuron=", 400, "neuron=L12.N345"),
        ("neuron?neuron=L0", 400, "'L0' is no neuron"),
        ("neuron?neuron=L0.N70", 400, "neurons 0 to 69"),
        ("neuron?neuron=L2.N0", 400, "layers 0 to 1"),
        ("neuron?neuron=L-1.N0", 400, "is no neuron"),
        ("neuron?neuron=l1.n69", 200, ""),
        ("neuron?neuron=%20L1.N69%20", 200, ""),
        (f"neuron?neuron=L{'9' * 5000}.N0", 400, "is no neuron"),
        ("neuron?neuron=L999999999999999999.N0", 400, "layers 0 to 1"),
        ("neuron?neuron=L0.N%D9%A3", 200, ""),  # digits of another script are digits
        ("neuron?neuron=L0.N%C2%B2", 400, "is no neuron"),
        ("neuron?neuron=%00%1b[31m%ff%fe", 400, "is no neuron"),
        ("neuron?neuron=L0.N1&k=0", 400, "between 1 and 200"),
        ("neuron?neuron=L0.N1&k=201", 400, "between 1 and 200"),
        ("neuron?neuron=L0.N1&k=-3", 400, "between 1 and 200"),
        ("neuron?neuron=L0.N1&k=two", 400, "k must be a whole number, got 'two'"),
        ("neuron?neuron=L0.N1&k=1e3", 400, "whole number"),
        (f"neuron?neuron=L0.N1&k={'9' * 5000}", 400, "whole number"),
        ("neuron?neuron=L0.N1&k=200", 200, ""),
        ("neuron?neuron=L0.N1&tag=PRON", 400, "'PRON'"),
        ("neuron?neuron=L0.N1&tag=%3Cb%3E", 400, "<b>"),
        ("neuron?neuron=L0.N1&by=nothing", 400, "nothing"),
        ("neuron?neuron=L0.N1&site=resid.post", 400, "mlp.post"),
        ("neuron?neuron=L0.N1&unknown=1&neuron=L0.N2", 200, ""),
        ("tag", 400, "tag=NOUN"),
        ("tag?tag=PRON", 400, "ADJ, NOUN, VERB"),
        ("tag?tag=NOUN&method=none", 400, "known here are"),
        ("tag?tag=NOUN&method=probe", 400, "known here are"),
        ("tag?tag=NOUN&top=0", 400, "between 1 and 1000"),
        ("tag?tag=NOUN&top=-1", 400, "between 1 and 1000"),
        ("tag?tag=NOUN&top=1001", 400, "between 1 and 1000"),
        ("tag?tag=NOUN&top=1000", 200, ""),
        ("tag?tag=NOUN&layer=2", 400, "unknown layer 2"),
        ("tag?tag=NOUN&layer=-1", 400, "unknown layer -1"),
        ("tag?tag=NOUN&layer=first", 400, "layer must be a whole number"),
        ("tag?tag=NOUN&layer=1", 200, ""),
        ("tag?tag=NOUN&by=deprel", 400, "deprel"),
        ("tag?tag=NOUN&by=form", 404, "neuronlake rank"),
        ("?by=form", 200, ""),
        ("?by=upos;DROP", 400, "upos;DROP"),
        ("?method=none", 400, "known here are"),
        ("?site=..", 400, "no site '..'"),
        ("?by=" + "a" * 30000, 400, "a"),
        ("contexts?neuron=L0.N1", 400, "limit="),
        ("contexts?neuron=L0.N1&limit=1", 400, "rows="),
        ("contexts?neuron=L0.N1&limit=x&rows=1", 400, "limit must be a number"),
        ("contexts?neuron=L0.N1&limit=nan&rows=1", 400, "limit must be a number"),
        ("contexts?neuron=L0.N1&limit=inf&rows=1", 400, "limit must be a number"),
        ("contexts?neuron=L0.N1&limit=-1&rows=1", 400, "limit must be a number"),
        ("contexts?neuron=L0.N1&limit=1&rows=1,x", 400, "whole numbers"),
        ("contexts?neuron=L0.N1&limit=1&rows=,", 400, "whole numbers"),
        ("contexts?neuron=L0.N1&limit=1&rows=-1", 400, "no row -1"),
        ("contexts?neuron=L0.N1&limit=1&rows=99999", 400, "no row 99999"),
        ("contexts?neuron=L0.N1&limit=1&rows=99999999999999999999", 400, "no row 99999999999999999999"),
        ("contexts?neuron=L0.N1&limit=1&rows=" + ",".join(["1"] * 401), 400, "at most 400"),
        ("contexts?neuron=L0.N1&limit=1&rows=0,1,1", 200, ""),
        ("contexts?neuron=L0.N1&limit=0&rows=1", 200, ""),
    ],
)
def test_parameters(port: int, query: str, status: int, said: str) -> None:
    answer = ask(port, f"/small/{query}")
    assert answer.status == status, answer.text
    if status != 200:
        assert said in answer.problem
        part = ask(port, f"/small/{query}", ("Sec-Fetch-Dest", "empty"))
        assert part.status == status
        assert said in part.text
        assert part.headers["content-type"].startswith("text/plain")


def test_padding_is_no_row(port: int, lake: Lake) -> None:
    padding = int(np.flatnonzero(flags(lake) & 2)[0])
    assert "padding" in ask(port, f"/small/contexts?neuron=L0.N1&limit=1&rows={padding}").problem


def test_a_very_long_address_is_refused(port: int) -> None:
    status = 400
    with suppress(ConnectionError):  # it may be cut off before the end
        status = ask(port, "/small/?by=" + "a" * 5_000_000).status
    assert status == 400


@pytest.mark.parametrize(
    "page",
    [
        "sentence", "compare", "search", "neighbours", "firing", "heatmap.csv", "tag.csv", "profile.csv", "contexts.csv",
        "heatmap.svg", "volcano.png", "histogram.pdf",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "query",
    [
        "", "sentence=-1", "sentence=99999999999999999999", "sentence=x", "sentence=1&neurons=L0.N70", "sentence=1&first=-5",
        "sentence=1&first=999999", "sentence=1&neurons=" + ",".join(f"L0.N{n}" for n in range(70)), "neuron=L0.N70",
        "sentence=1&labels=no,<b>", "tag=<b>&against=NOUN", "tag=NOUN&against=NOUN", "tag=NOUN&other=small", "tag=$x^",
        "tag=NOUN&other=../..", "tag=NOUN&method=none", "tag=NOUN&top=-1", "tag=NOUN&top=99999999999999999999", "q=L9.N9",
        "q=" + "a" * 3000, "q=%00%1b%ff", "q=upos%3D%3D", "q=read_text('/etc/passwd')%3D1&as=SQL", "q=x&as=none", "layer=9",
        "q=%25%5F%27%22%3B--&as=SQL", "neuron=L0.N1&signature=none", "neuron=L0.N1&k=-1", "form=w1&where=1", "form=none",
        "where=upos%3D%27none%27", "neuron=L0.N1&tag=none", "neuron=L0.N1&by=nothing",
    ],
)  # fmt: skip
def test_every_question_has_an_answer(port: int, page: str, query: str) -> None:
    """Whatever is asked of the other views, it is answered or said to be wrong: nothing fails."""
    answer = ask(port, f"/small/{page}?{query}".replace("<", "%3C"))
    assert answer.status in (200, 307, 400, 404), answer.text
    assert b"root:" not in answer.body
    if answer.status >= 400 and page != "search":
        assert answer.problem


# ---- the numbers ------------------------------------------------------------------------------------------------------


class Truth:
    """What plain NumPy and SciPy say of a lake's words, from `Lake.read`."""

    def __init__(self, lake: Lake, layer: int):
        table = lake.tokens(labels=["upos"])
        upos = np.array(table.column("upos").to_pylist(), dtype=object)
        last = table.column("is_last_subword").to_numpy(zero_copy_only=False) & (table.column("word").to_numpy() >= 0)
        self.tags = ("ADJ", "NOUN", "VERB")
        self.all = stored(lake, layer).astype(np.float64)
        self.values = self.all[last]
        self.masks = [upos[last] == tag for tag in self.tags]
        self.anywhere = {tag: upos == tag for tag in self.tags}

    def auroc(self, neurons: slice = slice(None)) -> np.ndarray:
        """(tags, neurons)."""
        ranks = rankdata(self.values[:, neurons], axis=0)
        inside = [(ranks[mask].sum(axis=0), int(mask.sum())) for mask in self.masks]
        return np.stack([(total - n * (n + 1) / 2) / (n * (len(ranks) - n)) for total, n in inside])

    def cohen_d(self) -> np.ndarray:
        found = []
        for mask in self.masks:
            a, b = self.values[mask], self.values[~mask]
            pooled = ((len(a) - 1) * a.var(axis=0, ddof=1) + (len(b) - 1) * b.var(axis=0, ddof=1)) / (len(a) + len(b) - 2)
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(np.where(pooled > 0, (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(pooled), 0.0))
        return np.stack(found)


@pytest.fixture(scope="module")
def truth(lake: Lake) -> list[Truth]:
    return [Truth(lake, layer) for layer in lake.layers]


def value(text: str) -> float:
    return float(text.split()[0].replace("−", "-").replace(",", ""))


def close(shown: str, exact: float, digits: int = 3, slack: float = 0.0) -> bool:
    return abs(value(shown) - exact) <= 0.501 * 10**-digits + slack


def rows_of(table: Element) -> list[list[Element]]:
    return [[cell for cell in row.inside if isinstance(cell, Element)] for row in table.one("tbody").all("tr")]


@ALWAYS
def test_profile(port: int, lake: Lake, truth: list[Truth], neuron: int) -> None:
    statistics = compute_statistics(lake, "upos")
    for layer in lake.layers:
        page = ask(port, f"/small/neuron?neuron=L{layer}.N{neuron}").page
        here, auroc, effect = truth[layer], truth[layer].auroc(), truth[layer].cohen_d()
        shown = rows_of(page.one("table", class_="profile"))
        assert sorted(cells[0].words for cells in shown) == list(here.tags)
        far = [abs(value(cells[2].words) - 0.5) for cells in shown]
        assert far == sorted(far, reverse=True)
        for cells in shown:
            at = here.tags.index(cells[0].words)
            column = here.values[here.masks[at], neuron]
            assert value(cells[1].words) == len(column)
            bound = float(statistics["auroc_error"][at, layer, neuron])
            assert close(cells[2].words, auroc[at, neuron], slack=bound)
            assert close(cells[4].words, effect[at, neuron], 2)
            assert close(cells[5].words, column.mean())
            assert close(cells[6].words, column.std(ddof=1))
            assert close(cells[7].words, 100 * (column > 0).mean(), 1)
            assert float(cells[3].attributes["data-value"] or 0) <= 1


@ALWAYS
def test_densities_drawn(port: int, lake: Lake, neuron: int) -> None:
    page = ask(port, f"/small/neuron?neuron=L1.N{neuron}").page
    found = tag_densities(lake, 1, neuron, "upos")
    assert found is not None
    drawn = {}
    for cells in rows_of(page.one("table", class_="profile")):
        path = cells[8].one("path").attributes["d"] or ""
        drawn[cells[0].words] = (20 - np.array(re.findall(r"V([\d.]+)h1", path), dtype=float)) / 19
    shares = np.stack([drawn[tag] for tag in found.tags])
    assert shares == pytest.approx(found.share / found.share.max(axis=1, keepdims=True), abs=1e-3)


@pytest.mark.parametrize("bins", [1, 2, 7, 64, 255])
@ALWAYS
def test_densities_count(lake: Lake, truth: list[Truth], neuron: int, bins: int) -> None:
    for layer in lake.layers:
        found = tag_densities(lake, layer, neuron, "upos", bins=bins)
        assert found is not None
        assert found.tags == truth[layer].tags
        assert len(found.edges) - 1 <= bins
        assert (np.diff(found.edges) >= 0).all()
        values = truth[layer].values[:, neuron]
        assert (found.edges[0], found.edges[-1]) == (values.min(), values.max())
        counts = found.share * found.count[:, None]
        np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
        np.testing.assert_allclose(found.share.sum(axis=1), 1)
        # a value on an edge is in either bin: edges are those of float32 arithmetic, some 1e-7 wide
        slack = 3e-7 * (np.abs(found.edges[1:-1]) + np.abs(values).max() / 8)
        for at, mask in enumerate(truth[layer].masks):
            column = np.sort(values[mask])
            below = np.cumsum(np.rint(counts[at]))[:-1]
            assert (below >= np.searchsorted(column, found.edges[1:-1] - slack, "left")).all()
            assert (below <= np.searchsorted(column, found.edges[1:-1] + slack, "right")).all()


@pytest.mark.parametrize("tag", ["", "NOUN"])
@ALWAYS
def test_contexts_are_the_highest_and_lowest(port: int, lake: Lake, truth: list[Truth], neuron: int, tag: str) -> None:
    counts = flags(lake) & 3 == 0
    if tag:
        counts &= truth[0].anywhere[tag]
    lines, column = np.flatnonzero(counts), truth[0].all[counts, neuron]
    page = ask(port, f"/small/neuron?neuron=L0.N{neuron}&k=25&tag={tag}").page
    for name, sign in (("top", -1), ("bottom", 1)):
        table = page.one("table", id=f"{name}-L0.N{neuron}")
        best = np.lexsort((lines, sign * column))[:25]
        assert [int(row.attributes["data-row"] or "") for row in table.one("tbody").all("tr")] == lines[best].tolist()
        assert all(close(row[0].words, exact) for row, exact in zip(rows_of(table), column[best], strict=True))
        forms = lake.tokens(labels=["form", "upos"])
        for cells, line in zip(rows_of(table), lines[best].tolist(), strict=True):
            marked, form = cells[2].one("mark").text, forms.column("form")[line].as_py()
            assert marked in form
            assert cells[1].words == forms.column("upos")[line].as_py()


def test_shaded_contexts_say_what_is_stored(port: int, lake: Lake) -> None:
    table = lake.tokens()
    sentence, special = table.column("sentence").to_numpy(), flags(lake) & 3 != 0
    rows = [3, 40, 130, 131, 400]
    column = lake.read(layer=1, neurons=[7], rows=np.arange(len(special)))[:, 0]
    answer = ask(port, f"/small/contexts?neuron=L1.N7&limit=2.5&rows={','.join(map(str, rows))}")
    found = {int(part.attributes["data-row"] or ""): part for part in answer.page.all("p")}
    assert list(found) == rows
    for row, part in found.items():
        inside = np.flatnonzero((sentence == sentence[row]) & ~special)
        tokens = part.all("span", class_="token")
        assert len(tokens) == len(inside)
        for token, line in zip(tokens, inside, strict=True):
            assert close(token.one("span", class_="value").text, column[line], 2)
            assert close(token.attributes["title"] or "", column[line])
            assert signed(float(column[line]), 2.5) in (token.attributes["class"] or "").split()
            assert bool(token.all("mark")) == (line == row)


def test_heat_map_holds_the_maxima(port: int, lake: Lake, truth: list[Truth]) -> None:
    page = ask(port, "/small/").page
    table = page.one("table", class_="heat")
    statistics = compute_statistics(lake, "upos")
    best = np.stack([np.maximum(each.auroc(), 1 - each.auroc()) for each in truth], axis=1)  # (tags, layers, neurons)
    bound = statistics["auroc_error"].to_numpy().max(axis=2)
    heads = [head.words for head in table.one("thead").all("th")]
    assert heads == ["layer", *truth[0].tags]
    body = rows_of(table)
    assert [int(cells[0].words) for cells in body] == [1, 0]  # the last layer on top
    peaks = {}
    for cells in body:
        layer = int(cells[0].words)
        for at, cell in enumerate(cells[1:]):
            assert close(cell.words, best[at, layer].max(), 2, slack=bound[at, layer])
            assert f"layer {layer}, {truth[0].tags[at]}: " in (cell.one("a").attributes["aria-label"] or "")
            if "●" in cell.words:
                peaks[truth[0].tags[at]] = layer
    for at, cell in enumerate(table.one("tfoot").all("td")):
        layer, neuron = map(int, re.findall(r"\d+", cell.words))
        assert peaks[truth[0].tags[at]] == layer
        assert best[at, layer, neuron] >= best[at].max() - 2 * bound[at].max()
    values = [
        (value(cell.words), int((cell.attributes["class"] or "").split()[0][1:])) for cells in body for cell in cells[1:]
    ]
    ordered = sorted(values)
    assert [shade for _, shade in ordered] == sorted(shade for _, shade in values)
    assert ordered[0][1] == 0
    assert ordered[-1][1] == STEPS


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_ranking_is_in_order(port: int, truth: list[Truth], layer: int | None) -> None:
    at = "" if layer is None else f"&layer={layer}"
    page = ask(port, f"/small/tag?tag=VERB&method=cohen_d&top=30{at}").page
    layers = [0, 1] if layer is None else [layer]
    effect = np.stack([truth[each].cohen_d()[2] for each in layers])
    order = np.argsort(-np.abs(effect), axis=None, kind="stable")[:30]
    table = page.one("div", aria_label="Ranking").one("table")
    for place, (cells, flat) in enumerate(zip(rows_of(table), order, strict=True)):
        where = np.unravel_index(flat, effect.shape)
        name, here = f"L{layers[where[0]]}.N{where[1]}", truth[layers[where[0]]]
        assert [cells[0].words, cells[1].words] == [str(place + 1), name]
        assert close(cells[2].words, effect[where])
        assert cells[3].words == ("higher" if effect[where] > 0 else "lower")
        column, mask = here.values[:, where[1]], here.masks[2]
        assert close(cells[4].words, column[mask].mean())
        assert close(cells[5].words, column[~mask].mean())
    if layer is None:
        bars = rows_of(page.one("table", class_="bars"))
        counted = [int(np.count_nonzero(order // NEURONS == each)) for each in (0, 1)]
        assert [int(cells[1].words) for cells in bars] == counted


@pytest.mark.parametrize("method", METHODS)
def test_every_ranking_has_pages(port: int, method: str) -> None:
    table = ask(port, f"/small/?method={method}").page.one("table", class_="heat")
    for cells in rows_of(table):
        for cell in cells[1:]:
            assert np.isfinite(value(cell.words))
            assert re.fullmatch(r"s(\d|10)( best)?", cell.attributes["class"] or "")
    page = ask(port, f"/small/tag?tag=NOUN&method={method}&top=1000").page
    rows = rows_of(page.one("div", aria_label="Ranking").one("table"))
    assert len(rows) == 2 * NEURONS
    for cells in rows:
        assert "nan" not in " ".join(cell.words for cell in cells).lower()
        for cell in cells[6:8]:
            key = cell.attributes["data-value"]
            assert key == "" if cell.words == "–" else 0 <= float(key or "") <= 1


@given(st.data())
def test_rank_of_some_layers(lake_scores, data: st.DataObject) -> None:
    statistics, scores = lake_scores
    layers = data.draw(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=3))
    top = data.draw(st.integers(1, 150))
    found = rank(statistics, "auroc", top=top, tags=["NOUN"], layers=layers)
    chosen = sorted(set(layers))
    table = scores["score"].sel(tag="NOUN").to_numpy()
    expected = sorted(
        ((-table[layer, neuron], layer, neuron) for layer in chosen for neuron in range(NEURONS)),
    )[:top]
    assert [(entry["layer"], entry["neuron"]) for entry in found] == [entry[1:] for entry in expected]
    q = scores["q"].sel(tag="NOUN").to_numpy()
    assert [entry["q"] for entry in found] == [q[entry[1:]] for entry in expected]  # of all neurons still


@pytest.fixture(scope="module")
def lake_scores(lake: Lake):
    statistics = compute_statistics(lake, "upos")
    return statistics, score(statistics, "auroc").transpose("tag", "layer", "neuron", ...)


def test_kept_labels_are_those_asked_for_by_default(tmp_path: Path) -> None:
    two_site_lake(tmp_path / "two.lake")
    lake = open_lake(tmp_path / "two.lake")
    assert kept_labels(lake) == []
    compute_statistics(lake, "form", basic=True)
    compute_statistics(lake, "upos", where="form <> 'w1'")
    compute_statistics(lake, "upos", subword="first")
    compute_statistics(lake, "upos", shift=1)
    compute_statistics(lake.at("resid.post"), "upos")
    assert kept_labels(lake) == []
    assert kept_labels(lake.at("resid.post")) == ["upos"]
    compute_statistics(lake, "upos")
    compute_statistics(lake, "upos * document_name")
    assert kept_labels(lake) == ["upos", "upos×document_name"]
    compute_statistics(lake, "CASE WHEN upos='NOUN' THEN 'n' ELSE 'o' END")
    assert len(kept_labels(lake)) == 3
    for result in (lake.path / "statistics").iterdir():  # one that is damaged is not listed, and does not harm
        record = next(path for path in result.iterdir() if path.suffix == ".json" and b'"by"' in path.read_bytes())
        record.write_bytes(record.read_bytes()[:-20])
    assert kept_labels(lake) == []


# ---- sentences in pieces ----------------------------------------------------------------------------------------------

LETTERS = st.text(st.sampled_from("ab \tß東京é🦆👩‍🚀\u0301\n<&>\"'"), min_size=1, max_size=25)


@given(text=LETTERS, data=st.data())
def test_pieces_are_the_text(text: str, data: st.DataObject) -> None:
    """Tokens of a byte-level tokenizer, of which several may share a letter; some may be left out, some be special."""
    owner = np.repeat(np.arange(len(text)), [len(letter.encode()) for letter in text])
    cuts = sorted({0, len(owner), *data.draw(st.lists(st.integers(0, len(owner)), max_size=12))})
    tokens, known = [], {}
    for number, (first, stop) in enumerate(pairwise(cuts)):
        special = data.draw(st.integers(0, 9)) == 0
        start, end = (-1, -1) if special else (int(owner[first]), int(owner[stop - 1]) + 1)
        tokens.append({"row": number, "char_start": start, "char_end": end, "flags": int(special)})
        if data.draw(st.booleans()):
            known[number] = data.draw(st.floats(-4, 4, width=32))
    tokens = [token for token in tokens if data.draw(st.integers(0, 9))]
    target = data.draw(st.sampled_from([None, *(token["row"] for token in tokens)]))
    pieces = split(text, tokens, known, target=target, limit=4.0)
    assert "".join(piece.text for piece in pieces) == text
    shown = [piece for piece in pieces if piece.row is not None]
    assert len({piece.row for piece in shown}) == len(shown)
    ordinary = [token["row"] for token in tokens if not token["flags"]]
    assert [piece.row for piece in shown if piece.target] == ([target] if target in ordinary else [])
    for piece in shown:
        assert piece.text
        assert piece.value == known.get(piece.row)
        assert piece.shade == signed(piece.value, 4.0)
    for token in tokens:  # what a token is not shown with is no larger than what is shown in its place
        if token["row"] in ordinary and token["row"] in known and token["row"] not in {piece.row for piece in shown}:
            stand_in = next(piece for piece in shown if covers(pieces, piece, token["char_end"] - 1))
            assert stand_in.target or abs(stand_in.value or 0) >= abs(known[token["row"]])


def covers(pieces: list, piece: object, letter: int) -> bool:
    position = 0
    for each in pieces:
        if each is piece:
            return position <= letter < position + len(each.text)
        position += len(each.text)
    return False


# ---- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_an_indexed_neuron_needs_no_activation(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=2)
    compute_statistics(lake, "upos")
    with served([lake.path]) as port:
        names = [f"L{layer}.N{neuron}" for layer in (0, 1) for neuron in (0, 5, 69)]
        before = [ask(port, f"/a/neuron?neuron={name}") for name in names]
        (lake.path / "activations").rename(tmp_path / "activations")
        for name, answer in zip(names, before, strict=True):
            now = ask(port, f"/a/neuron?neuron={name}")
            assert (now.status, now.body) == (200, answer.body)
            assert "were read" not in now.page.one("main").words
        for page in ("", "tag?tag=NOUN", "?method=f_statistic", "state"):
            assert ask(port, f"/a/{page}").status == 200
        shading = f"/a/contexts?neuron=L0.N0&limit=1&rows={ROWS}"
        broken = ask(port, shading)
        assert broken.status == 500
        assert "is missing though its block is committed" in broken.problem
        (tmp_path / "activations").rename(lake.path / "activations")
        assert ask(port, shading).status == 200


def test_a_partial_index_says_what_was_read(tmp_path: Path) -> None:
    lakes = lakes_of(tmp_path, "float16", special=True)
    compute_statistics(lakes[0], "upos")
    with served([lake.path for lake in lakes]) as port:

        def tables(name: str) -> list[str]:
            page = ask(port, f"/{name}/neuron?neuron=L0.N7&k=20").page
            return [[cells[0].words for cells in rows_of(table)] for table in page.all("table", class_="contexts")]

        expected = tables("a")
        for name, covered in (("merged", 5), ("partly", 2), ("bare", 0)):
            total = len(lakes[0].blocks)
            words = ask(port, f"/{name}/neuron?neuron=L0.N7&k=20").page.one("main").words
            assert tables(name) == expected
            if name == "merged":
                assert "were read" not in words
            else:
                covered = len(open_lake(tmp_path / f"{name}.lake").index().blocks)
                match = re.search(r"covers (\d+) of (\d+) blocks: (\d+) blocks of activations were read", words)
                assert match is not None
                assert (int(match[1]), int(match[2])) == (covered, total)
                assert 0 < int(match[3]) <= total - covered
        assert "no statistics are kept" in ask(port, "/merged/neuron?neuron=L0.N7").page.one("main").words
        assert ask(port, "/some/neuron?neuron=L0.N7").status == 200


# ---- lakes that change ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_a_lake_that_is_moved_and_put_back(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=3, tokens=150)
    compute_statistics(lake, "upos")
    with served([lake.path]) as port:
        assert ask(port, "/a/").status == 200
        lake.path.rename(tmp_path / "elsewhere")
        for page in ("", "tag?tag=NOUN", "neuron?neuron=L0.N1", "state"):
            gone = ask(port, f"/a/{page}")
            assert gone.status == 503
            assert "is not there any more" in gone.problem
        assert ask(port, "/").status == 307
        (tmp_path / "elsewhere").rename(lake.path)
        assert ask(port, "/a/neuron?neuron=L0.N1").status == 200
        shutil.rmtree(lake.path)
        two_site_lake(lake.path)
        other = ask(port, "/a/neuron?neuron=L0.N1")
        assert other.status == 503
        assert "another lake" in other.problem
        assert ask(port, "/a/").status == 503


def test_a_lake_that_is_moved_is_missed_at_once(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=3, tokens=150)
    with served([lake.path]) as port:
        assert ask(port, "/a/neuron?neuron=L0.N1").status == 200
        lake.path.rename(tmp_path / "elsewhere")  # within the second in which folders are not looked at
        answer = ask(port, "/a/contexts?neuron=L0.N1&limit=1&rows=1")
        assert answer.status == 503
        assert "is not there any more" in answer.problem


@pytest.mark.usefixtures("at_once")
def test_a_lake_that_grows(tmp_path: Path) -> None:
    growing = GrowingLake(tmp_path / "a.lake")
    compute_statistics(growing.commit(0, 1), "upos")
    with served([growing.root]) as port:
        first, state = ask(port, "/a/").page, ask(port, "/a/state").text
        assert "2 of 6 blocks (not finished)" in first.words
        assert [head.words for head in first.one("table", class_="heat").one("thead").all("th")] == ["layer", "ADJ", "NOUN"]
        assert first.one("body").attributes["data-state"] == state
        growing.commit(2, 3, 4, 5)
        stale = ask(port, "/a/tag?tag=NOUN")
        assert stale.status == 404
        assert "statistics of 'upos' are not kept for all 6 committed blocks" in stale.problem
        assert "statistics of 'upos' are not kept for all 6" in ask(port, "/a/").page.one("main").words
        assert ask(port, "/a/state").text != state
        assert "are not kept for all" in ask(port, "/a/neuron?neuron=L0.N1").page.words
        compute_statistics(open_lake(growing.root), "upos")
        heads = ask(port, "/a/").page.one("table", class_="heat").one("thead").all("th")
        assert [head.words for head in heads] == ["layer", "ADJ", "NOUN", "VERB"]
        compute_statistics(open_lake(growing.root), "upos×document_name")
        assert "upos×document_name" in ask(port, "/a/").page.words


@pytest.mark.usefixtures("at_once")
def test_damaged_statistics_are_said(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=3, tokens=150)
    compute_statistics(lake, "upos")
    (result,) = (lake.path / "statistics").iterdir()
    for path in (result / "pooled").rglob("*"):
        if path.is_file() and path.name != "zarr.json":
            path.write_bytes(b"damage")
    with served([lake.path]) as port:
        for page in ("", "tag?tag=NOUN", "neuron?neuron=L0.N1"):
            answer = ask(port, f"/a/{page}")
            assert answer.status in (200, 404, 500)
            assert "Traceback" not in answer.text
            assert answer.page.one("main").words


# ---- several lakes, sites, other sources ------------------------------------------------------------------------------


def test_two_sites(tmp_path: Path) -> None:
    two_site_lake(tmp_path / "two.lake")
    lake = open_lake(tmp_path / "two.lake")
    compute_statistics(lake, "upos")
    compute_statistics(lake.at("resid.post"), "upos")
    with served([lake.path]) as port:
        assert "neurons 0 to 9" in ask(port, "/two/neuron?neuron=L0.N10").problem
        page = ask(port, "/two/neuron?neuron=L1.N3&site=resid.post").page
        assert "resid.post" in page.one("h1").words
        assert page.one("input", name="site").attributes["value"] == "resid.post"
        assert all("site=resid.post" in (a.attributes["href"] or "") for a in page.one("table", class_="profile").all("a"))
        assert "neurons 0 to 6" in ask(port, "/two/neuron?neuron=L0.N7&site=resid.post").problem
        cells = rows_of(ask(port, "/two/?site=resid.post").page.one("table", class_="heat"))[0]
        assert cells[2].one("a").attributes["href"] is not None


def test_several_lakes_are_listed(tmp_path: Path, lake: Lake) -> None:
    names = ["a", "a", "static", "ä ö", "100%", "a?b#c", "..b", "x.lake"]
    paths = []
    for number, name in enumerate(names):
        path = tmp_path / str(number) / f"{name}.lake"
        shutil.copytree(lake.path, path)
        paths.append(path)
    with served(paths) as port:
        page = ask(port, "/").page
        links = page.one("main").all("a")
        assert len({link.attributes["href"] for link in links}) == len(names)
        for link in links:
            answer = ask(port, link.attributes["href"] or "")
            assert answer.status == 200, link.attributes
            assert answer.page.one("h1").words == link.words
            assert ask(port, answer.page.one("tfoot").all("a")[0].attributes["href"] or "").status == 200
        assert "no lake 'b' here" in ask(port, "/b/").problem
        assert ask(port, "/static/explorer.css").status == 200


def test_lakes_of_other_sources(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    labels = {"phase": np.where(np.arange(300) // 50 % 2, "task", "rest")}
    lake = write_lake(tmp_path / "eeg.lake", values, tokens=labels, name="EEG", encoding="float16")
    with served([lake.path]) as port:
        assert "neuronlake rank" in ask(port, "/eeg/").page.one("main").words
        assert ask(port, "/eeg/neuron?neuron=L0.N3").status == 200
    compute_statistics(lake, "phase")
    with served([lake.path]) as port:
        for page in ("", "tag?tag=task", "neuron?neuron=L0.N3", "neuron?neuron=L0.N3&tag=rest"):
            assert ask(port, f"/eeg/{page}").status == 200, page
        page = ask(port, "/eeg/neuron?neuron=L0.N3&k=3").page
        best = np.argsort(-values[:, 3])[:3]
        shown = [cells[0].words for cells in rows_of(page.one("table", id="top-L0.N3"))]
        assert all(close(text, values[row, 3], slack=2e-3) for text, row in zip(shown, best, strict=True))


def test_requests_at_the_same_time(port: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    targets = [f"/small/neuron?neuron=L{number % 2}.N{number}" for number in range(24)] + [
        "/small/",
        "/small/tag?tag=NOUN",
    ] * 4
    alone = [ask(port, target).body for target in targets]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda target: ask(port, target).body, targets)) == alone


def test_the_index_is_not_needed_for_statistics_pages(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "a.lake", encoding="float16", seed=5, tokens=150)
    compute_statistics(lake, "upos")
    for name in kept_results(lake.path, kept=INDEX):
        shutil.rmtree(lake.path / INDEX / name)
    with served([lake.path]) as port:
        assert ask(port, "/a/").status == ask(port, "/a/tag?tag=ADJ").status == 200
        assert "covers 0 of" in ask(port, "/a/neuron?neuron=L0.N1").page.words
