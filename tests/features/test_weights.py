"""The checkpoint is fetched whole or not at all, proved to fit, recorded, and held to that."""

import hashlib
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from g2sf_lib.features import weights
from g2sf_lib.features.checkpoints import WeightsError
from g2sf_lib.features.pointmae import DEFAULT_FILE, PointMAE

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """Serves one content under any name; can break off, or wait, after half of it."""

    def __init__(self):
        self.content, self.stops_after_half, self.num_requests = b"", None, 0
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                served.num_requests += 1
                self.send_response(200 if served.content else 404)
                self.send_header("Content-Length", str(len(served.content)))
                self.end_headers()
                if served.stops_after_half is None:
                    self.wfile.write(served.content)
                    return
                self.wfile.write(served.content[: len(served.content) // 2])
                self.wfile.flush()
                served.stops_after_half.wait(60)

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/pretrain.pth"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    if made.stops_after_half:
        made.stops_after_half.set()
    made.http.shutdown()


@pytest.fixture(scope="module")
def net():
    return PointMAE(num_groups=4, group_size=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, net):
    """The bytes of a file laid out like the official one: 90 MB, so made once."""
    path = tmp_path_factory.mktemp("made") / "pretrain.pth"
    state = {f"module.MAE_encoder.{key}": value for key, value in net.state_dict().items()}
    torch.save({"base_model": state}, path)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_first_fetch_records_what_it_saw_and_the_file_loads(server, folder, checkpoint, net):
    server.content = checkpoint
    record = weights.fetch_pointmae(folder, server.url)
    path = folder / DEFAULT_FILE.name
    assert path.read_bytes() == checkpoint
    assert record["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert record["bytes"] == len(checkpoint) and record["url"] == server.url
    assert json.loads(path.with_suffix(".json").read_text()) == record
    assert names(folder) == ["pointmae_pretrain.json", "pointmae_pretrain.pth"]
    other = PointMAE(num_groups=4, group_size=8)
    other.load_checkpoint(path)
    assert (other.norm.weight == net.norm.weight).all()
    assert weights.fetch_pointmae(folder, server.url) == record and server.num_requests == 1


def test_another_file_is_refused_with_both_hashes(server, folder, checkpoint):
    server.content = checkpoint
    before = weights.fetch_pointmae(folder, server.url)["sha256"]
    path = folder / DEFAULT_FILE.name
    path.write_bytes(checkpoint[:-1])
    now = hashlib.sha256(checkpoint[:-1]).hexdigest()
    with pytest.raises(WeightsError, match=f"is {now}, .* recorded {before}"):
        weights.fetch_pointmae(folder, server.url)
    assert path.read_bytes() == checkpoint[:-1]  # it is the reader's to delete
    path.unlink()
    server.content = checkpoint + b"one byte more"  # as if another were published
    after = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(WeightsError, match=f"is {after}, .* recorded {before}"):
        weights.fetch_pointmae(folder, server.url)
    assert names(folder) == ["pointmae_pretrain.json"]
    server.content = checkpoint  # and the same one is taken
    assert weights.fetch_pointmae(folder, server.url)["sha256"] == before


def test_what_does_not_fit_the_network_is_not_kept(server, folder, tmp_path):
    torch.save({"base_model": {"module.MAE_encoder.norm.bias": torch.ones(384)}}, tmp_path / "bad")
    server.content = (tmp_path / "bad").read_bytes()
    with pytest.raises(WeightsError, match=r"not Point-MAE's encoder; .*Missing.*norm\.weight"):
        weights.fetch_pointmae(folder, server.url)
    server.content = b"<html>moved</html>"
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        weights.fetch_pointmae(folder, server.url)
    server.stops_after_half = threading.Event()
    server.stops_after_half.set()  # the handler returns after half, and the connection ends
    with pytest.raises(WeightsError, match="cannot be fetched"):
        weights.fetch_pointmae(folder, server.url)
    assert names(folder) == []


def test_a_file_put_there_by_hand_is_proved_and_recorded(server, folder, checkpoint):
    folder.mkdir()
    (folder / DEFAULT_FILE.name).write_bytes(checkpoint)
    record = weights.fetch_pointmae(folder, server.url)
    assert record["url"] is None and record["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert server.num_requests == 0
    (folder / DEFAULT_FILE.name).write_bytes(b"nothing of the kind")
    (folder / DEFAULT_FILE.name).with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        weights.fetch_pointmae(folder, server.url)
    assert names(folder) == [DEFAULT_FILE.name]  # not ours to delete


def test_no_network_is_one_line_with_url_and_place(folder, monkeypatch):
    url = "http://127.0.0.1:9/pretrain.pth"  # the discard port, which nobody listens on
    monkeypatch.setattr(weights.fetch_pointmae, "__defaults__", (folder, url, False))
    with pytest.raises(SystemExit) as stopped:
        weights.main()
    said = str(stopped.value)
    assert url in said and str(folder / DEFAULT_FILE.name) in said and "\n" not in said
    assert names(folder) == []


def test_an_interrupted_program_leaves_no_half_file(server, folder, checkpoint):
    server.content = checkpoint
    server.stops_after_half = threading.Event()
    call = "import sys, pathlib; from g2sf_lib.features.weights import fetch_pointmae as fetch; "
    process = subprocess.Popen(
        [sys.executable, "-c", call + "fetch(pathlib.Path(sys.argv[1]), sys.argv[2])"]
        + [str(folder), server.url],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        # A shell's background jobs inherit "ignore" for Ctrl-C; a terminal's do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(600):
            if server.num_requests and any(p.stat().st_size for p in folder.rglob("tmp*")):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()
    assert names(folder) == []
