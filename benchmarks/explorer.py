"""The explorer's pages on EWT train: server time, and which read an activation; pictures for the documentation."""

import http.client
import random
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.common import ROOT, keep, scratch, small_lake, whole_train_lake
from benchmarks.statistics import bytes_read, linked

_SIZE = {"width": 1200, "height": 760}


def run(*, root: Path | None = None, sentences: int | None = None, pages: int = 100) -> dict[str, Any]:
    """Print how long pages take, and how often they read an activation.

    Parameters
    ----------
    root
        A lake; by default EWT train, which is extracted on the first run (7 GB and some fifteen minutes).
    sentences
        Only so many sentences of EWT dev instead, in a lake that is removed afterwards.
    pages
        Random neurons and tags of each kind.
    """
    from neuronlake.analysis import compute_statistics
    from neuronlake.store import open_lake

    with scratch() as name:
        whole = root or whole_train_lake() if sentences is None else small_lake(Path(name), sentences)
        lake = open_lake(linked(whole, Path(name) / "served", without=("labels",)))  # what is kept is not written into it
        tags = [str(tag) for tag in compute_statistics(lake, "upos")["tag"].to_numpy()]
        result = {"tokens": lake.plan.counts["tokens"], "layers": len(lake.layers), "neurons": lake.neurons}
        with serving([lake.path]) as port:
            result["pages"] = _pages(port, lake, tags, pages)
    print("\n| page | median ms | 95 % | first | reading activations |\n|---|---|---|---|---|")
    for kind, row in result["pages"].items():
        shown = " | ".join(f"{1000 * row[name]:.0f}" for name in ("median_seconds", "p95_seconds", "first_seconds"))
        print(f"| {kind} | {shown} | {row['reading']} of {row['pages']} |")
    keep("explorer", result)
    return result


def _pages(port: int, lake: Any, tags: list[str], pages: int) -> dict[str, Any]:
    base, rng = f"/{quote(lake.path.name.removesuffix('.lake'))}/", random.Random(0)

    def neuron() -> str:
        return f"L{rng.choice(lake.layers)}.N{rng.randrange(lake.neurons)}"

    def tag() -> str:
        return quote(rng.choice(tags))

    methods = ("auroc", "cohen_d", "f_statistic")
    kinds = {
        "overview": [f"{base}?method={method}" for method in methods] * max(1, pages // 10),
        "tag": [f"{base}tag?tag={tag()}&method={rng.choice(methods)}" for _ in range(pages)],
        "tag, one layer": [f"{base}tag?tag={tag()}&layer={rng.choice(lake.layers)}" for _ in range(pages)],
        "neuron": [f"{base}neuron?neuron={neuron()}" for _ in range(pages)],
        "sentence": [f"{base}sentence?sentence={rng.randrange(lake.plan.counts['sentences'])}" for _ in range(pages)],
        "compare": [f"{base}compare?tag={one}&against={two}" for one, two in (rng.sample(tags, 2) for _ in range(pages))],
        "search for a word": [f"{base}search?as=word&q={form}" for form in _forms(lake, rng, pages)],
        "neuron on a tag": [f"{base}neuron?neuron={neuron()}&tag={tag()}" for _ in range(pages)],
    }
    found = {}
    for kind, targets in kinds.items():
        seconds, reading = [], 0
        for target in targets:
            with bytes_read() as count:
                start = time.perf_counter()
                _get(port, target)
                seconds.append(time.perf_counter() - start)
            reading += count["bytes"] > 0
        ordered = sorted(seconds)
        found[kind] = {
            "pages": len(targets),
            "median_seconds": statistics.median(seconds),
            "p95_seconds": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
            "first_seconds": seconds[0],
            "reading": reading,
        }
    return found


def _forms(lake: Any, rng: random.Random, count: int) -> list[str]:
    words = lake.words(["form"]).column("form")
    return [quote(words[rng.randrange(len(words))].as_py(), safe="") for _ in range(count)]


def _get(port: int, target: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise SystemExit(f"{target}: {answer.status}")
    return body


@contextmanager
def serving(lakes: Sequence[Path]) -> Iterator[int]:
    """The explorer's server in a thread of this process; gives its port."""
    import uvicorn

    from neuronlake.analysis.explorer.app import create_app
    from neuronlake.analysis.explorer.shelf import Shelf

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(Shelf(lakes)), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def pictures(root: Path, folder: Path = ROOT / "docs" / "pictures") -> list[Path]:
    """Take pictures of every view of a lake, by Debian's Chromium without a window.

    ``python -c "import benchmarks.explorer as e; from pathlib import Path; e.pictures(Path('build/my.lake'))"``
    """
    from playwright.sync_api import sync_playwright

    from neuronlake.analysis import compute_statistics, rank
    from neuronlake.store import open_lake

    folder.mkdir(parents=True, exist_ok=True)
    with scratch() as name:
        lake = open_lake(linked(root, Path(name), without=("labels",)))
        best = rank(compute_statistics(lake, "upos"), "auroc", top=1, tags=["NUM"])[0]["name"]
        base = f"/{quote(lake.path.name.removesuffix('.lake'))}/"
        views = {
            "overview": (base, "light", True),
            "overview-dark": (base, "dark", False),
            "tag": (f"{base}tag?tag=NUM&top=20", "light", True),
            "neuron": (f"{base}neuron?neuron={best}&k=6", "light", True),
            "search": (f"{base}search?q=March", "light", False),
            "sentence": (f"{base}sentence?sentence=120", "light", True),
            "compare": (f"{base}compare?tag=NOUN&against=VERB", "light", True),
            "neuron-dark": (f"{base}neuron?neuron={best}&k=6", "dark", False),
            "problem": (f"{base}neuron?neuron=L99.N0", "light", False),
        }
        found = []
        with serving([lake.path]) as port, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
            )
            for view, (address, scheme, whole) in views.items():
                page = browser.new_page(viewport=_SIZE, color_scheme=scheme)
                page.goto(f"http://127.0.0.1:{port}{address}")
                if view.startswith("neuron"):
                    page.click("#shade")
                    page.locator("#shade", has_text="Every token is shaded").wait_for()
                page.evaluate("scrollTo(0, 0)")
                if view == "neuron-dark":
                    page.evaluate("document.querySelector('table.contexts').scrollIntoView()")
                found.append(folder / f"explorer-{view}.png")
                page.screenshot(path=found[-1], full_page=whole)
                page.close()
            browser.close()
    return found
