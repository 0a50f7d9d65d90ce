"""A server of mock models on loopback, with an OpenAI-compatible `completions`, and the faults that servers have."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from klscale.sources.mock import PAIRS, Chain, Parameters, vocabulary

START = "<s>"


@dataclass
class Served:
    """A mock model as `model`. `shape`: the start token is listed without a log-probability (`listed`, as vLLM does),
    is left out (`hidden`), or is left out and the text's first token is not scored either (`unscored`, as
    llama-cpp-python's server does). `by_ids`: it takes token ids, as vLLM's does, and with `chosen` it gives
    log-probabilities of chosen ids. `fault` names what is wrong; `busy` requests fail first; `asked` counts them."""

    seed: int = 7
    shape: str = "hidden"
    fault: str = ""
    busy: int = 0
    window: int | None = None
    token: str = ""
    by_ids: bool = False
    chosen: bool = True
    parts: str = "\N{REPLACEMENT CHARACTER}"
    asked: list[str] = field(default_factory=list)
    most: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.log_p = Chain.of(Parameters(self.seed, tokens="pairs")).log_p
        self.words = [word.decode(errors="replace").replace("\N{REPLACEMENT CHARACTER}", self.parts)
                      for word in vocabulary("pairs")]  # fmt: skip
        self.lock, self.now = threading.Lock(), 0

    @property
    def ref(self) -> str:
        return f"{self.url}#model"

    def tokenize(self, text: str) -> list[int]:
        data, ids, place = text.encode(), list[int](), 0
        pairs = {pair.encode(): 256 + n for n, pair in enumerate(PAIRS)}
        while place < len(data):
            ids.append(pairs.get(data[place : place + 2], data[place]))
            place += 1 + (ids[-1] > 255)
        return ids

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The answer to a request under the server's root."""
        if path == "/v1/completions" and not isinstance(body["prompt"], list):
            return self.complete(body)
        start = len(self.words)
        if self.by_ids and path == "/tokenize":
            ids = [start] * body["add_special_tokens"] + self.tokenize(body["prompt"])
            return 200, {"count": len(ids), "max_model_len": (self.window or 4096) + 1, "tokens": ids}
        if self.by_ids and path == "/detokenize":
            return 200, {"prompt": "".join(START if n == start else self.words[n] for n in body["tokens"])}
        if self.by_ids and path == "/v1/completions":
            ids = body["prompt"]
            if len(ids) > (self.window or 4096):
                return 400, {"error": {"message": "The decoder prompt is longer than the maximum model length."}}
            told: list[Any] = [None]
            for before, token in itertools.pairwise(ids):
                row = self.log_p[before]
                both = {token, int(row.argmax())}
                told.append({str(n): {"logprob": float(row[n]), "decoded_token": self.words[n]} for n in both})
            return 200, {"choices": [{"text": "x", "prompt_logprobs": told[:-1] if self.fault == "short" else told}]}
        if self.by_ids and self.chosen and path == "/inference/v1/generate":
            about, ids = body["sampling_params"], body["token_ids"]
            rows = ids[about["prompt_logprob_start"] : -1]
            wanted = np.array(about["prompt_logprob_token_ids"])
            if len(wanted) != len(rows):
                return 400, {"error": {"message": f"prompt_logprob_token_ids has {len(wanted)} rows"}}
            data = io.BytesIO()
            np.save(data, np.take_along_axis(self.log_p[rows], wanted, axis=1).astype(np.float32))
            return 200, {"prompt_token_id_logprobs": base64.b64encode(data.getvalue()).decode()}
        return 404, {"error": "Not Found"}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        fault, text, k = self.fault, body["prompt"], int(body["logprobs"])
        if fault == "cut":
            text = text[: len(text) // 2]
        ids = self.tokenize(text)
        if self.window is not None and len(ids) > self.window:
            return 400, {"error": {"message": f"This model's maximum context length is {self.window} tokens."}}
        log_p = self.log_p
        if fault in ("temperature", "top-p") and body["temperature"] != 1:
            log_p = log_p / body["temperature"] if fault == "temperature" else np.where(log_p > -3, log_p, -30.0)
            log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        start = len(self.words)
        before = [start, *ids]
        rows = log_p[before]  # row t predicts token t + 1
        if fault == "not a distribution":
            rows = rows + 2.0
            rows = np.minimum(rows, 0)
        if fault == "restless":
            rows = rows + np.random.default_rng().normal(size=rows.shape)
            rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        best = int(log_p[before[-1], :256].argmax()) if body["temperature"] == 0 else 32
        listed = ids if body["echo"] and fault != "no echo" else []
        listed = [*listed, best]
        at = len(ids) + 1 - len(listed)
        values = [float(rows[at + n, token]) for n, token in enumerate(listed)]
        if fault == "shifted" and body["echo"]:
            values = [float(rows[min(n + 1, len(rows) - 1), token]) for n, token in enumerate(listed)]
        tokens = [self.words[token] for token in listed]
        own: list[float | None] = [*values]
        if fault in ("top few", "filler"):
            own = [value if value > -6 else (None if fault == "top few" else -9999.0) for value in values]
        if fault == "floor":
            own = [max(value, -6.0) for value in values]
        order = np.argsort(-rows, axis=1)[:, :k]
        top: list[dict[str, float] | None] = [
            {self.words[i]: float(rows[at + n, i]) for i in order[at + n]} | {tokens[n]: values[n]}
            for n in range(len(listed))
        ]
        n_prompt = len(ids) + 1
        if len(listed) > 1:
            if self.shape == "listed":
                tokens, own, top = [START, *tokens], [None, *own], [None, *top]
            elif self.shape == "unscored":
                own[0] = None
            if fault == "first token":
                own[0], n_prompt = 0.0, len(ids)
        if fault == "other text":
            tokens = [token.upper() for token in tokens]
        if fault == "no log-probabilities":
            return 200, {"choices": [{"text": "x", "logprobs": {"content": [{"token": "x", "logprob": -1.0}]}}]}
        about = {"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": [0] * len(tokens)}
        usage = {"prompt_tokens": n_prompt, "completion_tokens": 1}
        return 200, {"choices": [{"text": text, "index": 0, "logprobs": about}], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a client waits 40 ms for the body behind each head

    @property
    def served(self) -> Served:
        return self.server.served  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "model", "root": f"mock-{self.served.seed}"}]})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with served.lock:
            served.now += 1
            served.most = max(served.most, served.now)
            if isinstance(body.get("prompt"), str):
                served.asked.append(body["prompt"])
            busy, served.busy = served.busy > 0, max(0, served.busy - 1)
        try:
            if served.token and self.headers["Authorization"] != f"Bearer {served.token}":
                self.answer(401, {"error": f"The token {self.headers['Authorization']} is not known."})
            elif busy:
                self.answer(503, {"error": "busy"})
            elif served.fault == "not JSON":
                self.answer(200, "<html>")
            else:
                self.answer(*served.answer(self.path, body))
        finally:
            with served.lock:
                served.now -= 1

    def answer(self, status: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(**how: Any) -> Iterator[Served]:
    """A server in a thread, for as long as this lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.served = served = Served(**how)  # type: ignore[attr-defined]
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
